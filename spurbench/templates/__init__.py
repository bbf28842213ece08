"""Files that ``spurbench new`` writes; ``__NAME__`` and ``__CLASS__`` are filled in."""
