"""Hugging Face folders of quantized weights as the package `compressed-tensors` has them.

https://github.com/vllm-project/compressed-tensors: config.json's `quantization_config` says which modules are of how
many bits, and a module's `weight` is several tensors: `weight_packed`, of whole numbers in int32, or `weight`, of eight
bits; `weight_scale`; and `weight_zero_point` where there is one.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.interop.safetensors_files import Outgoing
from fmjax.interop.weights import LINEAR, Slot
from fmjax.layers.codes import FORMATS, pack, unpack
from fmjax.layers.quantized import QTensor, Quantization

KEY = "quantization_config"
METHOD = "compressed-tensors"
PACKED, INT, PLAIN = "pack-quantized", "int-quantized", "naive-quantized"
FORMAT_WORDS = (PACKED, INT, PLAIN, "float-quantized")
"""Its formats that are read: those that lie in int32, and those that lie as they are."""
SCALE_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ACTIVATIONS = {"num_bits": 8, "type": "int", "symmetric": True}


@dataclasses.dataclass(frozen=True)
class PackedTensor:
    """A module's `weight` [out, in], from the tensors that it is kept as.

    Attributes:
      file, name: of the tensor of its numbers.
      shape: of the weight.
      quantization: how the kernel [in, out] is quantized.
      parts: tensors of the module by the end of their names.
    """

    file: pathlib.Path
    name: str
    shape: tuple[int, ...]
    quantization: Quantization
    parts: Mapping[str, Any]

    @property
    def dtype(self) -> str:
        """What `map` gives, in the words of safetensors."""
        return "F32"

    def map(self) -> np.ndarray:
        """The weight in float32."""
        return np.asarray(self.few_bits().value()).T

    def few_bits(self) -> QTensor:
        """The kernel [in, out], of NumPy's arrays."""
        kind = FORMATS[self.quantization.format]
        block, tile = self.quantization.cut(self.shape[::-1])
        scales = np.ascontiguousarray(self._grid(self.parts["weight_scale"].map(), block, tile).T)
        offsets = input_scale = None
        if "weight_zero_point" in self.parts:
            zero = self.parts["weight_zero_point"].map()
            if "weight_packed" in self.parts:
                zero = from_int32(zero.T, kind.bits, self.shape[0]).T
            else:
                zero = zero.astype(np.int16) + 2 ** (kind.bits - 1)
            offsets = np.ascontiguousarray(self._grid(zero, block, tile).T.astype(np.uint8))
        if self.quantization.static:
            input_scale = np.float32(self.parts["input_scale"].map()).reshape(())
        return QTensor(
            self._codes(kind), scales, self.quantization.format, block, offsets, input_scale, tile,
            self.quantization.activations,
        )  # fmt: skip

    def _codes(self, kind) -> np.ndarray:
        if "weight_packed" in self.parts:
            codes = from_int32(self.parts["weight_packed"].map(), kind.bits, self.shape[1]).T
            if kind.bits == 8 and kind.low:
                return np.ascontiguousarray(codes.astype(np.int16) + kind.low).astype(np.int8)
            return pack(np.ascontiguousarray(codes), kind.bits)
        codes = np.ascontiguousarray(self.parts["weight"].map().T)
        # Unsigned ones lie as signed, less half of their range.
        return codes if kind.low or not kind.is_whole else (codes.astype(np.int16) + 128).astype(np.uint8)

    def _grid(self, x: np.ndarray, block: int, tile: int) -> np.ndarray:
        """A number a block, [out / tile, in / block], of tensors of one axis or two."""
        return x.reshape(self.shape[0] // tile, self.shape[1] // block)


def from_int32(packed: np.ndarray, bits: int, size: int) -> np.ndarray:
    """uint8 [rows, size], unsigned, from int32 [rows, N], whose lowest bits hold the first number."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    numbers = (np.ascontiguousarray(packed).view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return numbers.reshape(len(packed), -1)[:, :size].astype(np.uint8)


def to_int32(numbers: np.ndarray, bits: int) -> np.ndarray:
    """What `from_int32` reads, from uint8 [rows, size]."""
    each = 32 // bits
    padded = np.pad(numbers, [(0, 0), (0, -numbers.shape[1] % each)]).astype(np.uint32)
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    return np.bitwise_or.reduce(padded.reshape(len(numbers), -1, each) << shifts, axis=-1).view(np.int32)


def joined(values: Mapping[str, Any], found: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config.json without `quantization_config`, tensors in which a quantized module has one `weight`).

    Raises ConfigError for another method of quantization, or an option that is not supported; CheckpointError where a
    module's tensors are not what the config says.
    """
    config = values.get(KEY)
    if not config:
        return dict(values), dict(found)
    if config.get("quant_method") != METHOD:
        raise ConfigError(
            f"{source}: {KEY}.quant_method = {config.get('quant_method')!r} is not supported; supported: {METHOD!r}. "
            "Load the model as it was before, and compress that with python -m fmjax.compress"
        )
    sparsity = config.get("sparsity_config") or {}
    wrong = [key for key in ("kv_cache_scheme", "transform_config") if config.get(key)]
    if sparsity.get("format", "dense") != "dense" or wrong:
        raise ConfigError(f"{source}: {KEY}.{[*wrong, 'sparsity_config'][0]} is not supported")
    modules: dict[str, dict] = {}
    for name, tensor in found.items():
        module, _, end = name.rpartition(".")
        modules.setdefault(module, {})[end] = tensor
    tensors = {}
    for module, parts in modules.items():
        if "weight_scale" in parts:
            parts = _weight(module, parts, _group(config, module, source), source)
        tensors |= {f"{module}.{end}" if module else end: tensor for end, tensor in parts.items()}
    return {key: value for key, value in values.items() if key != KEY}, tensors


def _group(config: Mapping[str, Any], module: str, source: str) -> Mapping[str, Any]:
    """The group of a module: of one that names it, or else of all layers of its kind."""
    groups = list(config.get("config_groups", {}).values())

    def names(group):
        for target in group.get("targets", ()):
            if target == module or (target.startswith("re:") and re.match(target[3:], module)):
                return True
        return False

    named = [group for group in groups if names(group)] or [g for g in groups if "Linear" in g.get("targets", ())]
    if not named:
        raise ConfigError(f"{source}: {KEY}.config_groups has none for {module!r}, which has a weight_scale")
    return {"format": config.get("format"), **{k: v for k, v in named[0].items() if v is not None}}


def _weight(module: str, parts: Mapping[str, Any], group: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The tensors of a module with one `weight` in place of what it is kept as."""
    weights = group["weights"]
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy")
    symmetric = weights.get("symmetric", True)
    where = f"{source}: {KEY} of {module!r}"
    if group["format"] not in FORMAT_WORDS:
        raise ConfigError(f"{where}: format = {group['format']!r}; supported: {', '.join(FORMAT_WORDS)}")
    if (kind, bits) not in (("int", 8), ("int", 4), ("float", 8)) or (kind == "float" and not symmetric):
        raise ConfigError(f"{where}: {bits} bits of type {kind!r}; supported: int of 4 and 8, float of 8")
    if strategy not in ("group", "channel", "tensor"):
        raise ConfigError(f"{where}: strategy = {strategy!r}; supported: group, channel, tensor")
    if group.get("output_activations"):
        raise ConfigError(f"{where}: output_activations are not supported")
    if not symmetric and "weight_zero_point" not in parts:
        raise CheckpointError(f"{where}: symmetric = False, and there is no weight_zero_point")
    if symmetric and "weight_zero_point" in parts:
        if np.any(parts["weight_zero_point"].map()):
            raise CheckpointError(f"{where}: symmetric = True, and its weight_zero_point is not 0")
        parts = {end: tensor for end, tensor in parts.items() if end != "weight_zero_point"}
    if "weight_g_idx" in parts:
        raise ConfigError(f"{where}: actorder, whose groups are no blocks beside each other, is not supported")
    numbers = parts.get("weight_packed", parts.get("weight"))
    if numbers is None:
        raise CheckpointError(f"{where}: it has a weight_scale, and neither weight_packed nor weight")
    shape = tuple(numbers.shape)
    if "weight_packed" in parts:
        shape = tuple(int(size) for size in parts["weight_shape"].map())
    format = "fp8" if kind == "float" else f"{'' if symmetric else 'u'}int{bits}"
    scale = parts["weight_scale"]
    if scale.dtype not in SCALE_DTYPES:
        raise CheckpointError(f"{where}: weight_scale of dtype {scale.dtype}; known: {', '.join(SCALE_DTYPES)}")
    count = math.prod(scale.shape)
    block = weights["group_size"] if strategy == "group" else 0
    expected = {"group": shape[0] * -(-shape[1] // (block or shape[1])), "channel": shape[0], "tensor": 1}[strategy]
    if count != expected:
        raise CheckpointError(f"{where}: weight_scale of shape {scale.shape}, expected {expected} numbers ({strategy})")
    activations, static = _activations(group.get("input_activations"), where)
    quantization = Quantization(
        format, block, tile=0 if strategy == "tensor" else 1, scales=SCALE_DTYPES[scale.dtype],
        activations=activations, static=static,
    )  # fmt: skip
    own = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "input_scale")
    kept = {end: tensor for end, tensor in parts.items() if end in own}
    rest = {end: tensor for end, tensor in parts.items() if end not in own}
    return rest | {"weight": PackedTensor(numbers.file, numbers.name, shape, quantization, kept)}


def _activations(group: Mapping[str, Any] | None, where: str) -> tuple[str, bool]:
    """(activations, static) of a `Quantization`."""
    if not group:
        return "float", False
    given = {key: group.get(key) for key in ACTIVATIONS}
    dynamic, strategy = group.get("dynamic"), group.get("strategy")
    if given != ACTIVATIONS or (dynamic, strategy) not in ((True, "token"), (False, "tensor")):
        raise ConfigError(
            f"{where}: input_activations = {dict(group)}; supported: symmetric int of 8 bits, dynamic by token or "
            "static by tensor"
        )
    return "int8", not dynamic


def outgoing_few_bits(table: Sequence[Slot], leaves: Mapping[str, Any]) -> tuple[list[Outgoing], dict | None]:
    """(tensors, `quantization_config`) of the parameters of few bits among a model's; None without any.

    Raises InputError for one that compressed-tensors has no words for.
    """
    found, groups, ignored = [], {}, []
    for slot in table:
        module = slot.name.removesuffix(".weight")
        if not isinstance(leaves[slot.path], QTensor):
            ignored += [module] if slot.view is LINEAR.view else []
            ignored += [name.removesuffix(".weight") for name in slot.repeats]
            continue
        weight = jax.tree.map(lambda x: np.asarray(x[slot.place]), leaves[slot.path])
        group = group_of(weight) if slot.view is LINEAR.view else None
        if group is None:
            what = f"{weight.format} in blocks of {weight.block}" if slot.view is LINEAR.view else "no torch.nn.Linear"
            raise InputError(
                f"{slot.path!r} is {what}, which compressed-tensors has no words for (int4 and int8 by channel or "
                "group, fp8 by channel or tensor); write floats with dequantized=True, or save with format='fmjax'"
            )
        groups.setdefault(json.dumps(group, sort_keys=True), []).append(module)
        for end, array in written(weight).items():
            found.append(Outgoing(f"{module}.{end}", array.shape, array.dtype, lambda array=array: array))
    if not groups:
        return [], None
    formats = {json.loads(group)["format"] for group in groups}
    return found, {
        "quant_method": METHOD, "quantization_status": "compressed", "ignore": ignored, "kv_cache_scheme": None,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": {
            f"group_{number}": {"targets": ["Linear"] if len(groups) == 1 else modules, **json.loads(group)}
            for number, (group, modules) in enumerate(groups.items())
        },
    }  # fmt: skip


def written(weight: QTensor) -> dict[str, np.ndarray]:
    """The tensors of a module's weight, by the ends of their names, of a kernel [in, out] that has a `group_of`."""
    kind = FORMATS[weight.format]
    scales = np.asarray(weight.scales)
    found = {"weight_scale": np.ascontiguousarray(scales.T)}
    if weight.tile != 1:
        found["weight_scale"] = scales.reshape(1)
    codes = np.asarray(weight.codes)
    if not kind.is_whole or (kind.bits == 8 and weight.activations == "int8"):
        found["weight"] = np.ascontiguousarray(codes.T)
        if weight.input_scale is not None:
            found["input_scale"] = np.asarray(weight.input_scale, found["weight_scale"].dtype).reshape(1)
        return found
    numbers = (codes.astype(np.int16) - kind.low).astype(np.uint8) if kind.bits == 8 else unpack(codes, kind.bits)
    found["weight_packed"] = to_int32(np.ascontiguousarray(numbers.T), kind.bits)
    found["weight_shape"] = np.asarray(numbers.T.shape, np.int64)
    if weight.offsets is not None:
        found["weight_zero_point"] = np.ascontiguousarray(to_int32(np.asarray(weight.offsets), kind.bits).T)
    return found


def group_of(weight: QTensor) -> dict[str, Any] | None:
    """A config group without its targets, of a kernel [in, out]; None for one that the format has no words for."""
    kind = FORMATS[weight.format]
    *_, rows, out = weight.shape
    is_zero = weight.offsets is None or getattr(weight.offsets, "dtype", None) == np.uint8
    if weight.format not in ("int4", "int8", "uint4", "uint8", "fp8") or not is_zero:
        return None
    if not hasattr(weight.scales, "dtype") or (weight.tile != 1 and weight.scales.shape != (1, 1)):
        return None
    if weight.activations == "int8" and (weight.format != "int8" or weight.block != rows):
        return None
    if weight.format == "fp8" and weight.block != rows:
        return None
    strategy = "tensor" if weight.tile != 1 else "channel" if weight.block == rows else "group"
    weights = {
        "num_bits": kind.bits, "type": "int" if kind.is_whole else "float", "symmetric": weight.offsets is None,
        "strategy": strategy, "group_size": weight.block if strategy == "group" else None, "dynamic": False,
        "observer": "minmax", "observer_kwargs": {}, "actorder": None, "block_structure": None,
    }  # fmt: skip
    inputs, format = None, PACKED if kind.is_whole else PLAIN
    if weight.activations == "int8":
        static = weight.input_scale is not None
        inputs = {**ACTIVATIONS, "strategy": "tensor" if static else "token", "dynamic": not static}
        format = INT
    return {"weights": weights, "input_activations": inputs, "output_activations": None, "format": format}
