"""What is published as a `fmjax.load.Model`."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from fmjax import hub
from fmjax.assemble import build_weights, check_codecs, param_spec
from fmjax.checkpoint_files import complete_steps, load_carry, load_params
from fmjax.config import build, load_workdir_config
from fmjax.data.tokenizers.gguf import read_gguf_tokenizer
from fmjax.data.tokenizers.loading import has_tokenizer, load_tokenizer
from fmjax.data.tokenizers.published_settings import is_id
from fmjax.errors import CheckpointError, ConfigError, InputError, TokenizerError
from fmjax.gguf_file import is_gguf
from fmjax.inference import decoding
from fmjax.inference.model import Model
from fmjax.interop import gguf
from fmjax.interop.carried import carried_params, is_carried, source_of
from fmjax.interop.family import TOKEN_IDS, different_fields
from fmjax.interop.importer import PARTS, Published, open_folder
from fmjax.interop.preprocessor import read_codecs
from fmjax.interop.published_objective import read_objective
from fmjax.interop.weights import flatten
from fmjax.layers.weights import merged
from fmjax.models import MODELS
from fmjax.models.state import STATE_KEY, kept_state, state_shapes
from fmjax.parallel.placement import Placement

log = logging.getLogger("fmjax")

EXPECTED = (
    "expected the workdir of a run or a folder written by Model.save, with config.json and checkpoints/; a Hugging "
    "Face folder, with config.json and model.safetensors or with model_index.json and folders of parts; a GGUF "
    "file; or a hub id, 'org/name' or 'org/name/FILE.gguf'"
)


def find_folder(path: str | pathlib.Path) -> pathlib.Path:
    """The folder at a path, or, where a text is no path that exists but can be a hub id, that model, downloaded.

    Raises InputError where there is neither.
    """
    folder = pathlib.Path(path).expanduser()
    if folder.exists():
        return folder
    if not hub.is_hub_id(path):
        full = hub.full_id(str(path))
        hint = "" if full is None else f". Hub ids have an organisation in front: did you mean {full!r}?"
        raise InputError(f"{str(path)!r} does not exist; {EXPECTED}{hint}")
    return hub.download(str(path))


def is_published(folder: pathlib.Path) -> bool:
    """Whether a path is to be read as published: a folder with a config.json and no checkpoints of ours, or with
    folders of parts, or GGUF."""
    if is_gguf(folder) or (folder / PARTS).is_file():
        return True
    return (folder / "config.json").is_file() and not (folder / "checkpoints").is_dir()


def open_published(path: str | pathlib.Path, part: str | None = None) -> Published:
    """A published folder or file, or a part of it, checked; its weights are not read.

    Raises InputError subclasses as what opens it.
    """
    path = pathlib.Path(path)
    if not is_gguf(path):
        return open_folder(path, part)
    if part is not None:
        raise InputError(f"{str(path)!r} is a GGUF file, which is of one part; leave part = {part!r} out")
    return gguf.open_file(path)


def model_section(path: str | pathlib.Path) -> dict:
    """The section `model` of a training config that begins with a model's parameters; for config files.

    Args:
      path: a published folder or file, a hub id or a run; give it as `train.init_from` too.

    Raises InputError subclasses as `open_published`.
    """
    folder, _ = hub.checkpoint_step(find_folder(path))
    return open_published(folder).section if is_published(folder) else load_workdir_config(folder)["model"]


def stored_dtype(folder: pathlib.Path) -> str:
    """The dtype of a model's parameters as they are stored: that of most of the published ones, float32 in a run's."""
    return open_published(folder).dtype if is_published(folder) else "float32"


def initial_params(path: str, module, shapes, shardings, fresh=None):
    """Parameters of a saved or published model for a module that is to be trained further, as `shardings` says.

    fresh: `fmjax.interop.carried.carried_params`, which makes them of another model's where the module can; None: of no
      other model.

    Raises ConfigError, listing the fields, where the model is another function than `module`; CheckpointError for
    damaged weights.
    """
    folder, step = hub.checkpoint_step(find_folder(path))
    published = open_published(folder) if is_published(folder) else None
    section = load_workdir_config(folder).get("model") if published is None else published.section
    if not isinstance(section, dict):
        raise ConfigError(f"train.init_from = {path!r}: its config.json has no section 'model'; is it a run's?")
    other = build(section, MODELS)
    part, source = (None, other) if fresh is None else source_of(module, other)
    rows = different_fields(module, source)
    # What depends on these shows in the shapes; a vocabulary that is not stated is the tokenizer's.
    rows = [(k, here, there) for k, here, there in rows if k != "max_length" and (k, there) != ("vocab_size", None)]
    if fresh is not None and (rows or part is not None) and all(is_carried(module, key) for key, *_ in rows):
        params = _whole(folder, step, published, other)
        params = params if part is None else params[part]
        return carried_params(path, module, source, params, shapes, shardings, fresh)
    if rows:
        listed = "\n".join(f"  model.{key}: {there!r} there, {here!r} in this run" for key, here, there in rows)
        raise ConfigError(f"train.init_from = {path!r} is another model:\n{listed}")
    if published is not None:
        return published.params(shapes, shardings)
    weights = build_weights(load_workdir_config(folder))
    if weights is None:
        found, _ = load_params(folder, step, shardings=shardings)
    else:
        found, _ = load_params(folder, step, shardings=placed(module, None, weights)[1])
        found = jax.device_put(merged(found), shardings)
    _check_shapes(found, shapes, path)
    return found


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
    that begins with it; empty for one that was never published.

    Of a run with another tokenizer, whose ids stand for other tokens, the architecture alone.
    """
    folder, _ = hub.checkpoint_step(find_folder(path))
    if is_published(folder):
        kept = _kept(open_published(folder))
    else:
        kept = load_workdir_config(folder).get("published", {})
    theirs = find_tokenizer(folder)
    if tokenizer is not None and theirs is not None and tokenizer.fingerprint != theirs.fingerprint:
        kept = {key: value for key, value in kept.items() if key == "architecture"}
    return kept


