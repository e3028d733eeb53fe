"""Florence (Yuan et al. 2021): images, texts and labels in one space."""

from fmjax.models.clip import CLIP


class Florence(CLIP):
    """A Florence: CLIP's two towers and learned scale, with a hierarchical image tower and several positives.

    The image tower is "coswin" (windowed attention with convolutional embeddings, pooled by the mean) with
    {"num_classes": 0}, the text tower "text_tower", each with a projection (section 2.3). It is trained by the
    objective "contrastive" with positives = "labels", in which all pairs of one label are positives of one another in
    both directions (UniCL, Yang et al. 2022). The paper adds the two directions, where CLIP, and the objective, take
    their mean: half the loss, with its minimum in the same place.

    Attributes:
      projection_size: of the space.
      initial_scale: logarithm of the scale at the start.
    """
