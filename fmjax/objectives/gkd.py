"""On-policy distillation: a student learns a teacher's distributions over replies that it drew itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.objectives.drawn import Drawn
from fmjax.objectives.teacher import WithTeacher


@dataclasses.dataclass(frozen=True)
class GKD(WithTeacher, Drawn):
    """Generalised knowledge distillation (Agarwal et al. 2024, https://arxiv.org/abs/2306.13649): the mean over all
    tokens of a batch's replies of a divergence between the teacher's and the student's whole distributions. (The paper
    has the mean over replies of the mean over their tokens; here a long reply counts for more, as in TRL.) No gradient
    goes through what was drawn.

    Attributes:
      lam: the share of prompts whose replies the student draws; the others have the data's (`data.reply_length`).
      num_samples: replies to a prompt.
      temperature: that replies are drawn at, and both distributions are taken at.
    """

    beta: float = 0.5
    lam: float = 1.0
    num_samples: int = 1

    def __post_init__(self):
        super().__post_init__()
        if not self.teacher:
            raise ConfigError("objective.teacher is empty: give the path of a run, a published folder or a hub id")
        if not 0 <= self.lam <= 1:
            raise ConfigError(f"objective.lam = {self.lam}: expected 0 to 1")

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
        found = self.divergence.total(teacher, student, mask, self.chunk_size)
        replies = jnp.float32(len(mask))
        tokens = mask.sum()
        return {
            "loss": (found, tokens), "reply_tokens": (tokens, replies),
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
