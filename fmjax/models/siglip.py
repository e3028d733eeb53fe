"""SigLIP (Zhai et al. 2023): images and texts in one space, learned by telling of each pair whether it fits."""

import math

from fmjax.models.dual_encoder import DualEncoder


class SigLIP(DualEncoder):
    """A SigLIP: cosines times a learned scale plus a learned bias are the logits of a pair.

    The published image tower is "vit" with {"use_class_token": False, "pooling": "attention", "activation":
    "gelu_tanh", "num_classes": 0}; the text tower is "text_tower" with {"causal": False, "activation": "gelu_tanh",
    "max_length": 64, "pad_id": 1, "projection_size": ...}. Both have one width; there are no other projections.

    Attributes:
      projection_size: None, or that of a space into which both towers' vectors are projected, without bias.
      initial_scale: logarithm of the scale at the start: ln 10 (section 3.2).
      initial_bias: the bias at the start: most pairs do not belong together.
    """

    projection_size: int | None = None
    initial_scale: float = math.log(10)
    initial_bias: float = -10.0
