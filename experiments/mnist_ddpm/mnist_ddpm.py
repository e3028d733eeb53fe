"""A denoiser of MNIST as another code base writes it: convolutions at full size, norms over whole images, a time that
is added once; a model and a family from outside fmjax."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion.times import Times
from fmjax.interop.config_keys import Key
from fmjax.interop.family import Family
from fmjax.interop.weights import Fixed, Layout, Weight, conv, linear
from fmjax.layers.conv import Conv
from fmjax.layers.dense import Linear
from fmjax.models.images import ImageModule

FREQUENCIES = np.concatenate([[0], 2 * np.pi * 1.5 ** np.arange(15)]).astype(np.float32)
STEPS = 1001  # of which the first was never trained on
EVERYWHERE = (-3, -2, -1)


@dataclasses.dataclass(frozen=True)
class Trained(Times):
    """Each step but the first, equally often."""

    def quantile(self, process, u):
        return process.snap((1 + jnp.floor((STEPS - 1) * u)) / STEPS)


class MnistDenoiser(ImageModule):
    """The noise in images float32 [B, 28, 28, 1].

    Attributes:
      widths: channels of each convolution but the last.
      time_size: inside the MLP of the time.
    """

    widths: tuple[int, ...] = (16, 32, 32, 16)
    time_size: int = 128

    @nn.compact
    def __call__(self, inputs, times, train: bool = False) -> jax.Array:
        x = inputs
        for index, width in enumerate(self.widths):
            x = Conv(width, 7, name=f"conv_{index}")(x)
            x = nn.LayerNorm(
                epsilon=1e-5, reduction_axes=EVERYWHERE, feature_axes=EVERYWHERE, name=f"norm_{index}"
            )(x)  # fmt: skip
            x = jax.nn.gelu(x, approximate=False)
            if index == 0:
                x = x + self._time(times, width)[:, None, None]
        return Conv(inputs.shape[-1], 3, name="head")(x)

    def _time(self, times, width):
        # Step k is told as k / 1000, and is at k / 1001 of the process.
        phases = times[:, None] * (STEPS / (STEPS - 1)) * FREQUENCIES
        x = jnp.concatenate([jnp.sin(phases), jnp.cos(phases) - 1], axis=-1)
        for index in range(3):
            x = jax.nn.gelu(Linear(self.time_size, (None, None), True, name=f"time_{index}")(x), approximate=False)
        return Linear(width, (None, None), True, name="time_3")(x)

    @nn.nowrap
    def example(self):
        return {"inputs": super().example()["images"], "times": jax.ShapeDtypeStruct((1,), jnp.float32)}


# Of each place and channel: [H, W, C] here, [C, H, W] there.
PLACES = Layout(lambda shape: (shape[2], *shape[:2]), lambda x: x.transpose(1, 2, 0))


def block(index: int) -> tuple[Weight, ...]:
    name = f"gt.blocks.{index}.net"
    return (
        *conv(f"conv_{index}", f"{name}.0"),
        Weight(f"norm_{index}/scale", f"{name}.1.weight", PLACES),
        Weight(f"norm_{index}/bias", f"{name}.1.bias", PLACES),
    )


BARS = np.cumprod(1 - np.linspace(1e-4, 0.02, STEPS))
FAMILY = Family(
    architectures=("MnistDenoiser",),
    model_type="mnist_ddpm",
    model="mnist_ddpm:MnistDenoiser",
    table=(
        *(weight for index in range(4) for weight in block(index)),
        *conv("head", "gt.blocks.4"),
        *(weight for index in range(4) for weight in linear(f"time_{index}", f"gt.time_embed.{2 * index}")),
    ),
    fixed=(
        Fixed("gt.frequencies", lambda module: FREQUENCIES),
        Fixed("beta_t", lambda module: np.linspace(1e-4, 0.02, STEPS, dtype=np.float32)),
        Fixed("alpha_t", lambda module: BARS.astype(np.float32)),
    ),
    keys=(Key("image_size", "image_size"), Key("channels", "num_channels")),
    objective={
        "name": "diffusion",
        "process": {"name": "ddpm", "num_steps": STEPS},
        "target": {"name": "eps"},
        "times": {"name": "mnist_ddpm:Trained"},
        "stratified": True,
    },
)
