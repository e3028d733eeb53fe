"""Rotary position embedding in config.json, in both ways of writing it.

    new: "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, ...}
    old: "rope_theta": 500000.0, "rope_scaling": {"rope_type" or "type": "llama3", "factor": 8.0, ...} or null

A model with a rotary base for each kind of layer has one such section a kind in "rope_parameters".
"""

import math
from collections.abc import Mapping
from typing import Any

from fmjax.interop.published_config import PublishedConfig
from fmjax.layers.position import LinearScaling, Llama3Scaling, Rope, YarnScaling

# Keys of a scaling besides its type; those without a default are required.
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
        "mscale_all_dim", "truncate",
    ),
}  # fmt: skip


def read_rope(config: PublishedConfig, default_theta: float) -> tuple[float, dict | None]:
    """(base, section `rope_scaling` of an fmjax config or None), for a model with one rotary embedding.

    Raises ConfigError for a type or key that is not supported.
    """
    section, scaling = _section(config, "rope_parameters"), _section(config, "rope_scaling")
    theta = section.get("rope_theta", config.get("rope_theta", float, default_theta))
    found = read_scaling(config, section or scaling)
    if section and scaling and read_scaling(config, scaling) != found:
        config.refuse("rope_scaling", dict(scaling), "rope_parameters says something else")
    return float(theta), found


def _section(config: PublishedConfig, key: str) -> dict:
    section = config.raw(key)
    if section is not None and not isinstance(section, Mapping):
        config.refuse(key, section, "expected a section of keys")
    return dict(section or {})


def read_scaling(config: PublishedConfig, section: Mapping[str, Any]) -> dict | None:
    """One section of rotary parameters as `rope_scaling` of an fmjax config; None for the plain embedding."""
    kind = section.get("rope_type", section.get("type", "default"))
    if kind not in _KEYS:
        config.refuse("rope_type", kind, f"supported: {', '.join(_KEYS)}")
    partial = section.get("partial_rotary_factor", config.raw("partial_rotary_factor"))
    if partial not in (None, 1.0):
        config.refuse("partial_rotary_factor", partial, "supported: 1.0")
    for key in section:
        if key not in (*_KEYS[kind], "rope_type", "type", "rope_theta", "partial_rotary_factor"):
            config.refuse(f"rope {key}", section[key], f"{kind!r} has the keys {', '.join(_KEYS[kind]) or 'none'}")
    if kind == "default":
        return None
    original = section.get("original_max_position_embeddings") or config.raw("max_position_embeddings")
    factor = section.get("factor")
    if factor is None:
        if kind != "yarn":
            config.refuse("rope factor", factor, f"{kind!r} needs a number")
        factor = config.raw("max_position_embeddings") / original
    if kind == "linear":
        return {"name": "linear", "factor": float(factor)}
    if kind == "llama3":
        bands = {key: float(section[key]) for key in ("low_freq_factor", "high_freq_factor") if key in section}
        if len(bands) < 2:
            config.refuse("rope_type", kind, "without low_freq_factor and high_freq_factor")
        return {"name": "llama3", "factor": float(factor), **bands, "original_max_length": int(original)}
    return {
        "name": "yarn",
        "factor": float(factor),
        "original_max_length": int(original),
        "beta_fast": float(section.get("beta_fast") or 32.0),
        "beta_slow": float(section.get("beta_slow") or 1.0),
        "attention_factor": _attention_factor(section, factor),
        "truncate": bool(section.get("truncate", True)),
    }


def _attention_factor(section, factor) -> float | None:
    """What multiplies cosines and sines; None for the paper's rule."""
    if section.get("attention_factor") is not None:
        return float(section["attention_factor"])
    scales = section.get("mscale"), section.get("mscale_all_dim")
    if not all(scales):
        return None
    above, below = (1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0 for scale in scales)
    return above / below


def write_rope(rope: Rope) -> dict[str, Any]:
    """A rotary embedding as `rope_parameters`."""
    scaling = rope.scaling
    section: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if isinstance(scaling, LinearScaling):
        section |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        section |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_length,
        }
    elif isinstance(scaling, YarnScaling):
        section |= {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_max_length,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
        }
        if not scaling.truncate:
            section["truncate"] = False
        if scaling.attention_factor is not None:
            section["attention_factor"] = scaling.attention_factor
    return section


def old_keys(section: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` for readers from before `rope_parameters`."""
    scaling = {k: v for k, v in section.items() if k != "rope_theta"}
    return {"rope_theta": section["rope_theta"], "rope_scaling": None if scaling["rope_type"] == "default" else scaling}
