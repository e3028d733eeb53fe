"""What a run begins with that goes on from a saved or a published model (`train.init_from`)."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fmjax import hub
from fmjax.assemble import build_weights
from fmjax.checkpoint_files import complete_steps, load_carry, load_params
from fmjax.config import build, load_workdir_config
from fmjax.data.tokenizers.published_settings import stated_eos_ids
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.interop.carried import carried_params, completed_params, is_carried, place_of, source_of
from fmjax.interop.family import different_fields
from fmjax.interop.importer import Published
from fmjax.interop.layered import as_deep, fewer_layers
from fmjax.interop.loading import find_folder, find_tokenizer, is_published, kept, open_published, placed
from fmjax.interop.published_objective import OBJECTIVE
from fmjax.interop.weights import flatten, unflatten
from fmjax.layers.quantized import QTensor, quantization_of
from fmjax.layers.weights import is_weight, merged, value_of
from fmjax.models import MODELS
from fmjax.models.state import kept_state
from fmjax.parallel.sharding import path_name

log = logging.getLogger("fmjax")


def initial_params(
    path: str, module, shapes, shardings, fresh=None, parts: Sequence[str] = (), layers: Sequence[int] | str = "",
    stored: Mapping[str, Callable[[jax.Array], Any]] | None = None,
):  # fmt: skip
    """Parameters of a saved or published model for a module that is to be trained further, as `shardings` says.

    fresh: `fmjax.interop.carried.carried_params`, which makes them of another model's where the module can; None: of no
      other model.
    parts: further models, for other parts of a module that is made of several.
    layers: which of the model's layers a module of fewer begins with, as for `fmjax.layers.layer_map.layer_map`; "": it
      has as many.
    stored: by path, what makes of a parameter what is kept (`fmjax.adapt.base.Weights`): where the model is all of
      `module`, before the next of these is read.

    Raises ConfigError, listing the fields, where the model is another function than `module`, or two are for one part;
    CheckpointError for damaged weights.
    """
    folder, step, published, other = _opened(path)
    place = None if fresh is None else place_of(module, other)
    if parts and place is None:
        raise ConfigError(
            f"train.init_parts = {parts}, and train.init_from = {path!r} is all of the model; leave init_parts out"
        )
    if place is not None:
        taken = {}
        for one in (path, *parts):
            name, params = _part(one, module, layers)
            if name in taken:
                raise ConfigError(f"train.init_parts: {one!r} is for model.{name}, which begins with another model")
            taken[name] = params
        return _stored(completed_params(path, taken, shapes, shardings, fresh), stored)
    if layers:
        params = _fewer(path, module, (folder, step, published, other), layers)
        _check_shapes(params, shapes, path)
        return _stored(jax.device_put(params, shardings), stored)
    part, source = (None, other) if fresh is None else source_of(module, other)
    rows = _differing(module, source)
    if part is not None and part == getattr(other, "SERVES", None):
        _check_same(path, "model", rows)
        found = completed_params(path, _whole(folder, step, published, other)[part], shapes, shardings, fresh)
        return _stored(found, stored)
    if fresh is not None and (rows or part is not None) and all(is_carried(module, key) for key, *_ in rows):
        params = _whole(folder, step, published, other)
        params = params if part is None else params[part]
        return _stored(carried_params(path, module, source, params, shapes, shardings, fresh), stored)
    _check_same(path, "model", rows)
    if published is not None:
        return published.params(shapes, shardings, stored=stored)
    weights = build_weights(load_workdir_config(folder))
    if weights is None and not any(isinstance(x, QTensor) for x in flatten(shapes).values()):
        found, _ = load_params(folder, step, shardings=shardings, stored=stored)
        _check_shapes(found, shapes, path)
        return found
    found, _ = load_params(folder, step, shardings=placed(module, None, weights)[1])
    found = jax.device_put(_as_wanted(path, found, shapes), shardings)
    _check_shapes(found, shapes, path)
    return _stored(found, stored)


def _stored(params, stored: Mapping[str, Callable[[jax.Array], Any]] | None):
    """Parameters with what `stored` makes of them, one after another."""
    if not stored:
        return params
    leaves = flatten(params)
    del params
    for path, make in stored.items():
        leaves[path] = jax.block_until_ready(make(leaves[path]))
    return unflatten(leaves)


def _as_wanted(path: str, found, shapes):
    """Parameters whole, but for those that are to be of few bits, which must be so already."""

    def one(name, wanted, leaf):
        if not isinstance(wanted, QTensor):
            return value_of(leaf)
        if not isinstance(leaf, QTensor) or quantization_of(leaf) != quantization_of(wanted):
            how = str(quantization_of(leaf)) if isinstance(leaf, QTensor) else "of floats"
            raise ConfigError(
                f"train.init_from = {path!r}: {path_name(name)!r} is {how} there, and weights.beneath says "
                f"{quantization_of(wanted)}; take that of the model (fmjax.interop.initial.packed_section_of)"
            )
        return leaf

    is_packed = lambda x: isinstance(x, QTensor)
    wanted, structure = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=is_packed)
    leaves = jax.tree.leaves(found, is_leaf=is_weight)
    if len(leaves) != len(wanted):
        return jax.tree.map(value_of, found, is_leaf=is_weight)  # refused by its shapes
    return structure.unflatten([one(name, shape, leaf) for (name, shape), leaf in zip(wanted, leaves)])


def packed_section_of(path: str | pathlib.Path) -> dict:
    """The section `weights`, or `weights.beneath` of adapters, of a training config that begins with a model of few
    bits and keeps it so; for config files.

    Args:
      path: what `fmjax.compress` made, or a published folder or file of few bits; give it as `train.init_from` too.

    Raises InputError for a model of floats, or one whose layers differ in their bits.
    """
    folder, _ = hub.checkpoint_step(find_folder(path))
    if not is_published(folder):
        section = load_workdir_config(folder).get("weights") or {}
        if section.get("name") == "packed":
            return section
    else:
        published = open_published(folder)
        if packed := published.quantizations(placed(published.module, None)[0]):
            return {"name": "packed", "kernels": {name: dataclasses.asdict(kind) for name, kind in packed.items()}}
    raise InputError(f"{str(path)!r} is no model of few bits alike in all layers; leave weights.beneath out")


def _opened(path: str):
    """(folder, step, what is published there or None, its module)."""
    folder, step = hub.checkpoint_step(find_folder(path))
    published = open_published(folder) if is_published(folder) else None
    section = load_workdir_config(folder).get("model") if published is None else published.section
    if not isinstance(section, dict):
        raise ConfigError(f"train.init_from = {path!r}: its config.json has no section 'model'; is it a run's?")
    return folder, step, published, build(section, MODELS)


def _fewer(path: str, module, opened, layers, section: str = "model"):
    """Parameters of the model at `path` with those of its layers that `module`, of fewer, begins with."""
    *where, other = opened
    _check_same(path, section, _differing(as_deep(module, other), other))
    return fewer_layers(_whole(*where, other), module, other, layers)


def _part(path: str, module, layers: Sequence[int] | str) -> tuple[str, Any]:
    """(field of `module` that begins with the model there, all parameters of that model, or those of these layers)."""
    folder, step, published, other = _opened(path)
    served = getattr(other, "SERVES", None)
    source = other if served is None else getattr(other, served)
    place = place_of(module, source)
    inside = getattr(module, place)  # the same function, and it knows the size of the vocabulary
    if layers and served is None:
        return place, _fewer(path, inside, (folder, step, published, other), layers, f"model.{place}")
    _check_same(path, f"model.{place}", _differing(inside, source))
    if served is None:
        return place, _whole(folder, step, published, inside)
    return place, _whole(folder, step, published, other)[served]


def _differing(module, other) -> list[tuple[str, Any, Any]]:
    """(field, value here, value there) where another model is another function."""
    # What depends on these shows in the shapes; a vocabulary that is not stated is the tokenizer's.
    rows = different_fields(module, other)
    return [(k, here, there) for k, here, there in rows if k != "max_length" and (k, there) != ("vocab_size", None)]


def _check_same(path: str, section: str, rows: list[tuple[str, Any, Any]]) -> None:
    if rows:
        listed = "\n".join(f"  {section}.{key}: {there!r} there, {here!r} in this run" for key, here, there in rows)
        raise ConfigError(f"train.init_from = {path!r} is another model:\n{listed}")


def _whole(folder: pathlib.Path, step: int | None, published: Published | None, module):
    """All parameters of a model, on one device."""
    if published is not None:
        return published.params(*placed(module, None))
    weights = build_weights(load_workdir_config(folder))
    found, _ = load_params(folder, step, shardings=placed(module, None, weights)[1])
    return found if weights is None else merged(found)


def initial_state(path: str, shardings) -> dict[str, Any]:
    """The module's state (`fmjax.models.state`) of the model that `initial_params` reads, a tree like `shardings`.

    Raises CheckpointError where a run's carry has none.
    """
    folder, step = hub.checkpoint_step(find_folder(path))
    if is_published(folder):
        return open_published(folder).state(shardings)
    found = kept_state(load_carry(folder, complete_steps(folder / "checkpoints")[-1] if step is None else step))
    if jax.tree.structure(found) != jax.tree.structure(shardings):
        raise CheckpointError(f"train.init_from = {path!r}: its carry lacks the module's {', '.join(shardings)}")
    return jax.device_put(found, shardings)


def check_initial_tokenizer(path: str, tokenizer, allow_other: bool) -> None:
    """Raises ConfigError where the data of a run that begins with the parameters at `path` are cut by another tokenizer
    than these were trained with, unless that is allowed. Without a tokenizer on either side there is nothing to say."""
    theirs = find_tokenizer(hub.checkpoint_step(find_folder(path))[0])
    if allow_other or tokenizer is None or theirs is None or tokenizer.fingerprint == theirs.fingerprint:
        return
    raise ConfigError(
        f"train.init_from = {path!r} was trained with another tokenizer ({theirs.source}) than data.tokenizer gives "
        f"({tokenizer.source}): an id would stand for another piece of text. Set data.tokenizer={path}, or "
        "train.allow_other_tokenizer=True to begin with these parameters all the same"
    )


def initial_published(path: str, tokenizer) -> dict:
    """What the model at `path` says beside its weights, such as end tokens, bans and generation settings, for a run
    that begins with it; empty for one that was never published. How its pipeline draws samples is not the run's.

    Of a run with another tokenizer, whose ids stand for other tokens, the architecture alone.
    """
    folder, _ = hub.checkpoint_step(find_folder(path))
    if is_published(folder):
        found = kept(open_published(folder))
    else:
        found = load_workdir_config(folder).get("published", {})
    found = {key: value for key, value in found.items() if key != OBJECTIVE}
    theirs = find_tokenizer(folder)
    if tokenizer is not None and theirs is not None and tokenizer.fingerprint != theirs.fingerprint:
        found = {key: value for key, value in found.items() if key == "architecture"}
    return found


def with_stop_ids(published: dict, stop_ids: Sequence[int], tokenizer) -> dict:
    """What a run keeps beside its weights (`initial_published`), where what is generated ends at these ids too.

    A base model that learns chats, say, learns to end a turn with another token than a document.
    """
    generation = published.get("generation")
    stated = stated_eos_ids({"generation_config.json": generation or {}, "config.json": published})
    known = {*(stated or ()), getattr(tokenizer, "eos_id", None)}
    if known.issuperset(stop_ids):
        return published
    ends = sorted({*stop_ids, *known} - {None})
    log.info("generation ends at %s from now on, as replies do in these data", ", ".join(map(tokenizer.token, ends)))
    if generation is not None:
        return {**published, "generation": {**generation, "eos_token_id": ends}}
    others = {f"{name}_token_id": getattr(tokenizer, f"{name}_id", None) for name in ("bos", "pad")}
    return {**({} if published else others), **published, "eos_token_id": ends}


def _check_shapes(found, shapes, path) -> None:
    theirs, ours = ({name: leaf.shape for name, leaf in flatten(tree).items()} for tree in (found, shapes))
    for name in {*theirs, *ours}:
        if theirs.get(name) != ours.get(name):
            raise ConfigError(
                f"train.init_from = {path!r}: parameter {name!r} has shape {theirs.get(name)} there, {ours.get(name)} "
                "in this run"
            )
