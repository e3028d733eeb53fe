"""What is published as a `fmjax.load.Model`."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from fmjax import hub
from fmjax.adapt.packed import Packed
from fmjax.assemble import check_codecs, param_spec
from fmjax.config import load_workdir_config
from fmjax.data.tokenizers.gguf import read_gguf_tokenizer
from fmjax.data.tokenizers.loading import has_tokenizer, load_tokenizer
from fmjax.data.tokenizers.published_settings import is_id
from fmjax.errors import ConfigError, InputError, TokenizerError
from fmjax.gguf_file import is_gguf
from fmjax.inference import decoding
from fmjax.inference.model import Model
from fmjax.interop import gguf
from fmjax.interop.family import TOKEN_IDS, TOKENIZER
from fmjax.interop.importer import Published
from fmjax.interop.opening import PARTS, open_folder
from fmjax.interop.preprocessor import read_codecs
from fmjax.interop.published_objective import OBJECTIVE, read_objective
from fmjax.interop.weights import flatten
from fmjax.layers.weights import in_dtype
from fmjax.models.state import STATE_KEY, state_shapes
from fmjax.objectives.base import OtherModel
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


def load_published(
    folder: pathlib.Path, dtype: str, placement: Placement | None = None, progress: bool = False,
    unrolled: bool = False, part: str | None = None, quantized: bool = False,
) -> Model:  # fmt: skip
    """The `fmjax.load.Model` of a published folder.

    Args:
      part: the name of one of its parts, which alone is loaded.
      dtype: of the parameters and of what is computed with them.
      placement: the mesh over which parameters are split; None is the first device alone.
      unrolled: in the form to decode with, as `Model.unrolled` gives it, read into its places at once. A module that
        has no such form, and one that is split over a mesh, come as they are.
      quantized: weights that are published in few bits stay so; layer by layer (`scan_layers` is False) where those of
        a stack differ in it.

    Raises InputError subclasses for what is not supported, missing or damaged.
    """
    published = open_published(folder, part)
    module, folder = published.module, published.path
    tokenizer = find_tokenizer(folder)
    check_tokenizer(tokenizer, module, folder)
    shapes, shardings = placed(module, placement)
    turned, section = frozenset(), published.section
    packed = published.quantizations(shapes) if quantized else {}
    if quantized and packed == {}:
        raise InputError(f"{str(folder)!r} has no weights of few bits to keep; leave quantized out")
    if packed is None and hasattr(module, "scan_layers"):  # its layers differ in how they are quantized
        module, section = module.clone(scan_layers=False), section | {"scan_layers": False}
        shapes, shardings = placed(module, placement)
        packed = published.quantizations(shapes)
    if packed is None:
        raise InputError(f"{str(folder)!r}: layers of one stack are quantized each in its way; leave quantized out")
    if packed:
        shapes, shardings = placed(module, placement, Packed(packed))
    elif unrolled and placement is None and hasattr(module, "unrolled"):
        plain, device = module, jax.tree.leaves(shardings)[0]
        module = plain.clone(scan_layers=False)
        shapes = jax.eval_shape(lambda params: plain.unrolled(params)[1], shapes)
        shardings = jax.tree.map(lambda _: device, shapes)
        turned = {path for path, leaf in flatten(shapes).items() if decoding.is_turned(path, leaf.shape, dtype)}
    params = published.params(shapes, shardings, dtype, progress, turned)
    state = published.state(placed_state(module, placement)[1])
    module, params = cast(module, params, dtype)
    config = {"model": section, "published": kept(published)}
    objective, codecs = described(published)
    config |= {"objective": objective} if objective else {}
    if objective and (part := published.family.objective_part):
        config["published"][OBJECTIVE] = {"section": objective, "values": published.values[part]}
    add_bos = tokenizer is not None and tokenizer.add_bos
    model = Model(
        module, params, config, tokenizer, source=str(folder), add_bos=add_bos, placement=placement, codecs=codecs,
        carry={STATE_KEY: state} if state else None,
        open_other=functools.partial(_open_beside, folder, objective, dtype, placement),
    )  # fmt: skip
    check_codecs(codecs, module, model.objective)
    return model


def _open_beside(folder: pathlib.Path, objective, dtype: str, placement, name: str) -> OtherModel:
    """The model that the objective of a published folder calls `name`: a folder in it, or what its path says."""
    path = (objective or {}).get(name)
    if path is None or not (folder / path).is_dir():
        raise InputError(f"{str(folder)!r} has no {name}: it names {path!r}, and there is no such folder in it")
    model = load_published(folder / path, dtype, placement)
    return OtherModel(model.module, model.params, model.state)


def described(published: Published) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(the section `objective`, None where none is known; the codecs by modality) of a published model, whose weights
    are not read."""
    family, values, module, source = published.family, published.values, published.module, published.source
    codecs = {} if is_gguf(published.path) else read_codecs(published.path, values, module, source)
    made = None if family.read_codec is None else family.read_codec(values, module, source)
    return read_objective(family, values, source), codecs | ({} if made is None else {"image": made})


def cast(module: nn.Module, params, dtype: str) -> tuple[nn.Module, Any]:
    """Module, with those that it has as fields, and parameters that compute in `dtype`
    (`fmjax.layers.weights.in_dtype`)."""
    return _in_dtype(module, dtype), in_dtype(params, dtype)


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
    """The tokenizer in a folder, that of a folder of parts in a folder of its own, or in a GGUF file; None where there
    is none."""
    if is_gguf(folder):
        return read_gguf_tokenizer(folder)
    folder = folder / TOKENIZER if (folder / PARTS).is_file() else folder
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


def kept(published: Published) -> dict:
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
