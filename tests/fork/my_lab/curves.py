"""What only this lab makes: curves, out of codes whose mean and spread training carries along."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.base import OpenData
from fmjax.errors import DataError, InputError
from fmjax.objectives.base import Proposal


@dataclasses.dataclass(frozen=True)
class CurveCodec:
    """Lists of `length` numbers as `curves` float32 [length], divided by `scale`; a comma-separated line in a file."""

    suffix: ClassVar[str] = ".csv"
    array: ClassVar[str] = "curves"

    length: int
    scale: float = 1.0

    @property
    def shape(self):
        return (self.length,)

    def encode(self, value: Sequence[float]) -> dict[str, np.ndarray]:
        curve = np.asarray(value)
        if curve.dtype.kind not in "fiu" or curve.shape != self.shape:
            raise DataError(f"a curve is a list of {self.length} numbers, got {value!r}")
        return {self.array: curve.astype(np.float32) / self.scale}

    def decode(self, arrays: Mapping[str, np.ndarray]) -> list[float]:
        return (np.asarray(arrays[self.array]) * self.scale).tolist()

    def read(self, path: pathlib.Path) -> list[float]:
        return [float(number) for number in path.read_text().split(",")]

    def write(self, value, path: pathlib.Path) -> None:
        self.write_all([value], path)

    def write_all(self, values, path: pathlib.Path) -> None:
        path.write_text("".join(",".join(f"{number:.6g}" for number in value) + "\n" for value in values))


class Waves:
    """Row i is a sine of random phase and height."""

    def __init__(self, seed: int, codec: CurveCodec, length: int):
        self.seed, self.codec, self.length = seed, codec, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        height, phase = np.random.default_rng((self.seed, index)).uniform([1, 0], [2, 1])
        curve = height * np.sin(np.linspace(0, 6, self.codec.length) + phase)
        return self.codec.encode(curve) | {"loss_weights": np.float32(1)}


@dataclasses.dataclass(frozen=True)
class Sines:
    length: int = 12

    def open(self, *, seed, cache_dir, workdir=None, progress=False):
        codec = CurveCodec(self.length, scale=2.0)
        return OpenData(
            train=Waves(seed, codec, 2**62),
            evaluation={"fresh": Waves(seed + 1, codec, 40)},
            codecs={"curve": codec},
            model_fields={"length": self.length},
            identity={"dataset": f"sines:{self.length}"},
        )


class CurveAutoencoder(nn.Module):
    """Curves float32 [B, length] to (the same, decoded; their codes [B, code_size])."""

    code_size: int = 3
    length: int | None = None

    def setup(self):
        self.encoder, self.decoder = nn.Dense(self.code_size), nn.Dense(self.length)

    def __call__(self, curves, train: bool = False):
        codes = self.encoder(curves)
        return self.decode(codes), codes

    def decode(self, codes):
        return self.decoder(codes)

    @nn.nowrap
    def example(self):
        return {"curves": jax.ShapeDtypeStruct((1, self.length), jnp.float32)}


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Squared error; carries moving averages of the codes' first and second moments, which the generator draws from."""

    makes: ClassVar[str] = "curve"
    generator: ClassVar[str] = "my_lab.curves:FromCodes"

    decay: float = 0.9

    def inputs(self, batch):
        return {"curves": batch["curves"]}

    def initial(self, module, params, key):
        return {"mean": jnp.zeros(module.code_size), "square": jnp.ones(module.code_size)}

    def __call__(self, apply_fn, params, batch, key, train, *, carry):
        decoded, codes = apply_fn({"params": params}, **self.inputs(batch), train=train)
        weights = batch["loss_weights"]
        errors = jnp.square(decoded - batch["curves"]).mean(axis=1)
        codes, rows = jax.lax.stop_gradient(codes), weights[:, None]
        sums = {"mean": (rows * codes).sum(0), "square": (rows * codes**2).sum(0), "count": weights.sum()}
        return {"loss": ((errors * weights).sum(), weights.sum())}, Proposal(sums=sums)

    def after(self, carry, proposal, params):
        sums = proposal.sums
        return {name: self.decay * old + (1 - self.decay) * sums[name] / sums["count"] for name, old in carry.items()}

    def sample(self, model, key):
        return model.generate(num_samples=2, seed=0)


class FromCodes:
    """Decodes codes drawn with the mean and spread that the run carried; a prompt is a factor of the spread."""

    @dataclasses.dataclass(frozen=True)
    class Options:
        """How curves are drawn.

        Attributes:
          seed: of the codes.
          num_samples: curves for each prompt.
        """

        seed: int = 0
        num_samples: int = 1

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model) -> str | None:
        return None if model.carry is not None else "it carries no moments of its codes"

    def default_prompts(self) -> Sequence[Any]:
        return [1.0]

    def run(self, prompts, options) -> Iterator[tuple[int, list[float]]]:
        model = self.model
        mean = np.asarray(model.carry["mean"])
        spread = np.sqrt(np.maximum(np.asarray(model.carry["square"]) - mean**2, 0))
        for place, prompt in enumerate(prompts):
            if not isinstance(prompt, int | float):
                raise InputError(f"prompt {place} is {prompt!r}; expected a factor of the codes' spread")
            drawn = np.random.default_rng(options.seed).normal(size=(options.num_samples, len(mean)))
            codes = (mean + prompt * spread * drawn).astype(np.float32)
            curves = model.module.apply({"params": model.params}, codes, method="decode")
            for copy, curve in enumerate(np.asarray(curves)):
                yield place * options.num_samples + copy, model.codec.decode({"curves": curve})
