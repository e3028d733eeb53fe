"""What a published family is to fmjax: architectures, a table of weights, and one of the keys of its config.

A model of several parts is a family whose parts are families: their configs lie in its config under the parts' keys,
their tensors' names have the parts' prefixes, and its module has them as fields.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from fmjax.config import build
from fmjax.errors import ConfigError, InputError
from fmjax.interop.config_keys import read_keys, write_keys
from fmjax.interop.published_config import PublishedConfig
from fmjax.interop.weights import Fixed, Weight
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models import MODELS
from fmjax.registry import nearest

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Keys of the special tokens in a published config.json."""


TOKENIZER = "tokenizer"
"""The folder of a tokenizer beside those of parts."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One published architecture.

    Attributes:
      architectures: names in config.json's `architectures` that have this table; exports carry the first.
      model_type: the `model_type` of config.json; empty where the class is named by `_class_name` (diffusers).
      model: the name of the fmjax model, as in a config's `model.name`.
      table: its weights, without those of its parts.
      keys: entries of `fmjax.interop.config_keys`, between config.json and the config's section `model`. What they
        cannot express is left out: whether a module is represented exactly is found by reading back what was written.
      prefix: first part of names that files of the bare model, without a head, lack.
      is_bare: whether it is the bare model: its names lack `prefix`, and files may have it.
      ignored: regular expressions of tensors that files may hold and that are no weights of this model: buffers.
      renamed: (old ending, new ending) of names as older files have them.
      respelt: (other part, part) of names as some writers have them.
      fixed: tensors that no parameter holds, since the module says what they are: compared when read, and written.
      objective_keys: as `keys`, between config.json and the section `objective`; `objective` has its name.
      objective_class: in_folders, where the objective's keys lie in a folder of their own beside the parts': the class
        that `model_index.json` names there; empty for none.
      objective_part: the name of that folder; its file is called NAME_config.json.
      parts: families that it is made of.
      beside: parts in folders of their own that the objective names by path, as the name of their folder, and that are
        not in the module, such as the first stage of latents: field of the objective to part. A folder may lack them.
      write_beside: the module of such a part as it is written: a function of a `fmjax.load.Model` and that module,
        which raises ConfigError for what the folder cannot say; None writes it as it is.
      in_folders: whether each part lies in a folder of its own, called as the part, beside `model_index.json`.
      tokenizer_class: in_folders, of a family whose captions are read by a tokenizer in the folder TOKENIZER: the class
        that `model_index.json` names there; empty for none.
      check_tokenizer: raises TokenizerError for a tokenizer that is none of that class, before a model is written; None
        where any will do.
      by_tokenizer: what else the parts' configs say by that tokenizer: a function of (values of config.json, tokenizer)
        that gives the values.
      objective: the section `objective` of what it was trained for, from which abilities follow; None for none.
      objective_beside: what else that section has by the keys of its parts: a function of the values of config.json.
      names_itself: whether its keys say in config.json which architecture it is (timm).
      read_codec, write_codec: of images, where config.json tells how they are prepared: functions of (values of
        config.json, module, source) and of a codec, which gives keys.
      processor: class that `preprocessor_config.json` names, for models that read images; empty for none.
      any_image_size: whether its config.json need not say an `image_size`: it is that of `preprocessor_config.json`.
    """

    architectures: tuple[str, ...]
    model_type: str
    model: str
    table: Sequence[Weight] = ()
    keys: Sequence[Any] = ()
    prefix: str = ""
    is_bare: bool = False
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    respelt: tuple[tuple[str, str], ...] = ()
    fixed: tuple[Fixed, ...] = ()
    objective_keys: Sequence[Any] = ()
    objective_class: str = ""
    objective_part: str = ""
    parts: tuple["Part", ...] = ()
    beside: Mapping[str, "Part"] = dataclasses.field(default_factory=dict)
    write_beside: Callable[[Any, nn.Module], nn.Module] | None = None
    in_folders: bool = False
    tokenizer_class: str = ""
    check_tokenizer: Callable[[Any], None] | None = None
    by_tokenizer: Callable[[Mapping[str, Any], Any], dict[str, Any]] | None = None
    objective: Mapping[str, Any] | None = None
    objective_beside: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    names_itself: bool = False
    read_codec: Callable | None = None
    write_codec: Callable | None = None
    processor: str = ""
    any_image_size: bool = False

    def __post_init__(self):
        if self.in_folders and self.table:
            raise ConfigError(f"family {self.architectures[0]!r} has weights in_folders of parts: leave table out")

    @property
    def passed_over(self) -> tuple[str, ...]:
        """`ignored`, with that of its parts."""
        return self.ignored + tuple(pattern for part in self.parts for pattern in part.family.passed_over)

    @property
    def header(self) -> dict[str, Any]:
        """What config.json says of the class."""
        name = self.architectures[0]
        if self.names_itself:
            return {}
        return {"architectures": [name], "model_type": self.model_type} if self.model_type else {"_class_name": name}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a family.

    Attributes:
      name: by which it is asked for: `fmjax.load(folder, part="vision")`.
      family: what it is.
      key: of the whole's config.json, under which its own lies; in folders of their own, its name.
      prefix: of its tensors' names in the whole's files.
      field: of the whole's module, under which its module and parameters lie; empty where it is all there is of it.
    """

    name: str
    family: Family
    key: str
    prefix: str
    field: str

    def module_of(self, module):
        """Its module in the whole's."""
        return getattr(module, self.field) if self.field else module

    def inside(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Of what lies under names of the whole, what is the part's, under its own."""
        return {n.removeprefix(self.prefix): value for n, value in found.items() if n.startswith(self.prefix)}


def part_in_folder(name: str, family: Family, field: str | None = None) -> Part:
    """A part of a family with `in_folders`; `field` is its name where not given."""
    return Part(name, family, key=name, prefix=f"{name}.", field=name if field is None else field)


def fixed_of(family: Family, module, prefix: str = "") -> dict[str, Callable[[], np.ndarray]]:
    """The fixed tensors of a family and its parts: a function by name that gives the numbers."""
    found = {prefix + one.name: functools.partial(one.make, module) for one in family.fixed}
    for part in family.parts:
        found |= fixed_of(part.family, part.module_of(module), prefix + part.prefix)
    return found


def table_of(family: Family, module, path: str = "", prefix: str = "") -> list[Weight]:
    """The lines of a family's table and its parts' as a module has them, which lies at `path` of a larger one, whose
    tensors' names have `prefix` in front."""
    found = [weight.of(module, path, prefix) for weight in family.table]
    for part in family.parts:
        below = f"{path}/{part.field}".strip("/")
        found += table_of(part.family, part.module_of(module), below, prefix + part.prefix)
    return found


MODULES = (
    "gpt", "llama", "qwen", "gemma", "bert", "marian", "vit", "dit", "resnet", "clip", "siglip", "mae", "image_gpt",
    "swin", "timm_vit", "internimage", "unet", "autoencoder_kl", "prior_transformer", "mmdit", "stable_diffusion",
)  # fmt: skip
"""Files of this folder with families; other packages name theirs as entry points of the group `fmjax.families`."""

_REGISTERED: list[Family] = []


def register(family: Family) -> None:
    """Adds a family for this process, as in a notebook.

    Raises InputError where another one has the name of one of its architectures.
    """
    _check_names([*families(), family])
    _REGISTERED.append(family)


def families() -> list[Family]:
    """Every family there is: ours, those of installed packages, and registered ones.

    Raises InputError for an entry point that cannot be loaded or is no family, and for a name that two have.
    """
    found = [f for name in MODULES for f in importlib.import_module(f"fmjax.interop.{name}").FAMILIES]
    found += [_load(point) for point in importlib.metadata.entry_points(group="fmjax.families")]
    found += _REGISTERED
    _check_names(found)
    return found


def _load(point) -> Family:
    where = f"family {point.name!r} of the entry point {point.value!r}"
    try:
        found = point.load()
    except Exception as error:  # whatever another package does when it is imported
        raise InputError(
            f"{where} cannot be loaded: {type(error).__name__}: {error}; mend or uninstall the package"
        ) from error
    if not isinstance(found, Family):
        raise InputError(f"{where} is a {type(found).__name__}, expected a fmjax.interop.family.Family")
    return found


def _check_names(found: Sequence[Family]) -> None:
    names = [name for family in found for name in family.architectures]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two families have the architecture {name!r}; rename one")


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """The family of a config.json. Raises InputError, listing what there is, for one that is not supported."""
    known = {name: family for family in families() for name in family.architectures}
    named = class_of(config)
    if named is not None:
        if named in known:
            return known[named]
        # Classes share half of their names; only a misspelt one is meant to be another.
        hint = nearest(named, known, cutoff=0.9) + _other_heads(config.get("model_type"))
        raise InputError(
            f"{source}: architecture {named!r} is not supported{hint} Supported: {', '.join(sorted(known))}"
        )
    for family in known.values():
        if config.get("model_type") == family.model_type:
            return family
    if "model_type" not in config:
        raise InputError(
            f"{source} has neither 'architectures' nor 'model_type', so it is not the config of a published model; "
            "if it is a run's, the run has saved no checkpoint yet"
        )
    types = ", ".join(sorted({family.model_type for family in families() if family.model_type}))
    raise InputError(f"{source}: model_type {config['model_type']!r} is not supported; supported: {types}")


def class_of(config: Mapping[str, Any]) -> str | None:
    """The class that a config.json or `model_index.json` names; None where it names none."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named else config.get("_class_name", config.get("architecture"))


def _other_heads(model_type: Any) -> str:
    """A sentence for a class that is not supported, of a model type that is."""
    heads = [name for family in families() if family.model_type == model_type for name in family.architectures]
    if not heads:
        return ""
    return f" Of model_type {model_type!r} there {'are' if len(heads) > 1 else 'is'} {', '.join(heads)}."


def read_section(family: Family, values: Mapping[str, Any], names: Collection[str], source: str) -> dict[str, Any]:
    """The section `model` of an fmjax config for a config.json.

    Raises ConfigError naming an option that fmjax does not honour, with its value.
    """
    config = PublishedConfig(values, source)
    fields = read_keys(family.keys, config, names)
    for part in family.beside.values():
        config.raw(part.key)
    if family.objective_part:
        config.raw(family.objective_part)
    else:
        read_keys(family.objective_keys, config, names)  # ticked off: `read_objective` gives them
    for part in family.parts:
        inside = part.inside(dict.fromkeys(names))
        section = read_section(part.family, config.get(part.key, dict), inside, f"{source}: {part.key}")
        fields |= {part.field: section} if part.field else section
    config.finish()
    return {"name": family.model, **fields}


def write_values(family: Family, module) -> dict[str, Any]:
    """The keys of the config.json for a module, its parts' among them. Raises ConfigError for what they cannot say."""
    values = family.header | write_keys(family.keys, module)
    return values | {part.key: write_values(part.family, part.module_of(module)) for part in family.parts}


# Fields that do not change what a trained model computes.
_FREE = (
    "parent", "name", "dtype", "remat", "attention", "unroll", "scan_layers", "reach", "dropout", "attention_dropout",
    "init_std", "position_init_std", "scale_residual_init", "zero_init", "norm_decay",
    "initial_scale", "initial_bias",
)  # fmt: skip


def function_fields(module) -> dict[str, Any]:
    """The fields of a module that say what function it is, those that have a rule for None filled in."""
    fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.name not in _FREE}
    for name, value in fields.items():
        if isinstance(value, nn.Module):
            fields[name] = {"name": type(value).__name__, **function_fields(value)}
    if fields.get("num_decoder_layers", 0) is None:
        fields["num_decoder_layers"] = module.num_layers
    stack = getattr(module, "transformer", None)
    if not isinstance(stack, TransformerConfig):
        return fields
    for name in ("intermediate_size", "num_kv_heads", "head_dim", "query_scale"):
        if name in fields:
            fields[name] = getattr(stack, name)
    if fields.get("query_scale", 0) is None:
        fields["query_scale"] = stack.head_dim**-0.5
    if "layer_pattern" in fields:
        fields["layer_pattern"] = tuple("global" if window is None else "local" for window in stack.windows)
    return fields


