"""How the replies of a chat are drawn where nothing else is asked for."""

from collections.abc import Mapping
from typing import Any

GREEDY = {"temperature": 0.0}
"""Of a model that states nothing: its likeliest reply, since small models talk nonsense at temperature 1."""

RETRY = {"temperature": 0.7, "top_p": 0.95}
"""For another reply to the same messages, of which the likeliest is one alone."""

DRAWN = {"temperature": 1.0, "top_k": 50}
"""What transformers takes where a model asks to be drawn from and leaves these out."""

NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def chat_settings(generation: Mapping[str, Any]) -> dict[str, float]:
    """Fields of `fmjax.inference.sampler.Sampling`.

    Args:
      generation: the contents of a generation_config.json, {} where there is none. With `do_sample` false it is greedy,
        but for its repetition penalty; where `do_sample` is left out, numbers that only drawing reads ask for it.
    """
    stated = {name: generation[name] for name in NAMES if generation.get(name) is not None}
    drawing = {name: value for name, value in stated.items() if name != "repetition_penalty"}
    asked = generation.get("do_sample")
    if bool(drawing) if asked is None else asked:
        return DRAWN | stated
    return {name: value for name, value in stated.items() if name not in drawing} | GREEDY


def told(settings: Mapping[str, float]) -> str:
    """How replies come, as the command's flags; of greedy ones no setting that only drawing reads."""
    greedy = settings["temperature"] == 0
    read = ("temperature", "repetition_penalty") if greedy else settings
    flags = " ".join(f"--{name}={settings[name]:g}" for name in read if name in settings)
    return f"replies are {'greedy' if greedy else 'drawn'}: {flags}"
