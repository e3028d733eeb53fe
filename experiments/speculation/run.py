"""Speculative decoding by kind of text: what drafts are worth, and how much faster they are. See README.md.

    python experiments/speculation/run.py --model=SMOLLM2 [--draft=PATH ...] [--new_tokens=104] [--repeats=1]

Each prompt is continued in all ways, one after the other, by one engine. Speeds are of what follows the first token.
"""

import argparse
import dataclasses
import itertools
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
    """What is measured at once: texts of some kinds in several ways, None being without a draft."""

    ways: dict[str, Any]
    kinds: dict[str, list[list[int]]]
    temperature: float = 0.0
    rows: int = 1
    repeats: int = 1


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

    kinds = encoded(model)
    look_up = {"none": None, "look-up": drafted(model, "lookup", None)}
    computed = {f"first {count} layers": drafted(model, f"layers:{count}", None) for count in flags.layers}
    computed |= {pathlib.Path(path).name: drafted(model, fmjax.load(path), None) for path in flags.draft}
    copied = {"repeated text": kinds["repeated text"]}
    return [
        Case(look_up, kinds, repeats=flags.repeats),
        Case(look_up, kinds, temperature=0.8, repeats=flags.repeats),
        Case(look_up, copied, rows=4, repeats=flags.repeats),
        Case({"none": None} | computed, {kind: texts[:1] for kind, texts in kinds.items()}),
    ]


def continued(engine, tokens: list[list[int]], new: int, temperature: float, draft, chunks: int = 10**6) -> dict:
    """Continuations of prompts at once, without an end, or the first chunks: seconds, and what the draft was worth."""
    from fmjax.inference.engine_requests import Acceptance, PromptRequest
    from fmjax.inference.sampler import Sampling

    requests = [PromptRequest(one, new, Sampling(temperature), seed=1) for one in tokens]
    found, worth, first = [[] for _ in tokens], Acceptance(), None
    run = engine.run(requests, batch_size=len(tokens), cache_length=PLACES, draft=draft)
    for chunk in itertools.islice(run, chunks):
        first = time.perf_counter() if first is None else first
        found[chunk.index] += chunk.tokens
        worth += chunk.acceptance or Acceptance()
    seconds = time.perf_counter() - first
    return {"seconds": seconds, "texts": found, "worth": worth}


def compile_all(engine, case: Case) -> None:
    """Runs what a case is made of, so that nothing is compiled while it is timed: a text of one token, in which look-up
    finds nothing, and one that is copied."""
    for draft in case.ways.values():
        for text in ([1], case.kinds["repeated text"][0]):
            chunks = 2 if draft is None else 8
            continued(engine, [text] * case.rows, 120, case.temperature, draft, chunks=chunks * case.rows)


def measured(engine, case: Case, new: int) -> list[dict]:
    """A row a kind and way."""
    rows = []
    for kind, texts in case.kinds.items():
        taken = []
        for text in texts * case.repeats:
            own = lambda draft: continued(engine, [text] * case.rows, new, case.temperature, draft)
            taken.append({name: own(draft) for name, draft in case.ways.items()})
        for name in case.ways:
            each, plain = ([one[way] for one in taken] for way in (name, "none"))
            worth = sum((one["worth"] for one in each[1:]), each[0]["worth"])
            rate, before = (speed(part) for part in (each, plain))
            rows.append({
                "kind": kind, "draft": name, "temperature": case.temperature, "rows": case.rows, "texts": len(texts),
                "tokens_per_second": rate, "times_faster": rate / before,
                "tokens_a_pass": worth.tokens_a_pass if worth.passes else 1.0,
                "accepted_share": worth.accepted_share, "proposed": worth.proposed // case.repeats,
                "same_text": all(a["texts"] == b["texts"] for a, b in zip(each, plain)),
            })  # fmt: skip
            print(line(rows[-1]), flush=True)
    return rows


def speed(parts: list[dict]) -> float:
    """Tokens a second after the first ones."""
    return sum(len(text) - 1 for one in parts for text in one["texts"]) / sum(one["seconds"] for one in parts)


COLUMNS = "| text | texts | temperature | rows | draft | accepted | tokens a pass | tokens/s | faster | same text |"
RULE = f"|{'---|' * (COLUMNS.count('|') - 1)}"
NAMES = ("kind", "texts", "temperature", "rows", "draft")
NUMBERS = {"tokens_a_pass": 2, "tokens_per_second": 1, "times_faster": 2}


def line(row: dict) -> str:
    """A line of the README's table."""
    share = f"{row['accepted_share']:.0%} of {row['proposed']}" if row["proposed"] else ""
    numbers = [f"{row[name]:.{places}f}" for name, places in NUMBERS.items()]
    same = "yes" if row["same_text"] else "no"
    return f"| {' | '.join([*(str(row[name]) for name in NAMES), share, *numbers, same])} |"


def write_table(rows: list[dict], page: pathlib.Path) -> None:
    """Puts the table in place of the one on the page."""
    before, _, rest = page.read_text().partition(COLUMNS)
    after = rest.partition("\n\n")[2]
    page.write_text(before + "\n".join([COLUMNS, RULE, *map(line, rows)]) + "\n\n" + after)


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
    parser.add_argument("--repeats", type=int, default=1, help="of all but drafts that compute")
    parser.add_argument("--output", type=pathlib.Path, default=HERE)
    flags = parser.parse_args()

    import fmjax
    from fmjax.cache_folder import use_compilation_cache

    use_compilation_cache()
    model = fmjax.load(flags.model, unrolled=True).unrolled(donate=True)
    asked = cases(model, flags)
    for case in asked:
        compile_all(model.engine, case)
    print(f"{COLUMNS}\n{RULE}")
    rows = [row for case in asked for row in measured(model.engine, case, flags.new_tokens)]
    runs.save(flags.output, {"model": pathlib.Path(flags.model).name, "new_tokens": flags.new_tokens, "rows": rows})
    plot(rows, flags.output / "speculation.png")
    if (page := flags.output / "README.md").exists():
        write_table(rows, page)


if __name__ == "__main__":
    main()
