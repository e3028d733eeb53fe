"""Writes lora.npz: a linear layer with adapters by `peft`, its output and gradients.

    pip install torch peft && python tests/oracles/make_lora_fixture.py
"""

import pathlib

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False))
model = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=["0"], init_lora_weights=False))
names = {"base": "base_layer.weight", "a": "lora_A.default.weight", "b": "lora_B.default.weight"}
parameters = {key: next(p for n, p in model.named_parameters() if n.endswith(name)) for key, name in names.items()}
x, gradient = torch.randn(5, 6), torch.randn(5, 4)
out = model(x)
out.backward(gradient)
arrays = {"x": x, "gradient": gradient, "out": out}
arrays |= {key: parameter.T.clone() for key, parameter in parameters.items()}
arrays |= {f"d_{key}": parameters[key].grad.T for key in ("a", "b")}
arrays["merged"] = model.merge_and_unload()[0].weight.T
np.savez(pathlib.Path(__file__).with_name("lora.npz"), **{key: array.detach().numpy() for key, array in arrays.items()})
