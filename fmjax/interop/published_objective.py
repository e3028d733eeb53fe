"""What a published config.json says of the objective that a model was trained for."""

import types
from collections.abc import Mapping
from typing import Any

from fmjax.interop.config_keys import read_keys, write_keys
from fmjax.interop.family import Family
from fmjax.interop.published_config import PublishedConfig


def read_objective(family: Family, values: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """The section `objective` of what a published model was trained for; None where the family knows of none."""
    if family.objective is None:
        return None
    return {**family.objective, **read_keys(family.objective_keys, PublishedConfig(values, source), ())}


def write_objective(family: Family, section: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keys of the config.json for a section `objective`; none where it is not the family's."""
    if not section or not family.objective_keys or section.get("name") != family.objective["name"]:
        return {}
    return write_keys(family.objective_keys, types.SimpleNamespace(**section))
