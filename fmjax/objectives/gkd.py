"""On-policy distillation: a student learns a teacher's distributions over replies that it drew itself."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice
from fmjax.layers.embed import output_logits
from fmjax.objectives.base import need_features
from fmjax.objectives.cross_entropy import default_chunk_size
from fmjax.objectives.drawn import Drawn

FORMS = ("continuous", "paper")


@dataclasses.dataclass(frozen=True)
class GKD(Drawn):
    """Generalised knowledge distillation (Agarwal et al. 2024, https://arxiv.org/abs/2306.13649): the mean over all
    tokens of a batch's replies of a divergence between the teacher's and the student's whole distributions. (The paper
    has the mean over replies of the mean over their tokens; here a long reply counts for more, as in TRL.) No gradient
    goes through what was drawn.

    Attributes:
      teacher: a run, a published folder or a hub id, with the student's vocabulary. It is not saved with the run.
      beta: of the divergence: 0 is KL(teacher || student), 1 is KL(student || teacher).
      form: with the mixture M = (1 - beta) student + beta teacher: "continuous", (1 - beta) KL(teacher || M) + beta
        KL(student || M), which has these two at its ends; "paper", beta KL(teacher || M') + (1 - beta) KL(student ||
        M') with M' = beta teacher + (1 - beta) student, which vanishes there, so that 0 and 1 are refused.
      lam: the share of prompts whose replies the student draws; the others have the data's (`data.reply_length`).
      num_samples: replies to a prompt.
      temperature: that replies are drawn at, and both distributions are taken at.
    """

    CUT_ALIKE: ClassVar[tuple[str, ...]] = ("teacher",)

    teacher: str = ""
    beta: float = 0.5
    form: str = "continuous"
    lam: float = 1.0
    num_samples: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.form", self.form, FORMS)
        if not self.teacher:
            raise ConfigError("objective.teacher is empty: give the path of a run, a published folder or a hub id")
        for name in ("beta", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name} = {getattr(self, name)}: expected 0 to 1")
        if self.form == "paper" and self.beta in (0, 1):
            raise ConfigError(
                f"objective.beta = {self.beta} with objective.form = 'paper' is a divergence of 0 everywhere; take "
                "'continuous', which is a KL there"
            )

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
                f"of {module.vocab_size}; they have to be cut by the same tokenizer"
            )

    def further(self, prompt, length: int) -> dict[str, tuple]:
        """`own` float32 []: 1 where the student drew the reply."""
        return {"own": ((), jnp.float32)}

    def collect(self, model, prompts, key) -> dict[str, np.ndarray]:
        """Replies to the prompts, the student's own or the data's."""
        choosing, drawing = jax.random.split(key)
        count = len(prompts["tokens"])
        own = np.asarray(jax.random.uniform(choosing, (count,))) < self.lam
        seed = int(jax.random.bits(drawing) >> 1)
        drawn = iter(())
        if own.any():
            asked = {name: prompts[name][own] for name in ("tokens", "lengths")}
            drawn = iter(self.draw(model, asked, self.num_samples, self.temperature, seed))
        replies = []
        for index in range(count):
            given = None if own[index] else Given.of(prompts, index)
            replies += [next(drawn) if given is None else given for _ in range(self.num_samples)]
        return self.laid(prompts, replies) | {"own": np.repeat(own, self.num_samples).astype(np.float32)}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, models):
        """Sums over the batch: "loss", a token of all replies; "reply_tokens" and "own", a reply."""
        taught = lambda **given: models["teacher"].apply(**given, method="features")
        student, teacher = (features(**self.inputs(batch)) for features in (self.policy(apply_fn, params), taught))
        mask = batch["loss_weights"]
        found = divergences(teacher, student, self.beta, self.form, self.temperature, self.chunk_size)
        replies = jnp.float32(len(mask))
        tokens = mask.sum()
        return {
            "loss": (jnp.sum(found * mask), tokens), "reply_tokens": (tokens, replies),
            "own": (batch["own"].sum(), replies),
        }  # fmt: skip

    def check(self, module, data) -> None:
        """As of `Drawn`; ConfigError also where the data are to have replies and have none."""
        super().check(module, data)
        row = data.train[0]
        if self.lam < 1 and "replies" not in row:
            raise ConfigError(
                f"objective.lam = {self.lam} takes some replies from the data, and these have none: take data.name = "
                "'chat_prompts' with data.reply_length, or objective.lam = 1"
            )
        if self.lam < 1 and row["replies"].shape[-1] > self.max_new_tokens:
            raise ConfigError(
                f"data.reply_length = {row['replies'].shape[-1]} is more than objective.max_new_tokens = "
                f"{self.max_new_tokens}, which rows have room for"
            )


@dataclasses.dataclass(frozen=True)
class Given:
    """A reply of the data; nobody drew it, so that its log-probabilities are 0 here."""

    tokens: list[int]
    logprobs: list[float]

    @classmethod
    def of(cls, prompts, index: int) -> "Given":
        tokens = prompts["replies"][index][: prompts["reply_lengths"][index]].tolist()
        return cls(tokens, [0.0] * len(tokens))


def divergences(teacher, student, beta: float, form: str, temperature: float, chunk_size: int | None) -> jax.Array:
    """float32 [B, T]: of the softmax of both models' logits / temperature, exact over the vocabulary.

    A chunk of positions at a time, whose logits are computed again in the backward pass.

    Args:
      teacher, student: (hidden [B, T, D], head) of each.
      beta, form: see `GKD`.
    """
    rows, length = student[0].shape[:2]
    size = min(chunk_size or default_chunk_size(rows, length), length)
    missing = -length % size

    def chunk(states):
        logs = [
            jax.nn.log_softmax(output_logits(x, head) / temperature)
            for x, head in zip(states, (teacher[1], student[1]))
        ]
        return jensen_shannon(*logs, beta, form)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, missing), (0, 0)])
        return jnp.swapaxes(x.reshape(rows, -1, size, x.shape[-1]), 0, 1)

    found = jax.lax.map(jax.checkpoint(chunk), (cut(teacher[0]), cut(student[0])))
    return jnp.swapaxes(found, 0, 1).reshape(rows, -1)[:, :length]


def jensen_shannon(teacher, student, beta: float, form: str = "continuous") -> jax.Array:
    """The divergence [...] of log-probabilities [..., V]; see `GKD`."""
    kl = lambda log_p, log_q: jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    if beta in (0, 1):  # the mixture is one of the two, and the logarithm of the other's share is -inf
        return kl(student, teacher) if beta else kl(teacher, student)
    mixed = jnp.logaddexp(jnp.log1p(-beta) + student, jnp.log(beta) + teacher)
    of_teacher = 1 - beta if form == "continuous" else beta
    return of_teacher * kl(teacher, mixed) + (1 - of_teacher) * kl(student, mixed)
