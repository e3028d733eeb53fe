"""Times a deformable sum beside depthwise convolutions of the same size, forward and backward: see README.md."""

import argparse
import json
import pathlib
import platform
import time

import jax
from jax import lax

from fmjax.layers.deformed_sum import deformed_sum
from fmjax.layers.depthwise import depthwise

SHAPES = ((32, 8, 8, 64), (16, 16, 16, 64), (8, 32, 32, 64), (4, 56, 56, 64), (8, 14, 14, 256))
CHANNELS = 16  # of a group


def by_xla(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=x.shape[-1]
    )


def both(function):
    """`function` and its gradients."""

    def run(cotangent, *args):
        out, pull = jax.vjp(function, *args)
        return out, pull(cotangent)

    return jax.jit(run)


def milliseconds(functions, repeats: int) -> dict[str, float]:
    """The fastest of so many runs of each, taken in turn."""
    taken = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, run in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:  # the first compiles
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(min(times), 2) for name, times in taken.items()}


def cases(shape):
    """{name: a run of it} for images of a shape."""
    batch, height, width, channels = shape
    groups = channels // CHANNELS
    keys = jax.random.split(jax.random.key(0), 5)
    x, dy = (jax.random.normal(key, shape) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (3, 3, 1, channels))
    grouped = (batch, height, width, groups, CHANNELS)
    offsets = jax.random.uniform(keys[3], (*grouped[:4], 9, 2), minval=-1.0, maxval=1.0)
    weights = jax.nn.softmax(jax.random.normal(keys[4], (*grouped[:4], 9)))
    plain = {"XLA's depthwise": by_xla, "depthwise": depthwise}
    found = {name: lambda f=both(f): f(dy, x, kernel) for name, f in plain.items()}
    for name, longest, reach in (
        ("deformed, within 1", 1.0, 2), ("deformed, within 2", 2.0, 2), ("deformed, beyond", 3.0, 2)
    ):  # fmt: skip
        run = both(lambda x, o, w, reach=reach: deformed_sum(x, o, w, reach=reach))
        args = (dy.reshape(grouped), x.reshape(grouped), longest * offsets, weights)
        found[name] = lambda run=run, args=args: run(*args)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    flags = parser.parse_args()
    found = {}
    for shape in SHAPES:
        found["x".join(map(str, shape))] = milliseconds(cases(shape), flags.repeats)
        print(shape, found["x".join(map(str, shape))], flush=True)
    about = {"python": platform.python_version(), "jax": jax.__version__, "device": jax.devices()[0].device_kind}
    path = pathlib.Path(__file__).parent / "speed.json"
    path.write_text(json.dumps({"milliseconds": found, **about}, indent=2) + "\n")


if __name__ == "__main__":
    main()