def _check_shapes(found, shapes, path) -> None:
    theirs, ours = ({name: leaf.shape for name, leaf in flatten(tree).items()} for tree in (found, shapes))
    for name in {*theirs, *ours}:
        if theirs.get(name) != ours.get(name):
            raise ConfigError(
                f"train.init_from = {path!r}: parameter {name!r} has shape {theirs.get(name)} there, {ours.get(name)} "
                "in this run"
            )


def load_published(
    folder: pathlib.Path, dtype: str, placement: Placement | None = None, progress: bool = False,
    unrolled: bool = False, part: str | None = None,
) -> Model:  # fmt: skip
    """The `fmjax.load.Model` of a published folder.

    Args:
      part: the name of one of its parts, which alone is loaded.
      dtype: of the parameters and of what is computed with them.
      placement: the mesh over which parameters are split; None is the first device alone.
      unrolled: in the form to decode with, as `Model.unrolled` gives it, read into its places at once. A module that
        has no such form, and one that is split over a mesh, come as they are.

    Raises InputError subclasses for what is not supported, missing or damaged.
    """
    published = open_published(folder, part)
    module, folder = published.module, published.path
    tokenizer = find_tokenizer(folder)
    check_tokenizer(tokenizer, module, folder)
    shapes, shardings = placed(module, placement)
    turned = frozenset()
    if unrolled and placement is None and hasattr(module, "unrolled"):
        plain, device = module, jax.tree.leaves(shardings)[0]
        module = plain.clone(scan_layers=False)
        shapes = jax.eval_shape(lambda params: plain.unrolled(params)[1], shapes)
        shardings = jax.tree.map(lambda _: device, shapes)
        turned = {path for path, leaf in flatten(shapes).items() if decoding.is_turned(path, leaf.shape, dtype)}
    params = published.params(shapes, shardings, dtype, progress, turned)
    state = published.state(placed_state(module, placement)[1])
    module, params = cast(module, params, dtype)
    config = {"model": published.section, "published": _kept(published)}
    if objective := read_objective(published.family, published.values, published.source):
        config["objective"] = objective
    add_bos = tokenizer is not None and tokenizer.add_bos
    codecs = {} if is_gguf(folder) else read_codecs(folder, published.values, module, published.source)
    if published.family.read_codec is not None:
        made = published.family.read_codec(published.values, module, published.source)
        codecs |= {} if made is None else {"image": made}
    model = Model(
        module, params, config, tokenizer, source=str(folder), add_bos=add_bos, placement=placement, codecs=codecs,
        carry={STATE_KEY: state} if state else None,
    )  # fmt: skip
    check_codecs(codecs, module, model.objective)
    return model


def cast(module: nn.Module, params, dtype: str) -> tuple[nn.Module, Any]:
    """Module, with those that it has as fields, and parameters that compute in `dtype`; integers stay as they are."""
    params = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
    return _in_dtype(module, dtype), params


def _in_dtype(module: nn.Module, dtype: str) -> nn.Module:
    fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.name not in ("parent", "name")}
    changed = {name: _in_dtype(value, dtype) for name, value in fields.items() if isinstance(value, nn.Module)}
    if fields.get("dtype", dtype) != dtype:
        changed["dtype"] = dtype
    return module.clone(**changed) if changed else module


