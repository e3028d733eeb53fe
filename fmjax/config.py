"""Load a config file, check every key and type against the code that reads it, and freeze the result.

A config is nested plain data. Each part is owned by the code that reads it:

    seed                      an integer
    train, mesh               fields of `TrainConfig` and `MeshConfig`
    model, objective, data,   `name`, a registered name or an import path `package.module:Object`,
    optimizer, weights        and the fields of the dataclass (a Linen module is one) it names; weights may be left out

So the keys that exist are the fields that exist: nothing is declared twice. A field annotated with
`Annotated[dict, REGISTRY]` is a nested section of the same kind (`optimizer.schedule`); one annotated with
`dict[str, SomeDataclass]` holds sections under names of the user's choice, each with the keys of that dataclass
(`data.mixture`).
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import json
import pathlib
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from fmjax.adapt import WEIGHTS
from fmjax.config_fields import entry_class, field_types, nested_registry, unread_fields
from fmjax.config_values import FlagText, coerce, json_copy, type_name
from fmjax.data import DATASETS
from fmjax.errors import CheckpointError, ConfigError
from fmjax.models import MODELS
from fmjax.objectives import OBJECTIVES
from fmjax.parallel.mesh import MeshConfig
from fmjax.registry import Registry, nearest
from fmjax.small_files import write_whole
from fmjax.training import OPTIMIZERS
from fmjax.training.settings import TrainConfig

SETTINGS = {"train": TrainConfig, "mesh": MeshConfig}
PLUGINS = {"model": MODELS, "objective": OBJECTIVES, "data": DATASETS, "optimizer": OPTIMIZERS}
OPTIONAL = {"weights": WEIGHTS}
"""Sections that a config may lack; one that it lacks is no key of the resolved config."""
REPOSITORY = pathlib.Path(__file__).parents[1]


def load_config_file(path: str) -> dict:
    """The nested dict that `get_config()` in the Python file `path` returns; `path:arg` calls `get_config(arg)`.

    Raises ConfigError, with the line, when the file is missing, does not run or returns something else.
    """
    name, _, argument = str(path).partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        raise ConfigError(f"config file {name!r} does not exist{_meant(file)}")
    if file.suffix != ".py":
        raise ConfigError(f"config file {name!r} is not a Python file (.py) with a function get_config()")
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"config file {name!r} defines no function get_config()")
        _check_argument(name, module.get_config, argument)
        config = module.get_config(argument) if argument else module.get_config()
    except ConfigError:
        raise
    except Exception as error:
        lines = [f.lineno for f in _frames(error) if f.filename == str(file)] or [getattr(error, "lineno", None)]
        where = f", line {lines[-1]}" if lines[-1] else ""
        if argument and isinstance(error, KeyError) and error.args == (argument,):
            raise ConfigError(
                f"config file {name!r}{where}: there is no {argument!r}; its docstring says what may stand "
                "behind the colon"
            ) from error
        raise ConfigError(f"config file {name!r}{where}: {type(error).__name__}: {error}") from error
    if isinstance(config, ConfigDict | FrozenConfigDict):
        config = config.to_dict()
    if not isinstance(config, dict):
        raise ConfigError(f"get_config() of {name!r} must return a ConfigDict, got {type(config).__name__}")
    return config


def _meant(file: pathlib.Path) -> str:
    """For the message about a config file that does not exist: one that may be meant, here or where fmjax lies, or what
    its folder has."""
    for folder in (file.parent, REPOSITORY / file.parent):
        present = sorted(f.name for f in folder.glob("*.py"))
        if close := difflib.get_close_matches(file.name, present, n=1):
            return f"; did you mean {str(folder / close[0])!r}?"
    folder = file.parent.absolute()
    if not folder.is_dir():
        return f"; there is no folder {str(folder)!r}"
    return f"; {folder} has: {', '.join(sorted(f.name for f in folder.glob('*.py'))) or 'no .py file'}"


def _check_argument(name: str, get_config: Callable, argument: str) -> None:
    """Raises ConfigError where `get_config` takes no argument and one is given, or needs one and none is."""
    given = (argument,) if argument else ()
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError as error:
        if argument:
            raise ConfigError(
                f"get_config() of {name!r} takes no argument, and {argument!r} was given: --config={name} is all"
            ) from error
        raise ConfigError(f"get_config() of {name!r} needs an argument ({error}): --config={name}:ARGUMENT") from error


def _frames(error):
    import traceback

    return traceback.extract_tb(error.__traceback__)


def apply_overrides(config: dict, overrides: Mapping[str, str]) -> dict:
    """A copy of `config` with dotted keys replaced, such as {"train.steps": "100"}; types are settled by `resolve`."""
    config = json_copy(config)
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        section = config
        for depth, key in enumerate(parents):
            if section.get(key) is None:  # `"schedule": None` may become a section
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise ConfigError(f"--config.{dotted}: {'.'.join(parents[: depth + 1])} is a value, not a section")
        section[leaf] = FlagText(value)
    return config


def resolve(config: Mapping[str, Any]) -> FrozenConfigDict:
    """The complete, checked and frozen configuration: every key known, every type right, every default written out.

    Raises ConfigError naming the first key that is unknown (with the nearest known one), wrongly typed, missing,
    or that nothing reads.
    """
    config = dict(config)
    known = ("seed", *SETTINGS, *PLUGINS, *OPTIONAL)
    for key in config:
        if key not in known:
            raise ConfigError(f"unknown config key {key!r}{nearest(key, known)} Known: {', '.join(known)}")
    resolved = {"seed": coerce(config.get("seed", 0), int, "seed")}
    if not 0 <= resolved["seed"] < 2**32:
        raise ConfigError(f"seed = {resolved['seed']} must be at least 0 and less than 2**32")
    for key, settings in SETTINGS.items():
        resolved[key] = _resolve_fields(config.get(key, {}), settings, key)
    for key, registry in PLUGINS.items():
        if key not in config:
            raise ConfigError(f"the config has no section {key!r}; it needs at least {key}.name")
        resolved[key] = _resolve_plugin(config[key], registry, key)
    for key, registry in OPTIONAL.items():
        if config.get(key) is not None:
            resolved[key] = _resolve_plugin(config[key], registry, key)
    given = config["data"] if isinstance(config["data"], Mapping) else {}
    if resolved["train"]["init_from"] is not None and "tokenizer" in resolved["data"] and "tokenizer" not in given:
        resolved["data"]["tokenizer"] = resolved["train"]["init_from"]  # where the parameters' own is
    _refuse_dots(resolved)
    # Constructing the settings runs their own checks (ranges, values that exclude each other) before anything slow.
    for key, settings in SETTINGS.items():
        settings(**resolved[key])
    built = {key: build(resolved[key], registry) for key, registry in PLUGINS.items()}
    for key in OPTIONAL.keys() & resolved.keys():
        build(resolved[key], OPTIONAL[key])
    built["optimizer"].make_schedule(resolved["train"]["steps"])
    return FrozenConfigDict(resolved)


def _refuse_dots(section: Mapping, path: str = "") -> None:
    for key, value in section.items():
        if "." in key:
            raise ConfigError(
                f"{path or 'config'}: the name {key!r} has a dot, which separates the parts of a key; "
                f"call it {key.replace('.', '_')!r}"
            )
        if isinstance(value, Mapping):
            _refuse_dots(value, f"{path}.{key}" if path else key)


def _resolve_plugin(section, registry: Registry, path: str) -> dict:
    if isinstance(section, str):
        section = {"name": section}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{path} must be a section with a name, got {section!r}")
    if "name" not in section and path == "data":
        section = {"name": "text", **section}
    if "name" not in section:
        raise ConfigError(f"{path}.name is missing{_known_names(registry)}")
    name = str(section["name"])
    try:
        plugin = registry.get(name)
    except ConfigError as error:
        raise ConfigError(f"{path}.name: {error}") from None
    if not dataclasses.is_dataclass(plugin):
        raise ConfigError(
            f"{path}.name = {name!r} is not a dataclass (a flax.linen.Module is one), "
            "so its config keys are not known; make its settings annotated fields"
        )
    try:
        registry.check(plugin)
    except ConfigError as error:
        raise ConfigError(f"{path}.name = {name!r}: {error}") from None
    fields = {k: v for k, v in section.items() if k != "name"}
    resolved = _resolve_fields(fields, plugin, path)
    for key in fields:
        if key in unread_fields(plugin):
            raise ConfigError(f"{path}.{key} is declared by {name!r} but none of its code reads it; remove the key")
    return {"name": name, **resolved}


def _says_none(value, registry: Registry) -> bool:
    """Whether a flag leaves out a section that may be left out."""
    return isinstance(value, FlagText) and value.lower() in ("none", "null") and value not in registry.table


def _known_names(registry: Registry) -> str:
    return f"; known: {', '.join(sorted(registry.table))}, or an import path 'package.module:Object'"


def _resolve_fields(section, plugin, path: str) -> dict:
    if not isinstance(section, Mapping):
        raise ConfigError(f"{path} must be a section of keys, got {section!r}")
    types_ = field_types(plugin)
    known = list(types_) if plugin in SETTINGS.values() else ["name", *types_]
    for key in section:
        if key not in types_:
            raise ConfigError(f"unknown config key '{path}.{key}'{nearest(key, known)} Known: {', '.join(known)}")
    resolved = {}
    for key, (annotation, default) in types_.items():
        where = f"{path}.{key}"
        if key in section:
            value = section[key]
        elif default is dataclasses.MISSING:
            raise ConfigError(f"{where} is missing: {plugin.__name__} needs it ({type_name(annotation)})")
        else:
            value = default
        nested = nested_registry(annotation)
        if nested is not None and type(None) in typing.get_args(annotation) and _says_none(value, nested):
            value = None
        if nested is not None and value is not None:
            resolved[key] = _resolve_plugin(value, nested, where)
        elif (entry := entry_class(annotation)) is not None:
            sections = coerce(value, dict | None if type(None) in typing.get_args(annotation) else dict, where)
            if sections is not None:
                sections = {name: _resolve_fields(part, entry, f"{where}.{name}") for name, part in sections.items()}
            resolved[key] = sections
        else:
            resolved[key] = coerce(value, annotation, where)
    return resolved


def build(section: Mapping[str, Any], registry: Registry):
    """The object a resolved section describes: the plugin it names, constructed with the section's fields."""
    fields = dict(section)
    plugin = registry.get(fields.pop("name"))
    types_ = field_types(plugin)
    for key, value in fields.items():
        if key not in types_:
            known = ", ".join(types_)
            raise ConfigError(f"{plugin.__name__} has no field {key!r}{nearest(key, types_)} Known: {known}")
        nested = nested_registry(types_[key][0])
        if nested is not None and value is not None:
            with _within(key, nested.get(dict(value).get("name"))):
                fields[key] = build(value, nested)
        else:
            fields[key] = _plain(value)
    return plugin(**fields)


