"""Compares the logits of a base with an adapter that fmjax wrote (`fmjax.convert --to=peft`) with `peft`'s.

    python tests/oracles/check_adapters_with_peft.py BASE_HF ADAPTER LOGITS.npz

LOGITS.npz holds tokens [B, T] and logits [B, T, V] of `fmjax.load(BASE_HF, adapters=ADAPTER).apply(tokens)`.
"""

import sys

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, file = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
model = PeftModel.from_pretrained(model, adapter).eval()
with np.load(file) as stored, torch.no_grad():
    found = model(torch.tensor(stored["tokens"])).logits.numpy()
    print("largest difference of logits:", np.abs(found - stored["logits"]).max())
    with model.disable_adapter():
        alone = model(torch.tensor(stored["tokens"])).logits.numpy()
    print("the adapter changes them by up to:", np.abs(alone - found).max())
