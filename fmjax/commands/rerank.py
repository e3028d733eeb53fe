"""`--rerank=RUN --best=N`: of the images made for each prompt, those that a model of pairs finds nearest to it."""

from collections.abc import Sequence
from typing import Any

from fmjax.commands import cli
from fmjax.errors import InputError
from fmjax.inference import pairs
from fmjax.inference.reranking import best, check_scorer


def add_flags(parser) -> None:
    """Adds both."""
    parser.add_argument("--rerank", help="a CLIP or another model of pairs, by which images of captions are ranked")
    parser.add_argument("--best", type=cli.number(int, low=1), help="with --rerank: images of each prompt (default: 1)")


def check(flags, options: dict) -> None:
    """Raises InputError, before anything slow, for flags that do not go together."""
    if "rerank" not in flags:
        if "best" in flags:
            raise InputError("--best has a meaning with --rerank alone; give it too, or leave --best out")
        return
    samples = options.get("num_samples", 1)
    if not flags.prompt:
        raise InputError("--rerank goes by captions: give --prompt")
    if samples < 2 or getattr(flags, "best", 1) > samples:
        raise InputError(
            f"--rerank keeps {getattr(flags, 'best', 1)} of {samples} images of each prompt; give --num_samples=8, say"
        )


def opened(flags):
    """The model that ranks; None without --rerank. Raises InputError, before any image is made, for one that cannot
    rank, or does not read a prompt."""
    if "rerank" not in flags:
        return None
    from fmjax.load import load

    scorer = load(flags.rerank, dtype=flags.dtype, mesh=flags.mesh)
    check_scorer(scorer)
    pairs.framed(scorer, flags.prompt)  # refuses captions that it does not read
    return scorer


def kept(scorer, flags, options: dict, values: Sequence[Any]) -> list:
    """The images to write, of each prompt the nearest first; all of them without a scorer (`opened`)."""
    if scorer is None:
        return list(values)
    chosen = best(scorer, flags.prompt, values, options["num_samples"], getattr(flags, "best", 1))
    return [values[index] for index in chosen]
