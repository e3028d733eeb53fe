"""What every model of the table is asked: windows of WikiText-2's raw text, and questions with choices."""

import dataclasses
import pathlib
import random
from typing import Any

import numpy as np

TASKS = ("piqa", "arc_easy")
PARTS = ("text", *TASKS)


@dataclasses.dataclass(frozen=True)
class Asked:
    """The same for all models of one tokenizer.

    Attributes:
      segments: windows of text (`fmjax.inference.segments.Segment`).
      words, num_bytes: of what is scored in each window.
      questions: by task, (the task, its documents).
    """

    segments: list
    words: list[int]
    num_bytes: list[int]
    questions: dict[str, tuple[Any, list]]


def read(model, data_dir: pathlib.Path, windows: int, context: int, questions: int, seed: int = 0) -> Asked:
    """Of the test text, lines joined as the file has them, so many windows of `context` scored tokens, as far apart as
    they can be, each after one token that is not scored; of each task so many questions, drawn by the seed."""
    from fmjax.inference.segments import Segment
    from fmjax.tasks.catalogue import get_task
    from fmjax.tasks.protocol import TaskContext

    (tokens,) = model.tokens([(data_dir / "text_wikitext2_raw" / "wiki.test.raw").read_text(encoding="utf-8")])
    starts = np.linspace(0, len(tokens) - context - 1, windows).astype(int)
    if len(starts) > 1 and np.diff(starts).min() < context:
        raise SystemExit(f"{windows} windows of {context} tokens overlap in {len(tokens)}; take fewer")
    texts = [model.tokenizer.decode(tokens[start + 1 : start + 1 + context]) for start in starts]
    drawn = {}
    for name in TASKS:
        task = get_task(name)
        documents = task.documents(TaskContext(data_dir=data_dir))
        drawn[name] = task, random.Random(seed).sample(documents, questions)
    return Asked(
        [Segment(tokens[start : start + 1 + context], 1) for start in starts],
        [len(text.split()) for text in texts], [len(text.encode()) for text in texts], drawn,
    )  # fmt: skip


def answers(model, asked: Asked, part: str) -> dict[str, Any]:
    """Of the part "text" {"nats", "tokens", "words", "bytes"}, each of each window; of a task {"right": 0 or 1 of each
    question}."""
    if part == "text":
        scores = dict(model.iter_scores(asked.segments))
        nats, _, tokens = zip(*(scores[i] for i in range(len(scores))))
        return {"nats": [-x for x in nats], "tokens": tokens, "words": asked.words, "bytes": asked.num_bytes}
    from fmjax.tasks.answers import answer

    task, documents = asked.questions[part]
    requests = [task.requests(document) for document in documents]
    found = iter(answer([one for several in requests for one in several], model))
    said = [[next(found) for _ in several] for several in requests]
    return {"right": [int(task.statistics(document, one)["acc"]) for document, one in zip(documents, said)]}


def _mean_and_error(values) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def figures(one: dict[str, dict], reference: dict[str, dict]) -> dict[str, float]:
    """Of what `answers` gave by part, tasks that both have: perplexities by token, word and byte; accuracies; and what
    differs from the reference, window by window and question by question, with standard errors."""
    text, units = one["text"], ("token", "word", "byte")
    nats = np.asarray(text["nats"])
    found = {f"{unit}_perplexity": float(np.exp(nats.sum() / sum(text[f"{unit}s"]))) for unit in units}
    lost = (nats - np.asarray(reference["text"]["nats"])) / np.asarray(text["tokens"])
    found["nats_lost"], found["nats_lost_stderr"] = _mean_and_error(lost)
    for task in one.keys() & reference.keys() & set(TASKS):
        right, before = (np.asarray(of[task]["right"]) for of in (one, reference))
        found[task], found[f"{task}_stderr"] = _mean_and_error(right)
        found[f"{task}_difference"], found[f"{task}_difference_stderr"] = _mean_and_error(right - before)
    return found
