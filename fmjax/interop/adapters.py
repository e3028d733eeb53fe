"""Adapters of a loaded model: from a run that trained them, or from a folder that PEFT wrote (`fmjax.interop.peft`)."""

import hashlib
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fmjax import hub
from fmjax.adapt.adapter import Adapter, attached, taken
from fmjax.adapt.lora import LoRA
from fmjax.assemble import build_module, build_weights
from fmjax.checkpoint_files import load_params
from fmjax.config import load_workdir_config
from fmjax.data.tokenizers.loading import has_tokenizer, load_tokenizer
from fmjax.errors import InputError
from fmjax.inference.fingerprint import array_fingerprints
from fmjax.inference.model import Model
from fmjax.interop import peft
from fmjax.interop.loading import find_folder, placed
from fmjax.interop.weights import flatten
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import has_adapters
from fmjax.parallel.sharding import path_name

log = logging.getLogger("fmjax")


def with_adapters(model: Model, adapters: Mapping[str, Any] | str | pathlib.Path) -> Model:
    """A loaded model, its parameters stacked, that knows adapters by name (`Model.with_adapter`). One that trained
    adapters of its own beside kernels of few bits is merged into floats.

    Args:
      adapters: name to path, of a run that trained adapters or of a PEFT folder, or a hub id; or one path, which the
        model then goes by at once.

    Raises InputError where one is not for this model.
    """
    if isinstance(adapters, str | pathlib.Path):
        name = pathlib.Path(adapters).name
        return with_adapters(model, {name: adapters}).with_adapter(name)
    if model.adapter is None and has_adapters(model.params):  # those that its run trained beside kernels of few bits
        model = model.merged()
    found = {name: read_adapter(path, model) for name, path in adapters.items()}
    for adapter in found.values():
        _check_base(adapter, model)
    return model.knowing(found)


def read_adapter(path: str | pathlib.Path, model: Model) -> Adapter:
    """An adapter from a run, or a PEFT folder; see `with_adapters`."""
    folder = find_folder(path)
    if peft.is_peft(folder):
        return peft.read(folder, model)
    folder, step = hub.checkpoint_step(folder)
    if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
        return run_adapter(folder, step)
    raise InputError(
        f"{str(path)!r} is no adapter: expected the workdir of a run with weights.name = 'lora', or a folder with "
        f"{peft.CONFIG}"
    )


def run_adapter(folder: pathlib.Path, step: int | None = None) -> Adapter:
    """The adapter that a run trained. Raises InputError for a run that trained none, or more than that."""
    config = load_workdir_config(folder)
    weights = build_weights(config)
    if not isinstance(weights, LoRA):
        raise InputError(f"{str(folder)!r} trained no adapter: its config has no section weights with name 'lora'")
    known = {"vocab_size": load_tokenizer(folder).vocab_size} if has_tokenizer(folder) else {}
    module = build_module(config, known)
    params, _ = load_params(folder, step, shardings=placed(module, None, weights)[1])
    train = config.get("train", {})
    names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    patterns = train.get("trainable") or weights.trainable
    for name in names:
        is_own = re.search(weights.trainable[0], name)
        if not is_own and any(re.search(pattern, name) for pattern in patterns) and "/base/" not in name:
            raise InputError(
                f"{str(folder)!r} trained {name!r} beside its adapters, which are not the model without it; save the "
                "whole model: --to=hf or --to=fmjax"
            )
    found, leaves = taken(params), flatten(params)
    bases = {path: leaves[path].base for path in found}
    quantization = weights.quantization if any(isinstance(one, QTensor) for one in bases.values()) else None
    base = train.get("init_from") or ""
    return Adapter(found, str(folder), base, digests(bases), quantization, weights.rslora)


def digests(kernels: Mapping[str, Any]) -> dict[str, str]:
    """What kernels that adapters stand beside are by their content; of quantized ones, by their codes."""
    arrays = {path: x.codes if isinstance(x, QTensor) else x.astype(jnp.float32) for path, x in sorted(kernels.items())}
    found = zip(arrays, array_fingerprints(arrays), strict=True)
    return {path: hashlib.sha256(one.encode()).hexdigest()[:16] for path, one in found}


def _check_base(adapter: Adapter, model: Model) -> None:
    """Raises InputError for an adapter that was trained beside other kernels than the model's."""
    attached(model.base_params, adapter)  # refuses other names and shapes
    theirs = f" ({adapter.base!r})" if adapter.base else ""
    if not adapter.digests:
        log.warning(
            "nothing says which weights %s%s was trained beside: that it is for %s is taken on trust",
            adapter.source, theirs, model.source,
        )  # fmt: skip
        return
    leaves = flatten(model.base_params)
    kernels = {path: leaves[path] for path in adapter.digests}
    dtypes = {str(kernel.dtype) for kernel in kernels.values() if not isinstance(kernel, QTensor)} or {"float32"}
    if adapter.quantization is not None:
        kernels = {
            path: x if isinstance(x, QTensor) else adapter.quantization.quantize(x) for path, x in kernels.items()
        }
    with model.inference():
        found = digests(kernels)
    differing = [path for path, digest in adapter.digests.items() if found[path] != digest]
    if not differing:
        return
    if dtypes != {"float32"}:
        log.warning("whether %s is for %s cannot be told in %s", adapter.source, model.source, ", ".join(dtypes))
        return
    raise InputError(
        f"the adapter {adapter.source!r} was trained beside other weights{theirs} than those of {model.source!r}, such "
        f"as {differing[0]!r}; load it with its own base"
    )
