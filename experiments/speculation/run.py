"""Speculative decoding by kind of text: what drafts are worth, and how much faster they are. See README.md.

    python experiments/speculation/run.py --model=SMOLLM2 [--draft=PATH ...] [--new_tokens=104]

Each prompt is continued in all ways, one after the other, by one engine. Speeds are of what follows the first token.
"""

import argparse
import itertools
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import prompts  # noqa: E402
import runs  # noqa: E402

PLACES = 512
"""Of the cache in all runs, so that they share their programs."""


def encoded(model) -> dict[str, list[list[int]]]:
    """The prompts as tokens, by kind."""
    chat = lambda text: model.encode_chat([{"role": "user", "content": text}])
    return {
        kind: [chat(text) if kind == "chat" else model.encode(text) for text in texts]
        for kind, texts in prompts.KINDS.items()
    }


def drafts(model, layers: list[int], paths: list[str]) -> dict:
    """What drafts, by name; without a draft first."""
    import fmjax
    from fmjax.inference.draft_options import drafted

    found = {"none": None, "look-up": drafted(model, "lookup", None)}
    found |= {f"first {count} layers": drafted(model, f"layers:{count}", None) for count in layers}
    for path in paths:
        found[pathlib.Path(path).name] = drafted(model, fmjax.load(path), None)
    return found


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


def measured(engine, tokens: dict, ways: dict, new: int, temperature: float, batch: int = 1) -> list[dict]:
    """A row a kind and way; of early exit, which is slow here, of the first third of the tokens."""
    from fmjax.inference.drafts import EarlyExit

    length = lambda draft: new // 3 if draft is not None and isinstance(draft.draft, EarlyExit) else new
    rows = []
    for kind, texts in tokens.items():
        taken = []
        for text in texts:
            own = lambda draft: continued(engine, [text] * batch, length(draft), temperature, draft)
            taken.append({name: own(draft) for name, draft in ways.items()})
        for name in ways:
            each = [one[name] for one in taken]
            plain = [one["none"] for one in taken]
            worth = sum((one["worth"] for one in each[1:]), each[0]["worth"])
            rate, before = (speed(part) for part in (each, plain))
            begins = lambda text, whole: all(a == b[: len(a)] for a, b in zip(text, whole))
            rows.append({
                "kind": kind, "draft": name, "temperature": temperature, "batch": batch, "tokens_per_second": rate,
                "times_faster": rate / before, "tokens_a_pass": worth.tokens_a_pass if worth.passes else 1.0,
                "accepted_share": worth.accepted_share, "proposed": worth.proposed,
                "same_text": all(begins(a["texts"], b["texts"]) for a, b in zip(each, plain)),
            })  # fmt: skip
            print(line(rows[-1]), flush=True)
    return rows


def speed(parts: list[dict]) -> float:
    """Tokens a second after the first ones."""
    return sum(len(text) - 1 for one in parts for text in one["texts"]) / sum(one["seconds"] for one in parts)


COLUMNS = "| text | temperature | rows | draft | accepted | tokens a pass | tokens/s | times as fast | same text |"


RULE = f"|{'---|' * (COLUMNS.count('|') - 1)}"
NAMES = ("kind", "temperature", "batch", "draft")
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

    rows = [row for row in rows if row["temperature"] == 0 and row["batch"] == 1 and row["draft"] != "none"]
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
    parser.add_argument("--output", type=pathlib.Path, default=HERE)
    flags = parser.parse_args()

    import fmjax
    from fmjax.cache_folder import use_compilation_cache

    use_compilation_cache()
    model = fmjax.load(flags.model, unrolled=True).unrolled(donate=True)
    tokens, ways = encoded(model), drafts(model, flags.layers, flags.draft)
    few = {name: ways[name] for name in ("none", "look-up")}
    copied = {"repeated text": tokens["repeated text"]}
    cases = [(ways, tokens, 0.0, 1), (few, tokens, 0.8, 1), (few, copied, 0.0, 4)]
    for drafted, texts, temperature, batch in cases:  # compiled before anything is timed
        for draft in drafted.values():
            for kind in texts:
                told = texts[kind][:1] * batch, flags.new_tokens, temperature, draft
                continued(model.engine, *told, chunks=2 if draft is None else 8)
    print(f"{COLUMNS}\n{RULE}")
    rows = []
    for drafted, texts, temperature, batch in cases:
        rows += measured(model.engine, texts, drafted, flags.new_tokens, temperature, batch)
    results = {"model": pathlib.Path(flags.model).name, "new_tokens": flags.new_tokens, "rows": rows}
    runs.save(flags.output, results)
    plot(rows, flags.output / "speculation.png")
    if (page := flags.output / "README.md").exists():
        write_table(rows, page)


if __name__ == "__main__":
    main()
