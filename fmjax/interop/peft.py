"""Folders of adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

https://huggingface.co/docs/peft/developer_guides/checkpoint. Ours say in the latter's metadata, which PEFT passes over,
what the adapters were trained beside.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from fmjax.adapt.adapter import Adapter
from fmjax.errors import InputError
from fmjax.interop.exporter import whole_folder
from fmjax.interop.family import publish, table_of
from fmjax.interop.safetensors_files import Outgoing, read_header, write_file
from fmjax.interop.weights import Slot, flatten, slots
from fmjax.layers.quantized import Quantization
from fmjax.layers.weights import DoRAWeight, LoRAWeight, column_lengths, value_of
from fmjax.small_files import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KINDS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}
DIGESTS, KEPT = "fmjax_base", "fmjax_base_kept"
UNUSED = {"bias": "none", "modules_to_save": None, "trainable_token_indices": None, "target_parameters": None}
"""What adapters may have beside matrices: option and the value under which they do not."""


def is_peft(folder: pathlib.Path) -> bool:
    """Whether a folder holds an adapter as PEFT writes it."""
    return (folder / CONFIG).is_file()


def base_of(folder: pathlib.Path) -> str:
    """The base that a folder names. Raises InputError where it names none."""
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not base:
        raise InputError(
            f"{str(folder)!r} is an adapter and does not say of which base; load that with adapters={str(folder)!r}"
        )
    return base


def read(folder: pathlib.Path, model) -> Adapter:
    """The adapter in a folder, for a model whose published names its tensors have.

    Raises InputError naming an option that is not supported, or a tensor that belongs to no kernel of the model.
    """
    config = read_json(folder / CONFIG)
    for key, value in ({"peft_type": "LORA"} | UNUSED).items():
        if config.get(key, value) not in (value, []):
            raise InputError(f"{folder / CONFIG}: {key} = {config[key]!r} is not supported, only {value!r}")
    if not (folder / TENSORS).is_file():
        raise InputError(f"{str(folder)!r} has no {TENSORS}; pickles (.bin) are not read")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in read_header(folder / TENSORS).items():
        module, kind = _named(name.removeprefix(PREFIX))
        if kind is None:
            raise InputError(f"{folder / TENSORS}: tensor {name!r} is no adapter's of a kernel, which alone are read")
        parts.setdefault(module, {})[kind] = np.asarray(tensor.map(), np.float32)
    base, adapters = config.get("base_model_name_or_path") or "", {}
    beside = f"; it was trained beside {base!r}" if base else ""
    known, kernels = _kernels(model), flatten(model.base_params)
    for module, arrays in parts.items():
        if module not in known:
            raise InputError(f"the adapter {str(folder)!r} adapts {module!r}, which {model} does not have{beside}")
        if lost := {"a", "b", *["magnitude"] * bool(config.get("use_dora"))} - arrays.keys():
            raise InputError(f"{folder / TENSORS}: {module!r} has no {min(lost)!r} beside {', '.join(arrays)}")
        scale = _scale(config, module, arrays["a"].shape[0])
        for index, slot in enumerate(known[module]):
            layer = _as_ours(arrays, scale, len(known[module]), index)
            theirs, ours = (layer["a"].shape[0], layer["b"].shape[1]), kernels[slot.path].shape[-2:]
            if theirs != ours:
                raise InputError(
                    f"the adapter {str(folder)!r} is for a {module!r} of shape {theirs}, and that of {model} has "
                    f"{ours}{beside}"
                )
            adapters.setdefault(slot.path, {})[slot.place] = layer
    weights = {path: _stacked(layers, kernels[path]) for path, layers in adapters.items()}
    with safe_open(folder / TENSORS, "numpy") as file:
        told = file.metadata() or {}
    kept = Quantization(**json.loads(told[KEPT])) if KEPT in told else None
    digests = json.loads(told.get(DIGESTS, "{}"))
    return Adapter(weights, str(folder), base, digests, kept, bool(config.get("use_rslora")))


def _named(name: str) -> tuple[str, str | None]:
    """(module, attribute of a weight) of a tensor; None for one that is of no kernel."""
    name = name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name
    for ending, kind in KINDS.items():
        if name.endswith(f".{ending}"):
            return name.removesuffix(f".{ending}"), kind
    return name, None


def _kernels(model) -> dict[str, list[Slot]]:
    """The kernels of a model by the module that they are published as; several lie side by side in one."""
    family, _ = publish(model.module, model.config.get("published", {}).get("architecture"))
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten({**model.base_params, **model.state}).items()}
    found: dict[str, list[Slot]] = {}
    for slot in slots(table_of(family, model.module), shapes):
        if slot.path.endswith("/kernel") and slot.name.endswith(".weight"):
            found.setdefault(slot.name.removesuffix(".weight"), []).append(slot)
    return found


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Of one module's adapter: patterns are endings of its name."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _as_ours(arrays: Mapping[str, np.ndarray], scale: float, count: int, index: int) -> dict[str, Any]:
    """One layer's a [in, rank], b [rank, out], magnitude [out] and scale; of `count` kernels in one tensor, its own."""
    width = arrays["b"].shape[0] // count
    own = slice(index * width, (index + 1) * width)
    found = {"a": arrays["a"].T, "b": arrays["b"][own].T, "scale": scale}
    if "magnitude" in arrays:
        found["magnitude"] = arrays["magnitude"].reshape(-1)[own]
    return found


