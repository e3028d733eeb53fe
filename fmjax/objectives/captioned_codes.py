"""A caption and the codes of its image, one after the other (Ramesh et al. 2021, https://arxiv.org/abs/2102.12092,
section 2.2)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax.data.captions import CaptionRows
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_positive, check_rate
from fmjax.objectives.base import per_row
from fmjax.objectives.cross_entropy import check_chunk_size, cross_entropy
from fmjax.objectives.first_stage import FirstStaged, codes_of


@dataclasses.dataclass(frozen=True)
class CaptionedCodes(FirstStaged):
    """Cross-entropy of a caption's tokens and of its image's codes, each a mean over its own: 1 - `image_share` times
    the one and `image_share` times the other.

    The module takes `tokens`, `segment_ids` and `codes`, such as `fmjax.models.dalle.Dalle`. The codes are those of the
    first stage, which encodes the batch in the step and is not trained.

    Attributes:
      image_share: 7/8 in the paper.
      label_dropout: share of the rows that learn their codes without their caption, which guidance needs; none in the
        paper.
      sample_prompts: captions that `samples/` shows.
      sample_copies: how often each of them.
      chunk_size: places of each row whose logits exist at the same time; none: by the platform.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size", "sample_prompts", "sample_copies")
    ROWS_APART: ClassVar[bool] = True
    makes: ClassVar[str] = "image"
    generator: ClassVar[str] = "drawn_codes"

    image_share: float = 7 / 8
    label_dropout: float = 0.0
    sample_prompts: tuple[str, ...] = ()
    sample_copies: int = 8
    chunk_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_chunk_size(self.chunk_size)
        check_rate("objective.label_dropout", self.label_dropout)
        check_positive(**{"objective.sample_copies": self.sample_copies})
        if not 0 <= self.image_share <= 1:
            raise ConfigError(f"objective.image_share = {self.image_share} must be from 0 to 1")

    def inputs(self, batch) -> dict:
        """What the module is initialised with; of codes one place, as their number is the first stage's."""
        codes = jax.ShapeDtypeStruct((batch["images"].shape[0], 1), jnp.int32)
        return {"tokens": batch["tokens"], "segment_ids": batch["segment_ids"], "codes": codes}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, models) -> dict:
        """Sums over the batch, rows by `loss_weights` [B]: "loss"; "text", nats a token; "image", nats a code; and when
        not training "accuracy" of the likeliest code. Rows without their caption have no tokens to learn.

        batch: images float32 [B, H, W, C], tokens and segment_ids int32 [B, T], loss_weights float32 [B].
        """
        codes = codes_of(models["first_stage"], batch["images"])
        rngs = {"dropout": key} if train and key is not None else None
        if train and self.label_dropout:
            drop = lambda key: jax.random.bernoulli(jax.random.fold_in(key, 2), self.label_dropout)
            dropped = per_row(drop, batch["keys"])[:, None]
            batch = batch | {"segment_ids": jnp.where(dropped, 0, batch["segment_ids"])}
        told = self.inputs(batch) | {"codes": codes}
        text, image = apply_fn({"params": params}, **told, train=train, rngs=rngs, method="features")
        rows = batch["loss_weights"][:, None]
        options = dict(chunk_size=self.chunk_size, count_correct=not train)
        counted = rows * (batch["segment_ids"] > 0)
        texts, weight = cross_entropy(*text, batch["tokens"], counted, **options), counted.sum()
        counted = jnp.broadcast_to(rows, codes.shape)
        images, places = cross_entropy(*image, codes, counted, **options), counted.sum()
        sums = {"text": (texts["loss"], weight), "image": (images["loss"], places)}
        share = self.image_share
        sums["loss"] = (((1 - share) * texts["loss"], weight), (share * images["loss"], places))
        return sums if train else sums | {"accuracy": (images["correct"], places)}

    def check(self, module, data) -> None:
        """Raises ConfigError for data without images and captions, another module, or prompts that it cannot read."""
        row = data.train[0]
        if not {"images", "tokens", "segment_ids"} <= set(row):
            raise ConfigError(
                f"objective captioned_codes reads images with captions, and rows of these data have {', '.join(row)}"
            )
        if not all(hasattr(module, name) for name in ("features", "first_code", "next_code")):
            raise ConfigError(
                f"objective captioned_codes needs a module of captions and codes, which {type(module).__name__} is "
                "not; take model.name = 'dalle'"
            )
        for prompt in self.sample_prompts:
            try:
                CaptionRows(data.tokenizer, module.max_length, "error", "model.max_length")(prompt)
            except DataError as error:
                raise ConfigError(f"objective.sample_prompts has {prompt!r}: {error}") from None

    def can_sample(self, module, data) -> bool:
        """Whether there is something to show."""
        return bool(self.sample_prompts)

    def sample(self, model, key) -> list:
        """Images, a row of `sample_copies` for each prompt."""
        seed = int(jax.random.bits(key) >> 1)
        return model.generate(list(self.sample_prompts), num_samples=self.sample_copies, seed=seed)
