"""Images that fit their prompts best, by a model of images and texts in one space (Ramesh et al. 2021, section 2.6)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fmjax.errors import InputError
from fmjax.inference import kinds, pairs, prompts, values


def check_scorer(scorer) -> None:
    """Raises InputError for a model that has no vectors of both images and texts."""
    if not kinds.has_two_towers(scorer.module):
        raise InputError(
            f"{scorer} has no vectors of images and texts to rank by; take a run such as that of configs/clip_shapes.py"
        )
    if (lacked := prompts.lacks_tokenizer(scorer) or values.lacks_reading(scorer)) is not None:
        raise InputError(f"{scorer} cannot rank images: {lacked}")


def best(scorer, captions: Sequence[str], images: Sequence[Any], num_samples: int, keep: int) -> list[int]:
    """Indices of the `keep` images of each caption whose vectors are nearest to the caption's, nearest first.

    Args:
      scorer: a `fmjax.inference.model.Model` of pairs, such as a CLIP's.
      images: `num_samples` of each caption, in the order of the captions; of another size than the scorer's they are
        scaled.

    Raises InputError for a scorer that is none, captions that are no texts, or numbers that do not fit.
    """
    check_scorer(scorer)
    if not 1 <= keep <= num_samples:
        raise InputError(f"keep = {keep}: of {num_samples} images of each caption, 1 to {num_samples} can be kept")
    if len(images) != len(captions) * num_samples:
        raise InputError(f"{len(images)} images are not {num_samples} of each of {len(captions)} captions")
    texts, vectors = pairs.embed(scorer, texts=list(captions)), pairs.embed(scorer, images=list(images))
    cosines = np.einsum("pe,pne->pn", texts, vectors.reshape(len(texts), num_samples, -1))
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :keep]
    return [int(index) for index in (order + num_samples * np.arange(len(texts))[:, None]).reshape(-1)]
