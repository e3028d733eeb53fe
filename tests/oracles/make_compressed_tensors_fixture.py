"""Writes compressed_tensors.npz: the tiny LLaMA of tests/interop/published in few bits by `compressed-tensors`.

    pip install torch transformers compressed-tensors && python tests/oracles/make_compressed_tensors_fixture.py

Of each scheme the folder as it is saved there (`CASE/config`, the text of config.json, and `CASE/weight/NAME`), and
`CASE/logits` [2, 12, V] of the PyTorch model with its quantized weights, and activations where the scheme has them.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs, QuantizationConfig, QuantizationScheme, QuantizationStatus, apply_quantization_config,
)  # fmt: skip
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
GROUP = dict(strategy="group", group_size=8)
CASES = {
    "int4_group": (dict(num_bits=4, symmetric=True, **GROUP), None),
    "int4_zero_point": (dict(num_bits=4, symmetric=False, **GROUP), None),
    "int8_channel": (dict(num_bits=8, symmetric=True, strategy="channel"), None),
    "fp8_channel": (dict(num_bits=8, type="float", symmetric=True, strategy="channel"), None),
    "int8_activations": (
        dict(num_bits=8, symmetric=True, strategy="channel"),
        dict(num_bits=8, symmetric=True, strategy="token", dynamic=True),
    ),
}


def stored() -> dict[str, np.ndarray]:
    with np.load(HERE.parent / "interop" / "published" / "llama.npz") as fixture:
        return dict(fixture)


def model_of(fixture, folder: pathlib.Path) -> LlamaForCausalLM:
    weights = {k.removeprefix("weight/"): torch.tensor(v) for k, v in fixture.items() if k.startswith("weight/")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(str(fixture["config"]))
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")


def set_scales(module: torch.nn.Linear, args: QuantizationArgs) -> None:
    cut = module.weight.data
    if args.strategy == "group":
        cut = cut.reshape(len(cut), -1, args.group_size)
    least, largest = cut.amin(-1), cut.amax(-1)
    scale, zero = calculate_qparams(least, largest, args)
    module.weight_scale.data = scale.reshape(module.weight_scale.shape)
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data = zero.reshape(module.weight_zero_point.shape).to(module.weight_zero_point.dtype)


def main() -> None:
    fixture, found = stored(), {}
    tokens = torch.tensor(fixture["tokens"], dtype=torch.long)
    for name, (weights, inputs) in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place)
            model = model_of(fixture, folder)
            args = QuantizationArgs(**weights)
            activations = None if inputs is None else QuantizationArgs(**inputs)
            scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=activations)
            apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]))
            for module in model.modules():
                if getattr(module, "quantization_scheme", None) is not None and isinstance(module, torch.nn.Linear):
                    set_scales(module, args)
                    module.quantization_status = QuantizationStatus.FROZEN
            with torch.no_grad():
                found[f"{name}/logits"] = model(tokens).logits.numpy()
            compressor = ModelCompressor.from_pretrained_model(model)
            compressor.compress_model(model)
            saved = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
            (folder / "config.json").write_text(str(fixture["config"]))
            compressor.update_config(str(folder))
            found[f"{name}/config"] = np.asarray(json.dumps(json.loads((folder / "config.json").read_text())))
            for key, value in saved.items():
                is_float = value.dtype == torch.float8_e4m3fn
                found[f"{name}/{'fp8' if is_float else 'weight'}/{key}"] = (
                    value.view(torch.uint8).numpy() if is_float else value.numpy()
                )
    np.savez_compressed(HERE / "compressed_tensors.npz", **found)


main()
