"""Speculative decoding by kind of text: what drafts are worth, and how much faster they are. See README.md.

    python experiments/speculation/run.py --model=SMOLLM2 [--draft=PATH ...] [--new_tokens=104] [--repeats=2]

Each prompt is continued in all ways, one after the other, by one engine. Speeds are of what follows the first tokens,
and of runs in which nothing was compiled. What was measured is kept in --workdir: a command that was cut goes on.
"""

import argparse
import dataclasses
import hashlib
import pathlib
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import prompts  # noqa: E402
import runs  # noqa: E402

PLACES = 512
"""Of the cache in all runs, so that they share their programs."""


@dataclasses.dataclass
class Case:
    """What is measured at once: texts of some kinds in several ways, None being without a draft.

    Attributes:
      ways: a draft by name.
      kinds: batches of prompts, each of `rows`, by kind.
    """

    ways: dict[str, Any]
    kinds: dict[str, list[list[list[int]]]]
    temperature: float = 0.0
    rows: int = 1


def encoded(model) -> dict[str, list[list[int]]]:
    """The prompts as tokens, by kind."""
    chat = lambda text: model.encode_chat([{"role": "user", "content": text}])
    return {
        kind: [chat(text) if kind == "chat" else model.encode(text) for text in texts]
        for kind, texts in prompts.KINDS.items()
    }


def cases(model, flags) -> list[Case]:
    import fmjax
    from fmjax.inference.draft_options import drafted

    texts = encoded(model)
    look_up = {"none": None, "look-up": drafted(model, "lookup", None)}
    computed = {f"first {count} layers": drafted(model, f"layers:{count}", None) for count in flags.layers}
    computed |= {pathlib.Path(path).name: drafted(model, fmjax.load(path), None) for path in flags.draft}
    alone = {kind: [[text] for text in some] for kind, some in texts.items()}
    four = {
        "repeated text, copies": [[text] * 4 for text in texts["repeated text"]],
        "one of each kind": [list(some) for some in zip(*texts.values())],
    }
    return [
        Case(look_up, alone), Case(look_up, alone, temperature=0.8), Case(look_up, four, rows=4),
        Case({"none": None} | computed, {kind: some[:1] for kind, some in alone.items()}),
    ]  # fmt: skip


class Compiled:
    """Counts what is traced and compiled from when it is made."""

    def __init__(self):
        from jax import monitoring

        self.number = 0
        monitoring.register_event_duration_secs_listener(self._told)

    def _told(self, event: str, seconds: float, **_) -> None:
        self.number += event.startswith("/jax/core/compile/")


def continued(engine, tokens: list[list[int]], new: int, temperature: float, draft, compiled: Compiled) -> dict:
    """Continuations of prompts at once, without an end: their texts, seconds and tokens after the first of each, and
    what the draft was worth. Runs again until nothing is compiled meanwhile."""
    from fmjax.inference.engine_requests import Acceptance, PromptRequest
    from fmjax.inference.sampler import Sampling

    requests = [PromptRequest(one, new, Sampling(temperature), seed=1) for one in tokens]
    before = None
    while compiled.number != before:
        found, worth = [[] for _ in tokens], Acceptance()
        for chunk in engine.run(requests, batch_size=len(tokens), cache_length=PLACES, draft=draft):
            if not found[chunk.index]:
                begin, before = time.perf_counter(), compiled.number
            found[chunk.index] += chunk.tokens
            worth += chunk.acceptance or Acceptance()
        seconds = time.perf_counter() - begin
    return {
        "texts": found, "seconds": seconds, "tokens": sum(len(text) - 1 for text in found),
        "worth": dataclasses.asdict(worth),
    }  # fmt: skip


def side_by_side(engine, tokens, new: int, case: Case, compiled: Compiled, turned: bool) -> dict[str, dict]:
    """A batch continued in all ways of a case, in their order or, turned, the other way round."""
    ways = list(case.ways.items())[:: -1 if turned else 1]
    found = {name: continued(engine, tokens, new, case.temperature, draft, compiled) for name, draft in ways}
    plain = found["none"]["texts"]
    return {name: {**one, "texts": None, "same_text": one["texts"] == plain} for name, one in found.items()}


def content(weights) -> str:
    """A digest of all arrays."""
    from fmjax.inference.fingerprint import array_fingerprints

    return hashlib.sha256("\n".join(array_fingerprints(weights)).encode()).hexdigest()[:32]


def measured(engine, case: Case, flags, kept: runs.Measured, model: str, compiled: Compiled) -> list[dict]:
    """A row a kind and way."""
    rows = []
    ways = {name: draft and (str(draft.draft), content(draft.weights)) for name, draft in case.ways.items()}
    for kind, batches in case.kinds.items():
        taken = []
        for repeat in range(flags.repeats):
            for tokens in batches:
                settings = {
                    "model": model, "ways": ways, "tokens": tokens, "new_tokens": flags.new_tokens,
                    "temperature": case.temperature, "repeat": repeat, "places": PLACES,
                }  # fmt: skip
                measure = lambda: side_by_side(engine, tokens, flags.new_tokens, case, compiled, repeat % 2 == 1)
                taken.append(kept.once(settings, measure))
        for name in case.ways:
            rows.append({
                "kind": kind, "texts": len(batches), "temperature": case.temperature, "rows": case.rows, "draft": name,
                **summary([one[name] for one in taken], [one["none"] for one in taken]),
            })  # fmt: skip
            print(line(rows[-1]), flush=True)
    return rows


