"""What a diffusion model is asked for: classes or captions, as arrays of a row."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmjax.errors import InputError
from fmjax.inference.prompts import caption_row
from fmjax.layers.modulation import NO_LABEL


def prompts_of(model):
    """`Captions` or `Labels`, by what the model was trained with."""
    told = getattr(model.objective, "condition", None)
    return (Captions if told in ("caption", "states") else Labels)(model)


class Labels:
    """Numbers or names of classes; None is no class.

    Attributes:
      known: whether the model takes any.
    """

    def __init__(self, model):
        self.model = model
        self.codec = None if getattr(model.objective, "condition", None) == "none" else model.codecs.get("label")
        self.known = self.codec is not None

    @staticmethod
    def lacks(model) -> str | None:
        """What a model lacks to be asked."""
        return None

    @property
    def can_do_without(self) -> bool:
        """Whether it knows what to say without a class."""
        return getattr(self.model.module, "null_class", True)

    def default(self) -> Sequence[Any]:
        """Every class; a model without classes makes one value of none."""
        return range(self.codec.num_classes) if self.known else [None]

    def arrays(self, prompts: Sequence[Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(int32 [N], a number of each that noise is drawn with, {"labels": int32 [N]}). Raises InputError."""
        labels = np.array([self._label(prompt) for prompt in prompts], np.int32)
        return labels, {"labels": labels}

    def _label(self, prompt) -> int:
        if prompt is None:
            if not self.can_do_without:
                raise InputError(f"{self.model} has no row for no label; give a label as prompt")
            return NO_LABEL
        if not self.known:
            raise InputError(f"{self.model} takes no prompts, got {prompt!r}")
        return int(self.codec.encode(prompt)["labels"])


class Captions:
    """Texts; None is no caption (`objective.null_tokens`)."""

    known = True
    can_do_without = True

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model) -> str | None:
        """What a model lacks to be asked."""
        if model.objective.condition == "states" and model.objective.text is None:
            return "its captions were encoded before: objective.text names no encoder of others"
        return None if model.tokenizer is not None else "it has no tokenizer for its captions"

    def default(self) -> Sequence[Any]:
        """The captions that its run showed in `samples/`. Raises InputError without any."""
        if shown := self.model.objective.sample_prompts:
            return shown
        raise InputError(f"{self.model} draws what it is told: give a prompt, 'a red circle' say")

    def arrays(self, prompts: Sequence[Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(int32 [N], a number of each that noise is drawn with, {"tokens", "segment_ids": int32 [N, T]}).

        Raises InputError for what is no text, is empty, or has more tokens than the model's encoder reads.
        """
        length = self.length
        made = [self._row(prompt, length) for prompt in prompts]
        numbers = [-1 if prompt is None else _number(prompt) for prompt in prompts]
        return np.array(numbers, np.int32), {name: np.stack([row[name] for row in made]) for name in made[0]}

    @property
    def length(self) -> int:
        """Tokens that the encoder reads: those of its rows of training, where it says nothing of it."""
        model = self.model
        encoder = model.opened("text").module if model.objective.text is not None else model.module.text
        length = getattr(encoder, "max_length", None)
        return model.config["data"]["sequence_length"] if length is None else length

    def _row(self, prompt, length: int) -> dict[str, np.ndarray]:
        if prompt is not None:
            return caption_row(self.model, prompt, length)
        if self.model.objective.drops_states:
            raise InputError(f"{self.model} was told no states of a caption, where it had none: give a caption")
        return self.model.objective.without({"tokens": np.zeros((1, length), np.int32)})


def _number(prompt: str) -> int:
    """31 bits that change with a text."""
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest(), "big") >> 1
