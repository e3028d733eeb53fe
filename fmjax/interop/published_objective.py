"""What a published config.json says of the objective that a model was trained for."""

import types
from collections.abc import Mapping
from typing import Any

from fmjax.interop.config_keys import read_keys, write_keys
from fmjax.interop.family import Family
from fmjax.interop.published_config import PublishedConfig

OBJECTIVE = "objective"
"""Key, of what a loaded model keeps beside its weights, of the file that says its objective in a folder of its own: the
`section` that was read of it, and its `values`."""


def read_objective(family: Family, values: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """The section `objective` of what a published model was trained for; None where the family knows of none, or the
    folder lacks the part that says it.

    Raises ConfigError naming an option of that part that fmjax does not honour.
    """
    part = family.objective_part
    if family.objective is None or (part and part not in values):
        return None
    config = PublishedConfig(values[part] if part else values, f"{source}: {part}" if part else source)
    section = {**family.objective, **read_keys(family.objective_keys, config, ())}
    if part:
        config.finish()
    return section | (family.objective_beside(values) if family.objective_beside else {})


def write_objective(
    family: Family, section: Mapping[str, Any] | None, kept: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The keys of the config.json for a section `objective`; none where it is not the family's.

    Args:
      kept: what the model keeps of the folder that it came in. What stands there of the objective, and of how samples
        are drawn, is given back as it was read, as long as the objective says the same.
    """
    if not section or not family.objective_keys or section.get("name") != family.objective["name"]:
        return {}
    values = write_keys(family.objective_keys, types.SimpleNamespace(**section))
    if not family.objective_part:
        return values
    found = kept.get(OBJECTIVE) if kept and kept.get("architecture") in family.architectures else None
    if found and write_keys(family.objective_keys, types.SimpleNamespace(**found["section"])) == values:
        return {family.objective_part: {"_class_name": family.objective_class} | found["values"]}
    return {family.objective_part: {"_class_name": family.objective_class} | values}
