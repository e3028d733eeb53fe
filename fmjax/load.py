"""`fmjax.load(path)`: a folder or hub id as a `Model`, and which kinds of folders can be read.

This module is itself callable (`fmjax.load(path)` is `fmjax.load.load(path)`), so that the function and the module it
lives in can share their promised name whichever is imported first.
"""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from fmjax import hub
from fmjax.assemble import build_module, build_weights, check_codecs, served_params
from fmjax.checkpoint_files import load_average, load_carry, load_params
from fmjax.config import build, load_config_file, load_workdir_config, resolve
from fmjax.data.codecs.base import Codec, load_codecs
from fmjax.errors import ConfigError, InputError
from fmjax.inference.checks import make_callable
from fmjax.inference.fingerprint import content_fingerprint
from fmjax.inference.model import Model
from fmjax.interop import loading, peft
from fmjax.interop.adapters import with_adapters
from fmjax.layers.checks import COMPUTE_DTYPES, check_choice
from fmjax.layers.quantized import QTensor
from fmjax.models.prompted import prompt_as_prefix
from fmjax.models.state import own_carry
from fmjax.objectives import OBJECTIVES
from fmjax.objectives.base import OtherModel, has_carry
from fmjax.objectives.stateful import with_state
from fmjax.parallel.placement import Placement
from fmjax.parallel.sharding import carry_shardings

log = logging.getLogger("fmjax")


def load(
    path: str | pathlib.Path,
    dtype: str = "float32",
    step: int | None = None,
    mesh: Mapping[str, Any] | Placement | None = None,
    progress: bool = False,
    unrolled: bool = False,
    part: str | None = None,
    sigma_rel: float | None = None,
    adapters: Mapping[str, Any] | str | pathlib.Path | None = None,
    quantized: bool = False,
) -> Model:
    """Loads a model.

    Args:
      path: a run's workdir, one of its checkpoints (`WORKDIR/checkpoints/STEP`), a folder that `Model.save` wrote, a
        Hugging Face folder, a GGUF file, or, where no such path exists, a hub id: "org/name", "org/name@revision" or
        "org/name/FILE.gguf".
      dtype: "float32", "bfloat16" or "float16": of the parameters and of what is computed with them.
      step: which checkpoint of a workdir; None is the newest complete one.
      mesh: how the model is split over all devices: fields of `fmjax.parallel.mesh.MeshConfig`, such as
        {"fsdp": 2, "tensor": 2}, or a `Placement`; None is the first device alone.
      progress: show a progress bar while published weights are read.
      unrolled: published weights are read into the form that generation decodes with (`Model.unrolled`), so that they
        are neither stacked nor copied; for a model that is only to generate.
      part: of a published model of several, such as "transformer" or "vision": the part that alone is loaded.
      sigma_rel: of a run with train.ema_sigma_rel, the width of the average of its parameters, whatever those it kept
        (`fmjax.power_average`); None is the first of those. The model's config tells it, under "average".
      adapters: low-rank adapters by name, {"poet": PATH}, of which `Model.with_adapter` chooses one; or the path of
        one, which the model has at once. A path is of a run that trained one, or of a folder that PEFT wrote.

      quantized: weights that are published in few bits (GGUF's types, compressed-tensors) stay so, of the same values;
        else they become `dtype`. A model that `fmjax.compress` made always is what it is.

    A folder that PEFT wrote is a model too: the base that it names, with its adapter.

    Raises: InputError for a path that holds no model, saying what was found, and for an adapter of another base;
      CheckpointError for damaged weights.
    """
    check_choice("dtype", dtype, COMPUTE_DTYPES)
    if adapters:
        # Whether they are for this model is told by its layers as they are.
        model = load(path, dtype, step, mesh, progress, False, part, sigma_rel, quantized=quantized)
        return with_adapters(model, adapters)
    placement = mesh if mesh is None or isinstance(mesh, Placement) else Placement.make(mesh)
    folder, found, reader = find(path, step)
    if quantized and reader is not _load_published:
        raise InputError(f"{str(path)!r} is not published in few bits, which quantized = True keeps; leave it out")
    if part is not None:
        if reader is not _load_published or found is not None:
            what = "is a run" if step is None or found is None else f"is asked for step {step}, as a run"
            raise InputError(f"{str(path)!r} {what}, which is of one part; leave part = {part!r} out")
        return loading.load_published(folder, dtype, placement, progress, unrolled, part, quantized)
    if quantized:
        return loading.load_published(folder, dtype, placement, progress, unrolled, quantized=True)
    if sigma_rel is not None:
        if reader is not _load_workdir:
            raise InputError(f"{str(path)!r} is no run with averages to mix; leave sigma_rel = {sigma_rel} out")
        return _load_workdir(folder, dtype, found, placement, progress, unrolled, sigma_rel)
    return reader(folder, dtype, found, placement, progress, unrolled)


