"""The keys of configs explained: those of one config for `--config.help`, and all of them as a page.

    python -m fmjax.commands.config_help > fmjax/CONFIG.md
"""

import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from fmjax.commands import cli
from fmjax.commands.config_meanings import Key, keys_of
from fmjax.config import OPTIONAL, PLUGINS, SETTINGS
from fmjax.config_fields import entry_class, field_types, nested_registry
from fmjax.parallel.mesh import DEFAULT_RULES
from fmjax.registry import Registry

SEED = Key("seed", "int", "0", "of everything random: initialisation, order of the data, dropout, samples")

PAGE = """\
# The keys of a config

Written by `python -m fmjax.commands.config_help > fmjax/CONFIG.md`.

A config is nested plain data: `seed`, and the sections `train`, `mesh`, `model`, `objective`, `data`,
`optimizer`{others}. The `name` of a section says whose keys it has: a registered name, or the import path
`package.module:Object` of [a class of your own](README.md). `data.name` may be left out; it is then `text`. On the
command line a key is `--config.train.steps=100`.

`python -m fmjax.train --config=FILE --config.help` prints the keys of that config with their values.
"""


def describe(config: Mapping[str, Any]) -> str:
    """The keys of a config (of `fmjax.config.load_config_file`) with value, type, default and meaning.

    Raises ConfigError for a name that is not known.
    """
    parts = [_entry("seed", SEED, config)]
    for section, settings in SETTINGS.items():
        parts += _described(section, settings, config.get(section) or {})
    for section, registry in (PLUGINS | OPTIONAL).items():
        if section in PLUGINS or config.get(section):
            parts += _described_plugin(section, registry, config.get(section) or {})
    return "\n".join(parts)


def _described_plugin(path: str, registry: Registry, section) -> Iterator[str]:
    section = {"name": section} if isinstance(section, str) else dict(section)
    if path == "data":
        section = {"name": "text"} | section
    known = ", ".join(sorted(registry.table))
    yield _entry(path, Key("name", "str", None, f"{known}, or an import path package.module:Object"), section)
    if "name" in section:
        plugin = registry.get(str(section.pop("name")))
        yield from _described(path, plugin, section)


def _described(path: str, plugin, section: Mapping[str, Any]) -> Iterator[str]:
    types = field_types(plugin)
    for key in keys_of(plugin):
        yield _entry(path, key, section)
        annotation, value = types[key.name][0], section.get(key.name)
        nested, entry = nested_registry(annotation), entry_class(annotation)
        if nested is not None and value:
            yield from _described_plugin(f"{path}.{key.name}", nested, value)
        elif entry is not None and isinstance(value, Mapping):
            for name, part in value.items():
                yield from _described(f"{path}.{key.name}.{name}", entry, part)


def _entry(path: str, key: Key, section: Mapping[str, Any]) -> str:
    """One key: its value on a line, the rest below."""
    value = section.get(key.name, key.default)
    if key.name in section and not isinstance(value, Mapping):
        value = str(value) if isinstance(value, str) and type(value) is not str else repr(value)
    shown = "..." if isinstance(value, Mapping) else "(to be set)" if value is None else value
    dotted = key.name if path == key.name else f"{path}.{key.name}"
    default = "no default" if key.default is None else f"default {key.default}"
    about = f"{key.type}, {default}: {key.meaning}"
    return f"{dotted} = {shown}\n" + textwrap.indent(textwrap.fill(about, 100, break_long_words=False), "    ")


def page() -> str:
    """All keys of all that is registered, as Markdown."""
    others = "".join(f", perhaps `{name}`" for name in OPTIONAL)
    lines = [PAGE.format(others=others), *_table([SEED])]
    for section, settings in SETTINGS.items():
        lines += [f"\n## {section}\n", _summary(settings), "", *_table(keys_of(settings))]
        if section == "mesh":
            lines += ["\nThe table that `mesh.rules` adds to:\n", "| logical axis | mesh axes |", "| --- | --- |"]
            lines += [f"| `{axis}` | {', '.join(on) or 'none: whole'} |" for axis, on in DEFAULT_RULES.items()]
    for section, registry in registries(PLUGINS | OPTIONAL).items():
        lines.append(f"\n## {section}")
        for name in registry.table:
            plugin = registry.get(name)
            lines += [f'\n### `{section}.name = "{name}"`\n', _summary(plugin), "", *_table(keys_of(plugin))]
    return "\n".join(lines) + "\n"


def registries(sections: Mapping[str, Registry]) -> dict[str, Registry]:
    """Sections whose keys depend on a name, each followed by those within it that have names of their own: one of the
    names of a section that holds it, as a model within a model, is told there."""
    found = {}
    for section, registry in sections.items():
        within = {}
        for name in registry.table:
            for key, (annotation, _) in field_types(registry.get(name)).items():
                nested = nested_registry(annotation)
                if nested is not None and nested not in sections.values():
                    within[f"{section}.{key}"] = nested
        found |= {section: registry} | registries(within)
    return found


def _summary(plugin) -> str:
    """Of a class: its docstring up to the first empty line."""
    return " ".join(plugin.__doc__.split("\n\n")[0].split()).removesuffix(":")


def _table(keys: list[Key]) -> list[str]:
    rows = [("key", "type", "default", "meaning"), ("---",) * 4]
    for key in keys:
        default = "needed" if key.default is None else f"`{key.default}`"
        rows.append((f"`{key.name}`", key.type, default, key.meaning))
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def main(argv: list[str]) -> None:
    cli.ArgumentParser("python -m fmjax.commands.config_help", __doc__.split("\n")[0]).parse_args(argv)
    print(page(), end="")


if __name__ == "__main__":
    sys.exit(cli.run(main))
