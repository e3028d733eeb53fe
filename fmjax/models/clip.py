"""CLIP (Radford et al. 2021): images and texts in one space, learned by telling which of a batch belong together."""

import math

from fmjax.models.dual_encoder import DualEncoder


class CLIP(DualEncoder):
    """A CLIP; with the defaults of "vit" and "text_tower" it is of the size of ViT-B/16. Published image towers have
    {"patch_bias": False, "embedding_norm": True, "norm_eps": 1e-5, "num_classes": 0}, other than the defaults of "vit".

    Similarities are cosines times a learned scale, which starts at 1 / 0.07 (section 2.4); the objective "contrastive"
    keeps it at most 100. OpenAI's weights have the activation "quick_gelu" in both towers, open_clip's "gelu".

    Attributes:
      projection_size: of the space.
      initial_scale: logarithm of the scale at the start.
    """

    projection_size: int = 512
    initial_scale: float = math.log(1 / 0.07)
    initial_bias = None
