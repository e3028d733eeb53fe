"""Checks that `transformers`, with `compressed-tensors`, computes what a folder of few bits that we wrote stands for.

    pip install torch transformers compressed-tensors
    PYTHONPATH=. python tests/oracles/check_few_bits_with_transformers.py

Prints the largest difference of logits for each format; raises where it is more than 1e-4 (2% of the largest with
activations of eight bits, which are divided by the largest over 127.5 there).
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import fmjax
from fmjax.compress import METHODS

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "interop"))
import folders  # noqa: E402

CASES = {
    "int4 by group": METHODS.get("int4")(block=8),
    "int8 by channel": METHODS.get("int8")(),
    "fp8 by channel": METHODS.get("fp8")(),
    "int8 with activations": METHODS.get("int8")(activations="int8"),
}

with tempfile.TemporaryDirectory() as place:
    place = pathlib.Path(place)
    model = fmjax.load(folders.published(place / "whole", "llama"))
    tokens = folders.read("llama")["tokens"][:1]
    for name, method in CASES.items():
        made, folder = method.compress(model), place / name.replace(" ", "_")
        made.save(folder, format="hf")
        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        with torch.no_grad():
            found = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
        expected = np.asarray(made.apply(tokens))
        error = np.max(np.abs(found - expected))
        print(f"{name}: {error:.2g}, of logits up to {np.max(np.abs(expected)):.2g}")
        rounds = getattr(method, "activations", "float") == "int8"
        bound = 0.02 * np.max(np.abs(expected)) if rounds else 1e-4
        if not error < bound:
            raise SystemExit(f"{name}: logits differ by {error}")
