"""Distillation: next tokens learnt from a teacher's distributions beside the data's (Hinton et al. 2015,
https://arxiv.org/abs/1503.02531)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.embed import output_logits
from fmjax.objectives.base import need_features
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.text_samples import TextSamples


@dataclasses.dataclass(frozen=True)
class Distillation(CausalLM):
    """(1 - weight) CE(targets) + weight T^2 KL(teacher || student), over positions weighted by `loss_weights`.

    Both distributions of the KL are the softmax of logits divided by the temperature T; T^2 keeps its gradient's size
    beside that of the cross-entropy, whatever T is (section 2.1 of the paper). Logits of all positions exist at once.

    Attributes:
      teacher: a run, a published folder or a hub id, with the student's vocabulary. It is not saved with the run.
      weight: share of the teacher in the loss, from 0 to 1.
      temperature: T.
      z_loss, chunk_size: of `CausalLM`; neither is used here.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = TextSamples.RESUME_FREE

    teacher: str = ""
    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        if not self.teacher:
            raise ConfigError("objective.teacher is empty: give the path of a run, a published folder or a hub id")
        if not 0.0 <= self.weight <= 1.0:
            raise ConfigError(f"objective.weight = {self.weight} must lie between 0 and 1")
        if not self.temperature > 0.0:
            raise ConfigError(f"objective.temperature = {self.temperature} must be positive")
        if self.z_loss or self.chunk_size is not None:
            raise ConfigError("objective.z_loss and objective.chunk_size are not for distillation; leave them out")

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return {"teacher": self.teacher}

    def check_models(self, module, models) -> None:
        """Raises ConfigError where the teacher gives no logits for texts, or has another vocabulary."""
        teacher = models["teacher"].module
        need_features(self, teacher)
        if teacher.vocab_size != module.vocab_size:
            raise ConfigError(
                f"objective.teacher = {self.teacher!r} has a vocabulary of {teacher.vocab_size} tokens, the model one "
                f"of {module.vocab_size}; give the data the teacher's tokenizer with data.tokenizer={self.teacher}"
            )

    def __call__(self, apply_fn, params, batch: dict, key, train: bool, *, models) -> dict:
        """Sums over the batch: when training "loss" and its parts "cross_entropy" and "kl"; else "loss", which is then
        the cross-entropy alone, and "accuracy"."""
        rngs = {"dropout": key} if train and key is not None else None
        inputs, weights = self.inputs(batch), batch["loss_weights"]
        hidden = apply_fn({"params": params}, **inputs, train=train, rngs=rngs, method="features")
        logits = output_logits(*hidden)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1)[..., 0]
        entropy, total = (losses * weights).sum(), weights.sum()
        if not train:
            correct = jnp.argmax(logits, axis=-1) == batch["targets"]
            return {"loss": (entropy, total), "accuracy": ((correct * weights).sum(), total)}
        taught = output_logits(*models["teacher"].apply(**inputs, method="features"))
        kl = (divergence(taught, logits, self.temperature) * weights).sum()
        loss = (1.0 - self.weight) * entropy + self.weight * self.temperature**2 * kl
        return {"loss": (loss, total), "cross_entropy": (entropy, total), "kl": (kl, total)}


def divergence(teacher, student, temperature: float) -> jax.Array:
    """KL(teacher || student) [...] of the softmax of logits [..., V] divided by the temperature."""
    log_p, log_q = (jax.nn.log_softmax(logits / temperature) for logits in (teacher, student))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