def summary(each: list[dict], plain: list[dict]) -> dict:
    """Of runs with a draft and the same ones without: over all of them, and how much faster the least and most were."""
    from fmjax.inference.engine_requests import Acceptance

    speed = lambda parts: sum(one["tokens"] for one in parts) / sum(one["seconds"] for one in parts)
    ratios = [speed([a]) / speed([b]) for a, b in zip(each, plain)]
    worth = sum((Acceptance(**one["worth"]) for one in each), Acceptance())
    return {
        "tokens_per_second": speed(each), "times_faster": speed(each) / speed(plain),
        "least_faster": min(ratios), "most_faster": max(ratios),
        "tokens_a_pass": worth.tokens_a_pass if worth.passes else 1.0, "accepted_share": worth.accepted_share,
        "proposed": worth.proposed, "same_text": all(one["same_text"] for one in each),
    }  # fmt: skip


COLUMNS = (
    "| text | batches | temperature | rows | draft | accepted | tokens a pass | tokens/s | faster | least, most | "
    "same text |"
)
RULE = f"|{'---|' * (COLUMNS.count('|') - 1)}"
NAMES = ("kind", "texts", "temperature", "rows", "draft")
NUMBERS = {"tokens_a_pass": 2, "tokens_per_second": 1, "times_faster": 2}


def line(row: dict) -> str:
    """A line of the README's table."""
    share = f"{row['accepted_share']:.0%} of {row['proposed']}" if row["proposed"] else ""
    numbers = [f"{row[name]:.{places}f}" for name, places in NUMBERS.items()]
    numbers.append("" if row["draft"] == "none" else f"{row['least_faster']:.2f}, {row['most_faster']:.2f}")
    same = "yes" if row["same_text"] else "no"
    return f"| {' | '.join([*(str(row[name]) for name in NAMES), share, *numbers, same])} |"


def write_table(rows: list[dict], flags, page: pathlib.Path) -> None:
    """Puts the table, and below it what it was measured with, in place of those on the page."""
    before, _, rest = page.read_text().partition(COLUMNS)
    after = rest.partition("\n\n")[2].partition("\n\n")[2]
    setting = ", ".join(f"{name} {value}" for name, value in runs.setting().items())
    told = f"{flags.new_tokens} new tokens, {flags.repeats} runs of each batch and way; {setting}."
    page.write_text(before + "\n".join([COLUMNS, RULE, *map(line, rows)]) + f"\n\n{told}\n\n" + after)


def plot(rows: list[dict], file: pathlib.Path) -> None:
    """Times as fast by kind, a bar a draft, of greedy texts of a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["temperature"] == 0 and row["rows"] == 1 and row["draft"] != "none"]
    kinds, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("kind", "draft"))
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        own = {row["kind"]: row["times_faster"] for row in rows if row["draft"] == name}
        axes.bar([i + number * width for i in range(len(kinds))], [own[kind] for kind in kinds], width, label=name)
    axes.axhline(1, color="gray", linestyle="--", linewidth=1)
    axes.set_xticks([i + width * (len(names) - 1) / 2 for i in range(len(kinds))], kinds)
    axes.set_ylabel("times as fast as without a draft")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a chat model")
    parser.add_argument("--draft", action="append", default=[], help="a model with the same tokenizer, or draft heads")
    parser.add_argument("--layers", type=int, nargs="*", default=[20], help="for early exit")
    parser.add_argument("--new_tokens", type=int, default=104)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each batch and way, every other one turned")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/speculation"))
    parser.add_argument("--output", type=pathlib.Path, default=HERE)
    flags = parser.parse_args()

    import fmjax
    from fmjax.cache_folder import use_compilation_cache

    use_compilation_cache()
    kept, compiled = runs.Measured(flags.workdir / "measured.json"), Compiled()
    model = fmjax.load(flags.model, unrolled=True).unrolled(donate=True)
    whose = content(model.engine.weights)
    print(f"{COLUMNS}\n{RULE}")
    rows = []
    for case in cases(model, flags):
        rows += measured(model.engine, case, flags, kept, whose, compiled)
    flags.output.mkdir(parents=True, exist_ok=True)
    told = {name: getattr(flags, name) for name in ("new_tokens", "repeats")}
    runs.save(flags.output, {"model": pathlib.Path(flags.model).name, **told, "rows": rows})
    plot(rows, flags.output / "speculation.png")
    if (page := flags.output / "README.md").exists():
        write_table(rows, flags, page)


if __name__ == "__main__":
    main()