@contextlib.contextmanager
def _within(key: str, plugin):
    """Has the errors of a nested section name its fields by their place: model.patch_size is model.KEY.patch_size."""
    try:
        yield
    except ConfigError as error:
        field = rf"\b(data|model|objective|optimizer)\.(?=(?:{'|'.join(field_types(plugin))})\b)"
        raise type(error)(re.sub(field, rf"\1.{key}.", str(error))) from None


def _plain(value):
    """Config containers as ordinary ones: frozen dataclasses must not hold ConfigDicts."""
    if isinstance(value, ConfigDict | FrozenConfigDict):
        value = value.to_dict()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return value


def save_config(config: FrozenConfigDict, path: pathlib.Path, published: Mapping | None = None) -> None:
    """Writes the resolved config as JSON, whole or not at all.

    published: what came with the parameters that the run began with; where there is any, it becomes a section.
    """
    values = json_copy(config.to_dict()) | ({"published": published} if published else {})
    write_whole(path, json.dumps(values, indent=2) + "\n")


def load_workdir_config(workdir: str | pathlib.Path) -> dict:
    """The resolved configuration a run saved in its workdir. Raises CheckpointError where it is missing or torn."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{str(workdir)!r} is not a run's folder: it has no config.json")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not valid JSON ({error})") from None
