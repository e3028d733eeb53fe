"""Agent: `python -m fmjax.agent --model=DIR_OR_HUB_ID` and one of

--goal=TEXT             a model pursues a goal, with tools: it is shown step by step, and its answer is printed
--replay=FILE           draws the steps of a transcript again, and says whether the same ids come

The answer goes to stdout, all else to stderr. Exit code 1: the budget ended before there was an answer, or a replay
came out otherwise.
"""

import sys
import time

from fmjax.commands import cli
from fmjax.errors import InputError, RunError
from fmjax.layers.checks import COMPUTE_DTYPES

DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.agent", "Pursue a goal with tools, within a budget.")
    add, number = parser.add_argument, cli.number
    add("--model", required=True, help="workdir of a run, one of its checkpoints, a Hugging Face folder, or a hub id")
    add("--dtype", default="float32", choices=COMPUTE_DTYPES, help="that is computed in")
    add("--mesh", type=cli.mesh, help="split the model over devices, such as fsdp:2,tensor:2")
    add("--goal", help="what is wanted")
    add("--replay", metavar="FILE", help="a transcript whose steps are drawn again")
    add("--transcript", metavar="FILE", help="JSONL to write, a line a step")
    add(
        "--tools",
        help="calculator, python, search, notes, files, or import paths package.module:Class, with commas between "
        "(default: calculator, notes, and those whose folders are given)",
    )
    add("--documents", metavar="DIR", help="texts (.txt, .md, .rst) that the tool search finds passages in")
    add("--embedder", help="model whose vectors search goes by (default: the model itself)")
    add("--files", metavar="DIR", help="the folder that the file tools read and write")
    add("--notes", metavar="FILE", help="notes that are kept beyond the run (default: in memory)")
    add("--format", default="auto", help="how tools are told and called: auto, native, json or lines")
    add("--plan", action="store_true", help="let the model write a plan first")
    add("--steps", type=number(int, low=1), default=10, help="replies at most")
    add("--tokens", type=number(int, low=1), help="drawn tokens at most, in all")
    add("--seconds", type=number(float, low=0, exclude_low=True), help="after which no new step begins")
    add("--max_new_tokens", type=number(int, low=1), default=256, help="tokens of a reply at most")
    add("--temperature", type=number(float, low=0, high=1e6), help="as of fmjax.generate --chat, and so the next ones")
    add("--top_k", type=number(int, low=0), help="draw from the k likeliest; 0: all")
    add("--top_p", type=number(float, low=0, high=1, exclude_low=True), help="draw from these shares of probability")
    add("--min_p", type=number(float, low=0, high=1), help="draw from tokens at least so likely beside the first")
    add("--repetition_penalty", type=number(float, low=0, high=1e6, exclude_low=True), help="above 1 repeats less")
    add("--seed", type=number(int, low=0, high=2**32 - 1), help="of the random draws")
    flags = parser.parse_args(argv)
    if (flags.goal is None) == (flags.replay is None):
        raise InputError("give --goal=TEXT or --replay=FILE: one of them, and not both")
    if flags.goal is not None and not flags.goal.strip():
        raise InputError("--goal is empty; say what is wanted")
    if flags.embedder is not None and flags.documents is None:
        raise InputError("--embedder is for the tool search; give --documents=DIR too")
    return flags


def main(argv: list[str]) -> None:
    flags = parse(argv)
    cli.log_to_stderr()
    from fmjax.cache_folder import use_compilation_cache

    use_compilation_cache()
    if flags.replay is not None:
        replay(flags)
    else:
        pursue(flags)


def replay(flags) -> None:
    """--replay: raises RunError where other ids come."""
    from fmjax.agents import transcript

    transcript.read(flags.replay)  # what cannot be read is refused before the model is loaded
    count = transcript.replay(_load(flags.model, flags), flags.replay)
    print(f"{flags.replay}: {count} steps, each with the same ids")


def pursue(flags) -> None:
    """--goal: raises RunError where there is no answer."""
    from fmjax.agents import choosing, loop
    from fmjax.agents.episode import Budget, Episode
    from fmjax.agents.formats import chosen
    from fmjax.agents.transcript import Transcript, beginning
    from fmjax.inference.prompts import need_tokenizer

    places = choosing.Places(flags.documents, flags.files, flags.notes)
    names = choosing.usual(places) if flags.tools is None else [one for one in flags.tools.split(",") if one]
    choosing.check(names, places, flags.transcript)
    budget = Budget(flags.steps, flags.tokens, flags.seconds, flags.max_new_tokens)
    model = _load(flags.model, flags)
    need_tokenizer(model)
    embedder = model
    if "search" in names and flags.embedder is not None:
        embedder = _load(flags.embedder, flags)
    tools = choosing.made(names, places, lambda texts: embedder.embed(texts))
    given = {name: getattr(flags, name) for name in DRAWING if getattr(flags, name) is not None}
    drawing = loop.Drawing(batch_size=1, **{**model.chat_settings, **given})
    format = chosen(flags.format, model.tokenizer, tools)
    begun = time.monotonic()
    episode = Episode(
        format, flags.goal, tools, budget, planning=flags.plan, context_length=model.context_length
    )  # fmt: skip
    _note(f"tools: {', '.join(tool.name for tool in tools) or 'none'}; told in the format {format.name}")
    written = None
    if flags.transcript is not None:
        written = Transcript(flags.transcript, beginning(model, episode, tools, drawing, flags.plan))

    def after(number, step):
        _show(len(episode.steps), step)
        if written is not None:
            written.add(step, len(episode.steps) - 1)

    loop.run(model, [episode], drawing, after=after)
    if written is not None:
        written.end(episode, time.monotonic() - begun)
    if episode.answer is None:
        raise RunError(f"no answer: {WHY[episode.ended]} after {len(episode.steps)} steps; give a larger one")
    print(_harmless(episode.answer))


WHY = {
    "steps": "the budget of steps (--steps) ended", "tokens": "the budget of tokens (--tokens) ended",
    "seconds": "the budget of time (--seconds) ended", "context": "the model's context was full",
}  # fmt: skip


def _show(number: int, step) -> None:
    from fmjax.agents.transcript import told

    ((what, value), *more) = told(step.action).items()
    _note(f"[{number}] {what}: {value}" + "".join(f" {value}" for _, value in more))
    if step.result and what != "plan":
        _note("    " + step.result.replace("\n", "\n    "))


def _note(text: str) -> None:
    print(_harmless(text), file=sys.stderr)


def _harmless(text: str) -> str:
    """A text whose control characters, which would steer the terminal, are written as escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _load(path: str, flags):
    from fmjax.load import load

    return load(path, dtype=flags.dtype, mesh=flags.mesh, progress=sys.stderr.isatty())


if __name__ == "__main__":
    cli.leave(cli.run(main))
