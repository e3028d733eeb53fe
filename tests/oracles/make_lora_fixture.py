"""Writes lora.npz and dora.npz: a linear layer with adapters by `peft`, its output and gradients.

    pip install torch peft && python tests/oracles/make_lora_fixture.py
"""

import pathlib

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

NAMES = {
    "base": "base_layer.weight", "a": "lora_A.default.weight", "b": "lora_B.default.weight",
    "magnitude": "lora_magnitude_vector.default.weight",
}  # fmt: skip


def write(name: str, **options) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False))
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=["0"], **options))
    parameters = {
        key: parameter
        for key, ending in NAMES.items()
        for path, parameter in model.named_parameters()
        if path.endswith(ending)
    }
    if "magnitude" in parameters:
        with torch.no_grad():
            parameters["magnitude"] *= torch.linspace(0.5, 1.5, 4)
    x, gradient = torch.randn(5, 6), torch.randn(5, 4)
    out = model(x)
    out.backward(gradient)
    arrays = {"x": x, "gradient": gradient, "out": out}
    turned = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    turned |= {f"d_{key}": parameters[key].grad for key in parameters if key != "base"}
    turned["merged"] = model.merge_and_unload()[0].weight
    arrays |= {key: array.t() for key, array in turned.items()}
    arrays = {key: array.detach().numpy() for key, array in arrays.items()}
    np.savez(pathlib.Path(__file__).with_name(name), **arrays)


write("lora.npz", init_lora_weights=False)
write("dora.npz", init_lora_weights=False, use_dora=True, use_rslora=True)
