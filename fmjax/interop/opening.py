"""Published folders opened: of one model, of one whose config has its parts' in it, of parts in their own folders."""

import pathlib
from collections.abc import Mapping
from typing import Any

from fmjax.data.tokenizers.loading import load_tokenizer
from fmjax.errors import InputError
from fmjax.interop.compressed_tensors import joined
from fmjax.interop.family import TOKENIZER, Family, class_of, families, family_of
from fmjax.interop.importer import Published, Tensor, canonical
from fmjax.interop.preprocessor import image_side
from fmjax.interop.published_config import PublishedConfig
from fmjax.interop.safetensors_files import read_folder
from fmjax.registry import nearest
from fmjax.small_files import read_json

PARTS = "model_index.json"
"""What a folder has whose parts lie in folders of their own: the part's name to [library, class]."""


def open_folder(folder: pathlib.Path, part: str | None = None) -> Published:
    """A folder as Hugging Face publishes it: config.json and safetensors, or `model_index.json` and folders of parts.

    Args:
      part: the name of one of its parts, which alone is opened.

    Raises InputError subclasses for an architecture, part or option that is not supported, and for damaged files.
    """
    if (folder / PARTS).is_file():
        return _open_parts(folder) if part is None else open_folder(_part_folder(folder, part))
    source, generation = folder / "config.json", folder / "generation_config.json"
    values = read_json(source)
    family = family_of(values, str(source))
    values, found = joined(values, read_folder(folder), str(source))
    if part is not None:
        return _open_nested(folder, values, found, family, part)
    kept = read_json(generation) if generation.is_file() else None
    if family.any_image_size and "image_size" not in values:
        side = image_side(folder, PublishedConfig(values, str(source)).get("num_channels", int, 3))
        values = values | ({} if side is None else {"image_size": side})
    return Published(folder, str(source), values, family, found, kept)


def _open_nested(
    folder: pathlib.Path, values: Mapping[str, Any], found: Mapping[str, Tensor], family: Family, name: str
) -> Published:
    """A part of a model whose config.json has the parts' configs in it."""
    parts = {part.name: part for part in family.parts}
    if name not in parts:
        has = f"has the parts {', '.join(parts)}" if parts else "is of one part; leave part out"
        hint = nearest(name, parts).rstrip(".")
        raise InputError(f"{str(folder)!r} ({family.architectures[0]}) has no part {name!r}{hint}; it {has}")
    part, source = parts[name], str(folder / "config.json")
    own = PublishedConfig(values, source).get(part.key, dict)
    inside = part.inside(canonical(found, family))
    return Published(folder, f"{source}: {part.key}", own, part.family, inside)


def _part_folder(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where a part lies that has a folder of its own. Raises InputError for one that is missing or no family knows."""
    classes = _listed(read_json(folder / PARTS))
    if classes.get(name) is None:
        listed = f"; {PARTS} has it without a class" if name in classes else nearest(name, classes).rstrip(".")
        raise InputError(f"{str(folder)!r} has no part {name!r}{listed}; its parts: {_known_parts(classes)}")
    if not _is_known(classes[name]):
        raise InputError(
            f"part {name!r} of {str(folder)!r} is of class {classes[name]}, which no family knows; its parts: "
            f"{_known_parts(classes)}. A package brings a family by an entry point of the group fmjax.families"
        )
    if not (folder / name / "config.json").is_file():
        raise InputError(
            f"{str(folder / PARTS)!r} lists the part {name!r}, but there is no {name}/config.json; get it too"
        )
    return folder / name


def _open_parts(folder: pathlib.Path) -> Published:
    """A model of all parts that its family has; others in the folder are not looked at."""
    source = str(folder / PARTS)
    values = read_json(folder / PARTS)
    classes = _listed(values)
    if not _is_known(class_of(values)):
        raise InputError(
            f"{source!r}: no family is a {class_of(values)}, so its parts are loaded one by one, "
            f"fmjax.load(..., part=NAME); they are {_known_parts(classes)}"
        )
    family = family_of(values, source)
    # Each part's config and tensors under its name: as in a single folder with nested configs.
    values, found = {key: value for key, value in values.items() if key not in classes}, {}
    for part in family.parts:
        inside = _part_folder(folder, part.name)
        values[part.key] = read_json(inside / "config.json")
        if family_of(values[part.key], str(inside / "config.json")).architectures != part.family.architectures:
            known = part.family.architectures[0]
            raise InputError(f"{source!r}: part {part.name!r} is a {class_of(values[part.key])}, expected a {known}")
        found |= {part.prefix + name: tensor for name, tensor in read_folder(inside).items()}
    for part in family.beside.values():
        if classes.get(part.name) == part.family.architectures[0]:
            values[part.key] = read_json(_part_folder(folder, part.name) / "config.json")
    if family.by_tokenizer is not None:
        values = family.by_tokenizer(values, load_tokenizer(folder / TOKENIZER))
    settings = folder / family.objective_part / f"{family.objective_part}_config.json"
    if family.objective_part and settings.is_file():
        # The class that is loaded is the one listed, whatever the file names.
        kind = classes.get(family.objective_part)
        values[family.objective_part] = read_json(settings) | ({} if kind is None else {"_class_name": kind})
    return Published(folder, source, values, family, found)


def _listed(values: Mapping[str, Any]) -> dict[str, str | None]:
    """The class of each part that a `model_index.json` lists; None for one that is left out."""
    pairs = {key: value for key, value in values.items() if isinstance(value, list) and len(value) == 2}
    return {key: kind for key, (_, kind) in pairs.items() if kind is None or isinstance(kind, str)}


def _known_parts(classes: Mapping[str, str | None]) -> str:
    words = {name: kind if _is_known(kind) else f"{kind}, not known" for name, kind in classes.items() if kind}
    return ", ".join(f"{name} ({word})" for name, word in words.items())


def _is_known(architecture: str | None) -> bool:
    return any(architecture in family.architectures for family in families())
