"""Writes nf4.npz: a matrix in 4 bits by `bitsandbytes`, with and without scales in eight bits.

    pip install torch bitsandbytes && python tests/oracles/make_nf4_fixture.py
"""

import pathlib

import bitsandbytes.functional as F
import numpy as np
import torch

torch.manual_seed(0)
weight = torch.randn(24, 1024) * torch.linspace(0.01, 0.1, 24)[:, None]  # as PyTorch's Linear: [out, in]
arrays = {"weight": weight, "levels": F.create_dynamic_map(), "nf4": F.get_4bit_type("nf4", device="cpu")}
for name, double in (("plain", False), ("double", True)):
    codes, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
    arrays[f"{name}_codes"], arrays[f"{name}_absmax"] = codes, state.absmax
    arrays[f"{name}_value"] = F.dequantize_4bit(codes, state)
np.savez_compressed(pathlib.Path(__file__).with_name("nf4.npz"), **{k: np.asarray(v) for k, v in arrays.items()})
