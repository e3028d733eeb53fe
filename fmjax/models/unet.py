"""The U-Net of diffusion: DDPM's (Ho et al. 2020), ADM's (Dhariwal & Nichol 2021), and the text-conditional one of
latent diffusion (Rombach et al. 2022)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive, check_rate
from fmjax.layers.conv import Conv, conv_flops
from fmjax.layers.flops import transformer_flops
from fmjax.layers.modulation import LabelEmbedding, TimeEmbedding
from fmjax.layers.norm import GroupNorm
from fmjax.layers.tap import tap
from fmjax.layers.unet_blocks import (
    TIME_SHIFTS,
    Double,
    Halve,
    PlaceAttention,
    PlaceTransformer,
    TimeBlock,
    place_config,
)
from fmjax.models.images import ImageModule

ATTENTION = ("none", "self", "cross")
MIDS = ("absent", *ATTENTION)
RESIZES = ("conv", "block")


@dataclasses.dataclass(frozen=True)
class Piece:
    """One layer of the net, in the order of computing.

    Attributes:
      name: of its parameters; levels are counted as each way passes them.
      kind: "block", "self", "cross", "halve" or "double".
      level: 0 for the image's own size, 1 for half of it, ...; that of its input.
      inputs, outputs: channels, those of a skip connection among the inputs.
      skip: "takes" what the last layer that "gives" gave.
    """

    name: str
    kind: str
    level: int
    inputs: int
    outputs: int
    skip: str = ""


class UNet(ImageModule):
    """What denoises an image; the defaults are DDPM's for CIFAR-10 without its image size and classes.

    On the way down each level has `num_blocks` residual blocks, each followed by attention where the level has it, and
    halves the image at its end, the last level excepted; on the way up one block more, the output of each layer on the
    way down joined to the channels of a block's input.

    Attributes:
      num_classes: of the labels; None until the data are known, 0 for none.
      out_channels: of what it returns; None is as many as the images have.
      widths: channels of each level.
      num_blocks: residual blocks of a level.
      attention: of each level: "none", "self" (attention over places) or "cross" (a Transformer over places that also
        attends to `memory`).
      mid: between the two ways: two blocks with this attention, or "absent".
      resize: how levels change size: "conv", a convolution, or "block", a residual block that resizes (ADM).
      head_dim: of "self" attention; None is one head.
      num_heads: of "cross", a number a level.
      num_layers: blocks of a Transformer of "cross", a number a level.
      memory_size: width of `memory`; 0 for a net without "cross".
      linear_projection: whether published files have the first and last product of a Transformer of "cross" as
        products, or else as convolutions 1x1, which compute the same.
      time_shift: how the time enters a block: "add" or "scale_shift" (ADM); see `TimeBlock`.
      frequency_shift, cosines_first: of the sinusoids of the time; DDPM has 1 and False.
      null_class: whether there is a row for no label, which guidance needs.
      padding: pixels on each side before a convolution that halves, 1; or "SAME", at the end alone (DDPM).
      norm_groups, norm_eps: of the group norms.
      mid_norm_groups: of the norm before the attention of `mid`; None is norm_groups, 0 for no norm.
      dropout: rate inside the residual blocks.
      dtype: dtype of the products.
    """

    num_classes: int | None = None
    out_channels: int | None = None
    widths: tuple[int, ...] = (128, 256, 256, 256)
    num_blocks: int = 2
    attention: tuple[str, ...] = ("none", "self", "none", "none")
    mid: str = "self"
    resize: str = "conv"
    head_dim: int | None = None
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    num_layers: tuple[int, ...] = (1, 1, 1, 1)
    memory_size: int = 0
    linear_projection: bool = True
    time_shift: str = "add"
    frequency_shift: float = 0.0
    cosines_first: bool = True
    null_class: bool = True
    padding: int | str = 1
    norm_groups: int = 32
    norm_eps: float = 1e-5
    mid_norm_groups: int | None = None
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_choice("model.mid", self.mid, MIDS)
        check_choice("model.resize", self.resize, RESIZES)
        check_choice("model.time_shift", self.time_shift, TIME_SHIFTS)
        check_rate("model.dropout", self.dropout)
        check_positive(num_blocks=self.num_blocks, **{f"widths[{i}]": width for i, width in enumerate(self.widths)})
        if self.padding not in (1, "SAME"):
            raise ConfigError(f"model.padding = {self.padding!r}; expected 1 or 'SAME'")
        for name in ("attention", "num_heads", "num_layers"):
            if len(getattr(self, name)) != len(self.widths) and (name == "attention" or "cross" in self._kinds):
                raise ConfigError(
                    f"model.{name} = {getattr(self, name)}: one a level, of which model.widths = {self.widths} has "
                    f"{len(self.widths)}"
                )
        for kind in self.attention:
            check_choice("model.attention", kind, ATTENTION)
        if ("cross" in self._kinds) != (self.memory_size > 0):
            raise ConfigError(
                f"model.memory_size = {self.memory_size}, with attention {self.attention} and mid {self.mid!r}: it is "
                "the width of what 'cross' attends to, and 0 without it"
            )
        for piece in self.pieces():
            if piece.kind == "self" and piece.outputs % (self.head_dim or 1):
                raise ConfigError(f"model.head_dim = {self.head_dim} does not divide {piece.outputs} channels")
            if piece.kind == "cross" and piece.outputs % self._heads(piece):
                raise ConfigError(
                    f"{piece.outputs} channels of level {piece.level} do not divide into {self._heads(piece)} heads; "
                    "change model.num_heads or model.widths"
                )
        size = self.image_size
        if size is not None and size % 2 ** (len(self.widths) - 1):
            raise ConfigError(
                f"model.widths = {self.widths}: images of {size}x{size} pixels cannot be halved {len(self.widths) - 1} "
                "times"
            )

    @property
    def _kinds(self) -> tuple[str, ...]:
        return (*self.attention, self.mid)

    @nn.nowrap
    def _heads(self, piece: Piece) -> int:
        if piece.kind == "cross":
            return self.num_heads[piece.level]
        return max(piece.outputs // (self.head_dim or piece.outputs), 1)

    @nn.nowrap
    def pieces(self) -> list[Piece]:
        """Every layer between the first convolution and the last norm, in order."""
        found, skips, width, last = [], [self.widths[0]], self.widths[0], len(self.widths) - 1

        def level(at: int, name: str, down: bool) -> None:
            nonlocal width
            for i in range(self.num_blocks + (not down)):
                inputs = width if down else width + skips.pop()
                width, kind = self.widths[at], self.attention[at]
                gives = "gives" if down else ""
                skip = "takes" if not down else gives if kind == "none" else ""
                found.append(Piece(f"{name}_block_{i}", "block", at, inputs, width, skip))
                if kind != "none":
                    found.append(Piece(f"{name}_attention_{i}", kind, at, width, width, gives))
                if down:
                    skips.append(width)

        for at in range(last + 1):
            level(at, f"down_{at}", True)
            if at < last:
                found.append(Piece(f"down_{at}_resize", "halve", at, width, width, "gives"))
                skips.append(width)
        if self.mid != "absent":
            found.append(Piece("mid_block_0", "block", last, width, width))
            if self.mid != "none":
                found.append(Piece("mid_attention_0", self.mid, last, width, width))
            found.append(Piece("mid_block_1", "block", last, width, width))
        for at in reversed(range(last + 1)):
            level(at, f"up_{last - at}", False)
            if at:
                found.append(Piece(f"up_{last - at}_resize", "double", at, width, width))
        return found

    @nn.compact
    def __call__(
        self, inputs, times, labels=None, memory=None, memory_mask=None, train: bool = False
    ) -> jax.Array:  # fmt: skip
        """What it predicts of noisy images, float32 [B, H, W, out_channels]; 0 at the start.

        Args:
          inputs: float32 [B, H, W, C].
          times: float32 [B], of which 1 counts as 1,000 steps.
          labels: int32 [B], `NO_LABEL` for none.
          memory: float32 [B, S, memory_size], such as a text's hidden states.
          memory_mask: int32 [B, S]: 1 where a token is, 0 for padding; None is 1 everywhere.

        Raises ConfigError where labels or a memory are missing.
        """
        self._check(inputs, labels, memory)
        condition = self._condition(times, labels)
        x = Conv(self.widths[0], 3, names=(None, "mlp"), dtype=self.dtype, name="start")(inputs)
        skips = [x]
        for piece in self.pieces():
            if piece.skip == "takes":
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = self._layer(piece, x, condition, memory, memory_mask, train)
            if piece.skip == "gives":
                skips.append(x)
        x = nn.silu(GroupNorm(self.norm_groups, self.norm_eps, name="last_norm")(tap(self, "last", x)))
        outputs = self.out_channels or inputs.shape[-1]
        return Conv(outputs, 3, names=("embed", None), zero=True, name="head")(x.astype(jnp.float32))

    @nn.nowrap
    def _layer(self, piece: Piece, x, condition, memory, memory_mask, train):
        norm = dict(groups=self.norm_groups, epsilon=self.norm_eps)
        block = dict(**norm, time_shift=self.time_shift, dropout=self.dropout, dtype=self.dtype, name=piece.name)
        if piece.kind == "block":
            return TimeBlock(piece.outputs, **block)(x, condition, train)
        if piece.kind == "self":
            if piece.name.startswith("mid") and self.mid_norm_groups is not None:
                norm["groups"] = self.mid_norm_groups
            return PlaceAttention(self._heads(piece), **norm, dtype=self.dtype, name=piece.name)(x)
        if piece.kind == "cross":
            layers = self.num_layers[piece.level]
            transformer = PlaceTransformer(
                self._heads(piece), layers, self.norm_groups, dtype=self.dtype, name=piece.name
            )
            return transformer(x, memory, memory_mask)
        if self.resize == "block":
            return TimeBlock(piece.outputs, resize=piece.kind, **block)(x, condition, train)
        if piece.kind == "halve":
            return Halve(self.padding, self.dtype, name=piece.name)(x)
        return Double(self.dtype, name=piece.name)(x)

    @nn.nowrap
    def _condition(self, times, labels) -> jax.Array:
        """[B, 4 * widths[0]] of a time and a label."""
        width = 4 * self.widths[0]
        condition = TimeEmbedding(
            width, self.widths[0], shift=self.frequency_shift, cosines_first=self.cosines_first, dtype=self.dtype,
            name="time",
        )(times)  # fmt: skip
        if self.num_classes:
            condition = condition + LabelEmbedding(self.num_classes, width, self.null_class, name="label")(labels)
        return condition

    @nn.nowrap
    def _check(self, inputs, labels, memory) -> None:
        if self.num_classes and labels is None:
            raise ConfigError(
                f"model.num_classes = {self.num_classes}, but there are no labels; set it to 0, or give data that have "
                "`labels`"
            )
        if self.memory_size and (memory is None or memory.shape[-1] != self.memory_size):
            given = "there is none" if memory is None else f"it has the shape {memory.shape}"
            raise ConfigError(f"model.memory_size = {self.memory_size} is the width of `memory`, but {given}")
        halvings = len(self.widths) - 1
        if any(side % 2**halvings for side in inputs.shape[1:3]):
            raise ConfigError(f"images of {inputs.shape[1:3]} pixels cannot be halved {halvings} times")

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        side = self.image_size or 2 ** (len(self.widths) - 1)
        inputs = jax.ShapeDtypeStruct((1, side, side, self.num_channels), jnp.float32)
        found = {"inputs": inputs, "times": jax.ShapeDtypeStruct((1,), jnp.float32)}
        found |= {"labels": jax.ShapeDtypeStruct((1,), jnp.int32)} if self.num_classes else {}
        memory = jax.ShapeDtypeStruct((1, 1, self.memory_size), jnp.float32)
        return found | ({"memory": memory} if self.memory_size else {})

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        length = shapes.get("memory", (1,))[0] if self.memory_size else 0
        width, size = 4 * self.widths[0], self.image_size
        total = conv_flops(size, 3, self.num_channels, self.widths[0], first=True)
        total += conv_flops(size, 3, self.widths[0], self.out_channels or self.num_channels)
        total += 6.0 * width * (self.widths[0] + width)
        return total + sum(self._flops(piece, size // 2**piece.level, length) for piece in self.pieces())

    @nn.nowrap
    def _flops(self, piece: Piece, side: int, memory_length: int) -> float:
        inputs, outputs = piece.inputs, piece.outputs
        if piece.kind == "self":
            return 3.0 * (8 * side**2 * outputs**2 + 4 * side**4 * outputs)
        if piece.kind == "cross":
            config = place_config(outputs, self._heads(piece), True, self.num_layers[piece.level])
            stack = transformer_flops(config, vocab_size=0, sequence_length=side**2, memory_length=memory_length)
            # Keys and values come from vectors of another width than the stack's.
            wider = 3.0 * 4 * config.num_layers * memory_length * (self.memory_size - outputs) * outputs
            return stack + wider + 12.0 * side**2 * outputs**2
        after = {"halve": side // 2, "double": 2 * side}.get(piece.kind, side)
        if piece.kind != "block" and self.resize == "conv":
            stride = 2 if piece.kind == "halve" else 1
            return conv_flops(after, 3, inputs, outputs, stride)
        parts = 2 if self.time_shift == "scale_shift" else 1
        total = conv_flops(after, 3, inputs, outputs) + conv_flops(after, 3, outputs, outputs)
        shortcut = conv_flops(after, 1, inputs, outputs) if inputs != outputs else 0.0
        return total + shortcut + 6.0 * 4 * self.widths[0] * parts * outputs