def find(path: str | pathlib.Path, step: int | None = None) -> tuple[pathlib.Path, int | None, Callable]:
    """(folder or file, step where one is named, the one of READERS) of what `load` would load; nothing of it is read.

    Raises InputError for a path that holds no model, saying what was found.
    """
    folder = loading.find_folder(path)
    if step is None:
        folder, step = hub.checkpoint_step(folder)
    for recognises, reader in READERS:
        if recognises(folder):
            return folder, step, reader
    found = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else ["a file"]
    raise InputError(f"{str(path)!r} is not a model (found there: {', '.join(found) or 'nothing'}); {loading.EXPECTED}")


def load_shapes(path: str | pathlib.Path, placement: Placement) -> tuple[Any, Any, Any, Any]:
    """(module; its parameters, its state and what else its run carried, by name, as `jax.ShapeDtypeStruct`s in their
    shards) of what `load` would load; no weight is read. A config, FILE.py or FILE.py:ARGUMENT, stands for the model
    that a run of it will make.

    Raises InputError as `load`.
    """
    lie = lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d)
    if str(path).partition(":")[0].endswith(".py"):
        module = build_module(resolve(load_config_file(str(path))), {})
        return _served(module, jax.tree.map(lie, *loading.placed(module, placement)), {}, {})
    folder, _ = hub.checkpoint_step(loading.find_folder(path))
    carry, weights = {}, None
    if _is_workdir(folder):
        module, config, _ = _run_module(folder)
        weights = build_weights(config)
        carry = own_carry(_carry(config, module, build_weights(config), placement))
    elif loading.is_published(folder):
        module = loading.published_module(folder)
    else:
        raise InputError(f"{str(path)!r} is not a model; {loading.EXPECTED}")
    params = jax.tree.map(lie, *loading.placed(module, placement, weights))
    if not any(isinstance(x, QTensor) for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, QTensor))):
        params = jax.tree.map(lie, *loading.placed(module, placement))  # its weights are computed once
    state = jax.tree.map(lie, *loading.placed_state(module, placement))
    return _served(module, params, state, carry)


def _served(module, params, state, carry):
    """Of a module that trains more than its run makes (`Model.served`) that model; else what is given."""
    name = getattr(module, "SERVES", None)
    return (module, params, state, carry) if name is None else (getattr(module, name), params[name], state, carry)


def described(path: str) -> tuple[type | None, dict[str, Codec]]:
    """(the objective's class, codecs by modality) of a run, one of its checkpoints, or a published model; (None, {}) of
    what says nothing of this. No weight is read."""
    section, codecs = _described(path)
    return OBJECTIVES.get(section["name"]) if section else None, codecs


def trained_with(path: str):
    """The objective of a run, one of its checkpoints, or a published model; None where nothing says it. No weight is
    read."""
    section, _ = _described(path)
    return build(section, OBJECTIVES) if section else None


def _described(path: str) -> tuple[dict | None, dict[str, Codec]]:
    """(config of the objective, codecs by modality)."""
    folder, _ = hub.checkpoint_step(pathlib.Path(path).expanduser())
    if _is_workdir(folder):
        return load_workdir_config(folder).get("objective"), load_codecs(folder)
    if (folder.is_dir() or hub.is_hub_id(path)) and loading.is_published(found := loading.find_folder(path)):
        return loading.described(loading.open_published(found))
    return None, {}


def check_cut_alike(what: str, path: str, data) -> None:
    """Raises ConfigError, naming `what`, where a model has another tokenizer than these data, whose tokens it reads."""
    theirs = loading.find_tokenizer(find(path)[0])
    if theirs is not None and theirs.fingerprint != getattr(data.tokenizer, "fingerprint", None):
        raise ConfigError(
            f"{what}, {path!r}, reads the tokens of another tokenizer than these data have; set data.tokenizer = "
            f"{path!r}"
        )


