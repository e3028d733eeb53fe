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
    """Next tokens; the divergence is over positions weighted by `loss_weights`."""

    def can_sample(self, module, data) -> bool:
        """See `TextSamples`."""
        return super().can_sample(getattr(module, getattr(module, "SERVES", ""), module), data)

    def sample(self, model, key) -> list[str]:
        """See `TextSamples`."""
        return super().sample(model.served, key)


@dataclasses.dataclass(frozen=True)
class MaskedLMDistillation(TaughtTokens, MaskedLM):
    """Masked tokens; the divergence is at the masked positions alone. (DistilBERT's code has it at all of them unless
    asked; its paper does not say.)"""


@dataclasses.dataclass(frozen=True)
class ClassificationDistillation(TaughtClasses, Classification):
    """One label an example: the teacher's distribution over the classes beside it."""


@dataclasses.dataclass(frozen=True)
class ContrastiveDistillation(Taught, Contrastive):
    """Images and texts: of each image the teacher's distribution over the batch's texts, and of each text that over its
    images, half of either (the affinities of TinyCLIP, Wu et al. 2023, https://arxiv.org/abs/2309.12314).

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
