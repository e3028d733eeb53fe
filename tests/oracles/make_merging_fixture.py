"""Writes merging.npz: task vectors merged by `peft`.

    pip install torch peft && python tests/oracles/make_merging_fixture.py
"""

import pathlib

import numpy as np
import torch
from peft.utils.merge_utils import task_arithmetic, ties

torch.manual_seed(0)
vectors, weights = torch.randn(3, 40), torch.tensor([1.0, 0.5, 2.0])
arrays = {
    "vectors": vectors,
    "weights": weights,
    "task_arithmetic": task_arithmetic(list(vectors), weights),
    "ties": ties(list(vectors), torch.ones(3), density=0.3),
    "ties_weighted": ties(list(vectors), weights, density=0.3),
}
np.savez(pathlib.Path(__file__).with_name("merging.npz"), **{key: x.numpy() for key, x in arrays.items()})