def _is_workdir(folder: pathlib.Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def _load_published(
    folder: pathlib.Path, dtype: str, step: int | None, placement, progress: bool, unrolled: bool
) -> Model:
    if step is not None:
        raise InputError(
            f"{str(folder)!r} is a published model, which has no checkpoint of step {step}; leave step out"
        )
    return loading.load_published(folder, dtype, placement, progress, unrolled)


def _load_adapted(
    folder: pathlib.Path, dtype: str, step: int | None, placement, progress: bool, unrolled: bool
) -> Model:
    if step is not None:
        raise InputError(f"{str(folder)!r} is an adapter, which has no checkpoint of step {step}; leave step out")
    return load(peft.base_of(folder), dtype, mesh=placement, progress=progress, adapters=folder)


def _run_module(folder: pathlib.Path):
    """(module, config, tokenizer) of a run's folder."""
    config = load_workdir_config(folder)
    if not isinstance(config.get("model"), dict):
        raise InputError(f"{str(folder / 'config.json')!r} has no section 'model'; is it the config of a run?")
    tokenizer = loading.find_tokenizer(folder)
    # What else the data told the module is in the config: the trainer writes it there.
    known = {} if tokenizer is None else {"vocab_size": tokenizer.vocab_size}
    module = build_module(config, known)
    filled = {k: getattr(module, k) for k, v in config["model"].items() if v is None and k in known}
    config = {**config, "model": {**config["model"], **filled}}
    loading.check_tokenizer(tokenizer, module, folder)
    return module, config, tokenizer


def _load_workdir(
    folder: pathlib.Path, dtype: str, step: int | None, placement, progress: bool, _, sigma_rel: float | None = None
) -> Model:
    module, config, tokenizer = _run_module(folder)
    weights, shardings = build_weights(config), None
    if placement is not None or weights is not None:
        _, shardings = loading.placed(module, placement, weights)
    if sigma_rel is None:
        params, step = load_params(folder, step, shardings=shardings)
    else:
        widths = config.get("train", {}).get("ema_sigma_rel", ())
        params, step = load_average(folder, widths, sigma_rel, step, shardings)
        config = {**config, "average": {"sigma_rel": sigma_rel}}
    params = served_params(weights, params)
    with contextlib.nullcontext() if placement is None else placement.inference():
        params = prompt_as_prefix(module, params)
    module, params = loading.cast(module, params, dtype)
    split = None if placement is None else lambda: _shardings(_carry(config, module, weights, placement))
    identity = _data_identity(folder, step)
    # The rows of a run's training begin with BOS; what was published and only saved says it in its tokenizer.
    add_bos = "train" in config or "published" not in config or (tokenizer is not None and tokenizer.add_bos)
    model = Model(
        module, params, config, tokenizer, step, str(folder), identity, add_bos, placement,
        codecs=load_codecs(folder), carry=load_carry(folder, step, split),
        open_other=functools.partial(open_other, folder, step, config, dtype, placement),
        open_path=functools.partial(load, dtype=dtype, mesh=placement),
    )  # fmt: skip
    if model.codecs:
        check_codecs(model.codecs, module, model.objective)
    return model.served


def open_other(folder: pathlib.Path, step: int, config, dtype: str, placement, name: str) -> OtherModel:
    """The model that the objective of a run calls `name`. Raises InputError where it is not there, or is not the one
    that the run was trained with, or that made its rows."""
    path = config["objective"].get(name)
    try:
        model = load(path, mesh=placement)  # in float32, as it was when its content was written down
    except InputError as error:
        raise type(error)(
            f"{str(folder)!r} needs its objective.{name} = {path!r}, as it was trained with it: {error}"
        ) from None
    saved = _saved(folder, step)
    before = saved.get("model", {}).get(name, saved.get("data", {}).get(name))
    if before is None:
        log.warning(
            "nothing in %s says which objective.%s it, or what made its rows, was trained with: %s is taken on trust",
            folder, name, path,
        )  # fmt: skip
    elif (now := content_of(model)) != before:
        raise InputError(
            f"{str(folder)!r} was trained with another objective.{name} than {path!r} now is (its content was "
            f"{before}, is {now}); put that back, or train again"
        )
    return _other(model, dtype)


def _other(model: Model, dtype: str = "float32") -> OtherModel:
    module, params = loading.cast(model.module, model.params, dtype)
    return OtherModel(module, params, model.state, own_carry(model.carry))


def content_of(model: Model) -> str:
    """What a model of an objective is by its content: of one that is loaded in float32."""
    with model.inference():
        return content_fingerprint(_other(model))


def _carry(config, module, weights, placement: Placement):
    """What the run's objective carries, as `jax.ShapeDtypeStruct`s, split as its training splits it; {} for none."""
    section = config.get("objective")
    objective = with_state(build(section, OBJECTIVES), module) if section else None
    if not has_carry(objective):
        return {}
    shapes, shardings = loading.placed(module, placement, weights)
    boxed = jax.eval_shape(lambda params: objective.initial(module, params, jax.random.key(0)), shapes)
    split = carry_shardings(boxed, shapes, shardings, placement.mesh, placement.config.table)
    lie = lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d)
    return jax.tree.map(lie, nn.unbox(boxed), split)


def _shardings(shapes):
    return jax.tree.map(lambda one: one.sharding, shapes)


def _data_identity(folder: pathlib.Path, step: int) -> dict:
    """What the checkpoint says its data were; empty for one that `Model.save` wrote."""
    return _saved(folder, step).get("data", {})


def _saved(folder: pathlib.Path, step: int) -> dict:
    """What a checkpoint says of what it was trained with; empty for one that `Model.save` wrote."""
    import orbax.checkpoint as ocp

    path = (folder / "checkpoints" / str(step) / "meta").absolute()
    if not path.is_dir():
        return {}
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(path)


READERS = [
    (_is_workdir, _load_workdir), (loading.is_published, _load_published), (peft.is_peft, _load_adapted),
]  # fmt: skip
"""Which folders can be read: (recognises(folder), reader(folder, dtype, step, placement, progress, unrolled) -> Model);
the first that fits reads."""


make_callable(__name__, load)
