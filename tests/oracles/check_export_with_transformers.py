"""`transformers` loads what fmjax saves, with equal logits. Needs the `oracle` extra and the fixtures of
make_interop_fixtures.py; prints a line a family and ends with exit code 1 where one differs:

    python tests/oracles/check_export_with_transformers.py [NAME ...]

Each published folder is loaded by fmjax, saved as "hf" in several files, and loaded by the PyTorch class; a missing,
unexpected or misshapen tensor fails. Then the same for a module with other weights, which no published folder held.

On 2026-11-24, torch 2.13.0 and transformers 5.24.0: every family loads; the logits of folders saved again are equal to
the last bit, those of other weights to 3.5e-6.
"""

import pathlib
import sys
import tempfile

import jax
import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "interop"), str(HERE.parent.parent)]

import folders  # noqa: E402
from make_interop_fixtures import CASES, PAD, forward, logits_of  # noqa: E402

import fmjax  # noqa: E402
from fmjax.load import Model  # noqa: E402

INPUTS = ("tokens", "token_types", "source_tokens")


def torch_logits(name: str, folder: pathlib.Path, inputs) -> np.ndarray:
    """Of the rows of a fixture by the PyTorch class that the folder names, in float32."""
    model_class = getattr(transformers, CASES[name][0])
    model, info = model_class.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    wrong = {key: list(value) for key, value in info.items() if value}
    if wrong:
        raise SystemExit(f"{name}: {wrong}")
    with torch.no_grad():
        rows = {key: [torch.tensor(row).long() for row in value] for key, value in inputs.items()}
        return logits_of(forward(model.eval(), rows)).numpy()


def fmjax_logits(model: Model, inputs) -> np.ndarray:
    """The same by fmjax."""
    inputs = dict(inputs)
    ids = {"segment_ids": inputs["tokens"] != PAD}
    if "source_tokens" in inputs:
        ids["source_segment_ids"] = inputs["source_tokens"] != PAD
    return np.asarray(model.apply(inputs.pop("tokens"), **inputs, **{k: v.astype(np.int32) for k, v in ids.items()}))


def redrawn(model: Model) -> Model:
    """The model with other weights: its own, each multiplied and shifted at random."""
    rng = np.random.default_rng(0)

    def draw(x):
        return jax.numpy.asarray(x * rng.normal(1, 0.3, x.shape) + rng.normal(0, 0.05, x.shape), "float32")

    return Model(model.module, jax.tree.map(draw, model.params))


def main() -> int:
    failed = False
    for name in sys.argv[1:] or CASES:
        fixture = folders.read(name)
        inputs = {key: fixture[key] for key in INPUTS if key in fixture}
        real = fixture["tokens"] != PAD
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            model = fmjax.load(folders.published(folder / "published", name))
            model.save(folder / "saved", format="hf", max_shard_size=10_000)
            other = redrawn(model)
            other.save(folder / "other", format="hf")
            gaps = [
                abs(torch_logits(name, folder / "saved", inputs) - fixture["logits"])[real].max(),
                abs(torch_logits(name, folder / "other", inputs) - fmjax_logits(other, inputs))[real].max(),
            ]
        failed |= max(gaps) > 1e-4
        print(f"{name}: largest difference of logits {gaps[0]:.1e} (saved again), {gaps[1]:.1e} (other weights)")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
