"""How BriVL's loss falls while nothing is learnt: keys in a queue are told by their age.

    python experiments/shape_pairs/ages.py [--steps=600]

Vectors in place of pictures and captions: of 48 kinds, but so alike that the share `SHARED` of an image's square length
is the same for all, as it is of what BriVL's towers make of pictures before they are trained. Two small networks learn
them by the objective "brivl" with queues of several sizes. Writes `ages.json` and `ages.png`: the loss beside that of
chance, and for how many images the text that fits best in a batch is of their kind. Minutes of one core.
"""

import argparse
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

from fmjax.models.dual_encoder import unit  # noqa: E402
from fmjax.objectives.brivl import BriVL  # noqa: E402

SHARED = {"images": 0.998, "tokens": 0.93}
KINDS, BATCH, WIDTH = 48, 64, 64
TRIALS = ((64, 0.99), (256, 0.99), (1024, 0.99), (4096, 0.99), (1024, 0.9), (1024, 0.999))


class Towers:
    """A stand-in for a model of pairs, of vectors."""

    def init(self, key: jax.Array) -> dict:
        draw = lambda k: [jax.random.normal(one, (WIDTH, WIDTH)) * WIDTH**-0.5 for one in jax.random.split(k, 3)]
        return dict(zip(SHARED, map(draw, jax.random.split(key))))

    def apply(self, variables, images, tokens, segment_ids=None, train: bool = False, rngs=None) -> dict:
        made = {}
        for (side, layers), x in zip(variables["params"].items(), (images, tokens)):
            for weight in layers[:-1]:
                x = jax.nn.standardize(jax.nn.relu(x @ weight), epsilon=1e-5)
            made[{"images": "image", "tokens": "text"}[side]] = unit(x @ layers[-1])
        return made | {"scale": jnp.asarray(1 / 0.07)}

    def example(self) -> dict:
        return {name: jax.ShapeDtypeStruct((2, WIDTH), jnp.float32) for name in ("images", "tokens", "segment_ids")}


def batches(steps: int) -> dict[str, np.ndarray]:
    """Rows of `steps` batches."""
    rng = np.random.default_rng(0)
    labels = rng.integers(KINDS, size=(steps, BATCH))
    rows = {"labels": labels.astype(np.int32), "loss_weights": np.ones((steps, BATCH), np.float32)}
    for name, shared in SHARED.items():
        common, kinds = rng.normal(size=WIDTH), rng.normal(size=(KINDS, WIDTH))
        own = kinds[labels] + 0.3 * rng.normal(size=(steps, BATCH, WIDTH))
        rows[name] = (shared**0.5 * common + (1 - shared) ** 0.5 * own).astype(np.float32)
    return rows | {"segment_ids": np.ones((steps, BATCH), np.int32)}


def curves(queue_size: int, momentum: float, steps: int) -> dict[str, list[float]]:
    """The loss, and the share of right texts, of each step."""
    objective, towers = BriVL(queue_size=queue_size, momentum=momentum), Towers()
    params = towers.init(jax.random.key(0))
    carry = nn.unbox(objective.initial(towers, params, jax.random.key(1)))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 10, steps)
    update = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def step(state, batch):
        params, moments, carry = state

        def loss(params):
            sums, proposal = objective(towers.apply, params, batch, jax.random.key(0), True, carry=carry)
            return sums["loss"][0] / sums["loss"][1], proposal

        (value, proposal), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        found = towers.apply({"params": params}, batch["images"], batch["tokens"])
        nearest = batch["labels"][(found["image"] @ found["text"].T).argmax(1)]
        change, moments = update.update(gradient, moments, params)
        params = optax.apply_updates(params, change)
        return (params, moments, objective.after(carry, proposal, params)), (value, (nearest == batch["labels"]).mean())

    _, (losses, right) = jax.jit(lambda state: jax.lax.scan(step, state, batches(steps)))(
        (params, update.init(params), carry)
    )
    return {"loss": losses.tolist(), "right": right.tolist()}


def plot(file: pathlib.Path, found: dict[str, dict]) -> None:
    """Above the loss less that of chance, below the share of right texts, of each trial."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 6), sharex=True)
    for name, one in found.items():
        smooth = lambda values: np.convolve(values, np.ones(10) / 10, mode="valid")
        above.plot(smooth(one["loss"]) - one["chance_loss"], label=name)
        below.plot(smooth(one["right"]), label=name)
    above.axhline(0, color="gray", linestyle="--", linewidth=1)
    below.axhline(1 / KINDS, color="gray", linestyle="--", linewidth=1)
    above.set(ylabel="loss - loss of chance, nats")
    below.set(ylabel="right texts of a batch", xlabel="step")
    below.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default=600, type=int)
    steps = parser.parse_args().steps
    found = {}
    for size, momentum in TRIALS:
        one = found[f"queue of {size:,}, momentum {momentum}"] = curves(size, momentum, steps)
        one["chance_loss"] = float(2 * np.log(size + 1))
        print(size, momentum, {key: round(one[key][-1], 2) for key in ("loss", "right")}, flush=True)
    plot(HERE / "ages.png", found)
    shown = {}
    for name, one in found.items():
        learnt = [step for step in range(10, steps) if np.mean(one["right"][step - 10 : step]) >= 0.5]
        alike = [step for step in range(10, steps) if np.mean(one["right"][step - 10 : step]) < 2.5 / KINDS]
        least = min(np.mean(one["loss"][step - 10 : step]) for step in alike)
        shown[name] = {
            "half right at step": learnt[0] if learnt else None, "right at the end": float(np.mean(one["right"][-10:])),
            "loss of chance": one["chance_loss"], "least loss while no more than 5% were right": float(least),
        }  # fmt: skip
    results = {"trials": shown, "steps": steps, "setting": runs.setting()}
    (HERE / "ages.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
