"""Augmentation: random changes of training images, a pure function of (seed, index).

What is done to every image (its size, the statistics it is normalised with) is the codec's, which is kept with the run;
what is random, and only for training, is here.
"""

from fmjax.registry import Registry

AUGMENTATIONS = Registry(
    "augmentation",
    {"standard": "fmjax.data.augmentation.standard:Standard"},
    contract="fmjax.data.augmentation.base:Augmentation",
)
