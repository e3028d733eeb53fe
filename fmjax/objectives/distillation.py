"""Distillation: what a teacher says learnt beside what the data say, of next tokens, masked tokens, classes and pairs
(Hinton et al. 2015, https://arxiv.org/abs/1503.02531)."""

import dataclasses

import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.classification import Classification
from fmjax.objectives.contrastive import LEAST, Contrastive
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.taught import Taught, TaughtClasses, TaughtTokens


@dataclasses.dataclass(frozen=True)
class Distillation(TaughtTokens, CausalLM):
    """(1 - weight) CE(next tokens) + weight T^2 D(teacher, student), over positions weighted by `loss_weights`, and the
    losses of `matches`; see `Taught`."""

    def can_sample(self, module, data) -> bool:
        """See `TextSamples`."""
        return super().can_sample(getattr(module, getattr(module, "SERVES", ""), module), data)

    def sample(self, model, key) -> list[str]:
        """See `TextSamples`."""
        return super().sample(model.served, key)


@dataclasses.dataclass(frozen=True)
class MaskedLMDistillation(TaughtTokens, MaskedLM):
    """(1 - weight) CE(masked tokens) + weight T^2 D(teacher, student), both at the masked positions (DistilBERT's code
    has D at all tokens unless asked), and the losses of `matches`, at all tokens of rows with some masked; see
    `Taught`."""

    def place_weights(self, batch):
        """[B], 1 for a row of which something is predicted."""
        return (batch["loss_weights"].max(axis=1) > 0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class ClassificationDistillation(TaughtClasses, Classification):
    """(1 - weight) CE(labels) + weight T^2 D(teacher, student) over the classes, and the losses of `matches`; see
    `Taught`."""


@dataclasses.dataclass(frozen=True)
class ContrastiveDistillation(Taught, Contrastive):
    """(1 - weight) contrast of images and texts + weight T^2 D(teacher, student), of each image's distribution over the
    batch's texts and of each text's over its images, half of either (the affinities of TinyCLIP, Wu et al. 2023,
    https://arxiv.org/abs/2309.12314).

    Both models' vectors may be of other lengths; each has its own scale.
    """

    def said(self, output, batch):
        """(logits [B, B] of images and texts, with rows of no weight left out; weights of the rows)."""
        logits = output["scale"] * output["image"] @ output["text"].T
        there = batch["loss_weights"] > 0
        return jnp.where(there[:, None] & there, logits, LEAST), batch["loss_weights"]

    def between(self, teacher, student, weights):
        """Of the rows."""
        each = [self.divergence.of(*pair) for pair in ((teacher, student), (teacher.T, student.T))]
        return jnp.sum(jnp.where(weights > 0, 0.5 * (each[0] + each[1]), 0.0) * weights)

    def kept(self, said, count: int):
        """Rows have no distributions of their own."""
        raise ConfigError(
            "objective.name = 'contrastive_distillation' compares the rows of a batch with one another, so that "
            "nothing can be kept of a row: name objective.teacher"
        )

    def check_teacher(self, module, teacher) -> None:
        """Raises ConfigError for a teacher of something else than images and texts."""
        if not (hasattr(teacher, "encode_images") and hasattr(teacher, "encode_texts")):
            raise ConfigError(
                f"objective.teacher = {self.teacher!r} is a {type(teacher).__name__}; a teacher of images and texts is "
                "needed, such as a 'clip'"
            )