def published_module(folder: pathlib.Path):
    """The module of a published folder."""
    return open_published(folder).module


def placed(module, placement: Placement | None, weights=None):
    """(shapes, shardings) of a module's parameters, as `weights` (`fmjax.assemble.build_weights`) makes them; without a
    placement, whole on the first device.

    Raises ConfigError where a parameter cannot be sharded as the placement says, or the module does not say what it
    takes.
    """
    if not hasattr(module, "example"):
        raise ConfigError(
            f"{type(module).__name__} does not say what it takes, which its parameters' shapes follow from: give it a "
            "method example() that returns its inputs by name, such as "
            '{"tokens": jax.ShapeDtypeStruct((1, 1), jnp.int32)}'
        )
    shapes, axes = param_spec(module, module.example(), weights)
    if placement is not None:
        return shapes, placement.shardings(shapes, axes)
    device = SingleDeviceSharding(jax.local_devices()[0])
    return shapes, jax.tree.map(lambda _: device, shapes)


def placed_state(module, placement: Placement | None):
    """(shapes, shardings) of a module's state (`fmjax.models.state`): whole on each device of the placement."""
    shapes, device = state_shapes(module), SingleDeviceSharding(jax.local_devices()[0])
    where = device if placement is None else NamedSharding(placement.mesh, PartitionSpec())
    return shapes, jax.tree.map(lambda _: where, shapes)


def find_tokenizer(folder: pathlib.Path):
    """The tokenizer in a folder or GGUF file, or None where there is none."""
    if is_gguf(folder):
        return read_gguf_tokenizer(folder)
    return load_tokenizer(folder) if has_tokenizer(folder) else None


def check_tokenizer(tokenizer, module, folder) -> None:
    """Raises TokenizerError when a tokenizer's vocabulary has more tokens than the module's embedding has rows.

    Added tokens without a row, which some published folders have (Gemma 3's for images), are warned of: texts with
    them are refused.
    """
    rows = getattr(module, "vocab_size", None)
    if tokenizer is None or rows is None or rows >= tokenizer.vocab_size:
        return
    if rows < tokenizer.vocab_size - tokenizer.num_added:
        raise TokenizerError(
            f"{str(folder)!r}: the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary only {rows}; "
            "is the tokenizer from another model?"
        )
    names = []
    for i in range(rows, tokenizer.vocab_size):
        with contextlib.suppress(TokenizerError):  # ids may have gaps
            names.append(tokenizer.token(i))
    log.warning("%s: the model has no row for these added tokens: %s", folder, ", ".join(map(repr, names[:8])))


def _kept(published: Published) -> dict:
    """What a config.json says beside the model, for writing it again."""
    kept = {"architecture": published.family.architectures[0]}
    kept |= {key: published.values[key] for key in TOKEN_IDS if key in published.values}
    if published.generation is not None:
        kept["generation"] = published.generation
    # As in transformers, what config.json says of generation counts only where there is no generation_config.json.
    source = published.path / "generation_config.json" if "generation" in kept else published.source
    banned = banned_ids(kept | kept.get("generation", published.values), str(source))
    return kept | ({"banned_ids": list(banned)} if banned else {})


def banned_ids(values: Mapping[str, Any], source: str) -> tuple[int, ...]:
    """The tokens that a published model never draws: single ones of `bad_words_ids`, but EOS, and `suppress_tokens`.

    What else a file says of single tokens is not honoured, and warned of.
    Raises ConfigError for values that are no lists of ids.
    """
    sequences, suppressed = (values.get(key) or [] for key in ("bad_words_ids", "suppress_tokens"))
    single = [s[0] for s in sequences if isinstance(s, list) and len(s) == 1] if isinstance(sequences, list) else None
    if single is None or not all(isinstance(s, list) and s and all(map(is_id, s)) for s in sequences):
        raise ConfigError(f"{source}: bad_words_ids = {sequences!r}; expected lists of token ids")
    if not isinstance(suppressed, list) or not all(map(is_id, suppressed)):
        raise ConfigError(f"{source}: suppress_tokens = {suppressed!r}; expected a list of token ids")
    ignored = {"bad_words_ids": [s for s in sequences if len(s) > 1]}
    ignored |= {key: values.get(key) for key in ("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")}
    listed = ", ".join(f"{key} = {value}" for key, value in ignored.items() if value is not None and value != [])
    if listed:
        log.warning("%s: generation does not honour %s", source, listed)
    eos = values.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [eos]
    return tuple(sorted({*suppressed} | {i for i in single if i not in ends}))