def _stacked(layers: Mapping[tuple, dict[str, Any]], kernel) -> LoRAWeight | DoRAWeight:
    """The adapter of a kernel [..., in, out] from those of its layers, which may lack some, or differ in rank or scale.
    """
    *stack, rows, columns = kernel.shape
    rank = max(layer["a"].shape[1] for layer in layers.values())
    scale = next(iter(layers.values()))["scale"]
    a = np.zeros((*stack, rows, rank), np.float32)
    b = np.zeros((*stack, rank, columns), np.float32)
    for place, layer in layers.items():
        own = layer["a"].shape[1]
        a[place][:, :own] = layer["a"]
        b[place][:own] = layer["b"] * (layer["scale"] / scale)
    a, b = jnp.asarray(a), jnp.asarray(b)
    if not any("magnitude" in layer for layer in layers.values()):
        return LoRAWeight(None, a, b, scale)
    magnitude = np.array(column_lengths(value_of(kernel)))  # of layers that have none, as they are
    for place, layer in layers.items():
        magnitude[place] = layer["magnitude"]
    return DoRAWeight(None, a, b, jnp.asarray(magnitude), scale)


def save(adapter: Adapter, model, directory: str | pathlib.Path) -> None:
    """Writes a folder that PEFT puts on the base, with equal logits.

    Kernels that are published side by side as one get one adapter, whose rank is the sum of theirs.
    """
    tensors, ranks, known, kernels = {}, {}, _kernels(model), flatten(model.base_params)
    for module, parts in known.items():
        if any(slot.path in adapter.weights for slot in parts):
            own = _as_theirs(adapter, parts, kernels)
            ranks[module] = own["a"].shape[0]
            for ending, kind in KINDS.items():
                if kind in own:
                    tensors[f"{PREFIX}{module}.{ending}"] = np.ascontiguousarray(own[kind], np.float32)
    told = {DIGESTS: json.dumps(adapter.digests)} if adapter.digests else {}
    if adapter.quantization is not None:
        told[KEPT] = json.dumps(dataclasses.asdict(adapter.quantization))
    values = _config(adapter, ranks, _short(list(ranks), known), hasattr(model.module, "init_cache"))
    with whole_folder(directory) as folder:
        outgoing = [Outgoing(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()]
        write_file(folder / TENSORS, outgoing, metadata=told)
        (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _as_theirs(adapter: Adapter, parts: list[Slot], kernels) -> dict[str, np.ndarray]:
    """lora_A [rank, in], lora_B [out, rank] and magnitude [out] of a module from those of its kernels."""
    first = next(iter(adapter.weights.values()))
    found = [(adapter.weights.get(slot.path), slot.place, kernels[slot.path]) for slot in parts]
    a = [np.asarray(weight.a[place]).T for weight, place, _ in found if weight is not None]
    rank, before = sum(map(len, a)), 0
    b, magnitude = [], []
    for weight, place, kernel in found:
        rows = np.zeros((kernel.shape[-1], rank), np.float32)
        if weight is not None:
            own = np.asarray(weight.b[place]).T * (weight.scale / first.scale)  # one scale is written for all
            rows[:, before : before + own.shape[1]] = own
            before += own.shape[1]
        b.append(rows)
        is_dora = isinstance(weight, DoRAWeight)
        magnitude.append(np.asarray(weight.magnitude[place] if is_dora else column_lengths(value_of(kernel)[place])))
    whole = {"a": np.concatenate(a), "b": np.concatenate(b)}
    return whole | ({"magnitude": np.concatenate(magnitude)} if isinstance(first, DoRAWeight) else {})


def _config(adapter: Adapter, ranks: Mapping[str, int], targets: list[str], is_causal: bool) -> dict[str, Any]:
    first = next(iter(adapter.weights.values()))
    rank = first.a.shape[-1]
    alpha = lambda rank: first.scale * (rank**0.5 if adapter.rslora else rank)
    others = {module: own for module, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM" if is_causal else None, "base_model_name_or_path": adapter.base,
        "r": rank, "lora_alpha": alpha(rank), "use_rslora": adapter.rslora, "rank_pattern": others,
        "alpha_pattern": {module: alpha(own) for module, own in others.items()},
        "use_dora": isinstance(first, DoRAWeight), "target_modules": targets, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "modules_to_save": None,
        "layers_to_transform": None, "layers_pattern": None,
    }  # fmt: skip


def _short(targets: list[str], known) -> list[str]:
    """The last parts of modules' names where those say which modules are meant, or else the names."""
    ends = {name.rpartition(".")[2] for name in targets}
    meant = [name for name in known if name.rpartition(".")[2] in ends]
    return sorted(ends) if sorted(meant) == sorted(targets) else sorted(targets)
