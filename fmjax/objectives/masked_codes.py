"""Masked diffusion of an image's codes, which a first stage makes of it (MaskGIT, Chang et al. 2022,
https://arxiv.org/abs/2202.04200)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp

from fmjax.data.captions import CaptionRows
from fmjax.diffusion import PROCESSES
from fmjax.diffusion.masked import check_of_tokens
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_positive, check_rate
from fmjax.layers.modulation import NO_LABEL
from fmjax.objectives.base import check_labels, per_row
from fmjax.objectives.cross_entropy import check_chunk_size
from fmjax.objectives.first_stage import FirstStaged, codes_of, num_codes_of
from fmjax.objectives.masked_diffusion import hidden_sums


@dataclasses.dataclass(frozen=True)
class MaskedCodes(FirstStaged):
    """Cross-entropy of the codes of an image that are hidden at a time t, given its class or caption.

    The module takes `codes` and the condition, such as `fmjax.models.maskgit.MaskGIT`. The codes are those of the first
    stage, which encodes the batch in the step and is not trained.

    Attributes:
      process: how many are hidden at t; the paper's has {"name": "masked", "schedule": "cosine"}.
      weighting: "simple": the mean over the hidden ones (the paper's eq. 2); "elbo": the bound on the negative
        log-likelihood of the codes, nats a code.
      stratified: times are spread over the rows of a batch, not drawn independently.
      label_dropout: share of the rows that learn without their class or caption.
      sample_prompts: classes or captions that `samples/` shows; none: each class, or images of no caption.
      sample_copies: how often each of them.
      chunk_size: places of each row whose logits exist at the same time; none: by the platform.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size", "sample_prompts", "sample_copies")
    ROWS_APART: ClassVar[bool] = True
    makes: ClassVar[str] = "image"
    generator: ClassVar[str] = "unmasked_images"

    process: Annotated[dict, PROCESSES] = "masked"
    weighting: Literal["elbo", "simple"] = "simple"
    stratified: bool = True
    label_dropout: float = 0.1
    sample_prompts: tuple[int | str, ...] = ()
    sample_copies: int = 8
    chunk_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "process", check_of_tokens(self.process, "masked_codes"))
        check_chunk_size(self.chunk_size)
        check_positive(**{"objective.sample_copies": self.sample_copies})
        check_rate("objective.label_dropout", self.label_dropout)

    def inputs(self, batch) -> dict:
        """What the module is initialised with; of codes one place, as their number is the first stage's."""
        codes = jax.ShapeDtypeStruct((batch["images"].shape[0], 1), jnp.int32)
        return {"codes": codes} | self._condition(batch)

    def _condition(self, batch) -> dict:
        if "tokens" in batch:
            return {"source_tokens": batch["tokens"], "source_segment_ids": batch["segment_ids"]}
        return {"classes": batch["labels"]} if "labels" in batch else {}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, models) -> dict:
        """Sums over the batch: "loss", and when not training "accuracy" of the likeliest code where one is hidden.

        batch: images float32 [B, H, W, C], loss_weights float32 [B]; tokens and segment_ids int32 [B, T] or labels
        int32 [B].
        """
        targets = codes_of(models["first_stage"], batch["images"])
        counted = jnp.broadcast_to(batch["loss_weights"][:, None], targets.shape)
        condition = self._condition(batch)
        if train:
            drop = lambda key: jax.random.bernoulli(jax.random.fold_in(key, 2), self.label_dropout)
            condition = without_condition(condition, per_row(drop, batch["keys"]))
        rngs = {"dropout": key} if train and key is not None else None

        def features(codes):
            told = {"codes": codes} | condition
            return apply_fn({"params": params}, **told, train=train, rngs=rngs, method="features")

        mask_id = num_codes_of(models["first_stage"])
        return hidden_sums(self, features, targets, counted, batch, mask_id, train)

    def check(self, module, data) -> None:
        """Raises ConfigError for data without images, another module, or prompts that it cannot read."""
        row = data.train[0]
        if "images" not in row:
            raise ConfigError(f"objective masked_codes reads images, and rows of these data have {', '.join(row)}")
        if not all(hasattr(module, name) for name in ("features", "num_codes", "num_places")):
            raise ConfigError(
                f"objective masked_codes needs a module of codes with features(codes, ...), num_codes and num_places, "
                f"which {type(module).__name__} is not; take model.name = 'maskgit'"
            )
        captions = data.tokenizer is not None and "tokens" in row
        if not captions:
            check_labels(module, data, low=NO_LABEL)
        for prompt in self.sample_prompts:
            try:
                if captions:
                    CaptionRows(data.tokenizer, module.max_length, "error", "model.max_length")(str(prompt))
                else:
                    data.codecs["label"].encode(prompt)
            except (KeyError, DataError) as error:
                reason = "the data have no codec for 'label'" if isinstance(error, KeyError) else error
                raise ConfigError(f"objective.sample_prompts has {prompt!r}: {reason}") from None

    def sample(self, model, key) -> list:
        """Images, a row of `sample_copies` for each prompt."""
        seed = int(jax.random.bits(key) >> 1)
        return model.generate(self.sample_prompts or None, num_samples=self.sample_copies, seed=seed)


def without_condition(condition: dict, dropped) -> dict:
    """The module's condition with none in the rows where `dropped`, bool [B]."""
    if "classes" in condition:
        return condition | {"classes": jnp.where(dropped, NO_LABEL, condition["classes"])}
    if "source_segment_ids" in condition:
        segments = condition["source_segment_ids"]
        return condition | {"source_segment_ids": jnp.where(dropped[:, None], 0, segments)}
    return condition