def different_fields(a, b) -> list[tuple[str, Any, Any]]:
    """(field, value in a, value in b) where two modules are not the same function."""
    if type(a) is not type(b):
        return [("name", type(a).__name__, type(b).__name__)]
    theirs = function_fields(b)
    return [(k, v, theirs[k]) for k, v in function_fields(a).items() if v != theirs[k]]


def publish(module, prefer: str | None = None) -> tuple[Family, dict[str, Any]]:
    """(family, keys of config.json) of the published class that computes exactly what `module` computes.

    Args:
      prefer: the architecture that is taken where several would do.

    Raises InputError, naming the fields that stand in the way, where there is none.
    """
    reasons = []
    ours = [family for family in families() if MODELS.get(family.model) is type(module)]
    for family in sorted(ours, key=lambda family: prefer not in family.architectures):
        name = family.architectures[0]
        try:
            values = write_values(family, module)
            rows = different_fields(module, build(read_section(family, values, (), "config.json"), MODELS))
        except ConfigError as error:
            reasons.append(f"{name}: {error}")
            continue
        if not rows:
            return family, values
        reasons.append(f"{name} has {', '.join(f'{k}={there!r}, not {here!r}' for k, here, there in rows)}")
    why = "; ".join(reasons) or f"supported: {', '.join(sorted({family.model for family in families()}))}"
    raise InputError(f"no published class computes what this {type(module).__name__} does ({why})")
