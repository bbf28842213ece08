"""WaterBirds made from its sources: birds of CUB-200-2011 on photographs of Places, at any correlation.

The rules are those of ``dataset_scripts/generate_waterbirds.py`` in kohpangwei/group_DRO. That script sets no seed and
takes files in the order of the file system, so no one can draw the published sets again. Here every choice follows from
the seed and from names (``spurbench.data.draws``). With ``like=`` the choices are read from a published
``metadata.csv``, and its images come out again as far as Pillow and its JPEG library agree with those of the time.
"""

from spurbench.composites.generate import find_cub_and_masks, generate_waterbirds

__all__ = ["find_cub_and_masks", "generate_waterbirds"]
