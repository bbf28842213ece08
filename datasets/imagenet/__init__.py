"""Subsets of ImageNet: ImageNet-100, Hard ImageNet, ImageWoof in three sizes, and ImageNet-9 on other backgrounds.

Each has a file of its own here, which says what it follows. They share the layout of ILSVRC-2012 (``ilsvrc``), its
boxes (``boxes``) and the tables of classes (``classes``).
"""

from spurbench.datasets.imagenet import hardimagenet, imagenet9, imagenet100, imagewoof

__all__ = ["DATASETS"]

DATASETS = {
    imagenet100.INFO.name: imagenet100.SPEC,
    hardimagenet.INFO.name: hardimagenet.SPEC,
    **imagewoof.SPECS,
    **imagenet9.SPECS,
}
