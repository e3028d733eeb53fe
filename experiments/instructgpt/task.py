"""What is asked, shown and liked in this study: first sentences of docstrings, and a gold reward that is a program."""

import ast
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from fmjax.data.shuffle import Draws
from fmjax.data.splits import HELDOUT_FRACTION, is_heldout
from fmjax.data.stdlib_files import read_documents, stdlib_folder
from fmjax.small_files import write_whole

LONGEST_PROMPT, LONGEST_REPLY = 32, 48
"""Characters."""
HELD_OUT = 256
CUT = 10.0
"""What a reply costs, in gold and in any learnt reward, that was cut off before it ended."""
WORDS = re.compile(r"[A-Za-z]+")


def gold(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """What the labeller of this study likes: about six words, of about seven letters, no word twice.

    Six times the mean over words of 1 - ((letters - 7) / 4)^2, at least -2, and -1 for a word that was there before;
    from that goes ((words - 6) / 3)^2. A reply without words gets -10, and none gets less.
    """
    return [_of_words([word.lower() for word in WORDS.findall(reply)]) for reply in replies]


def _of_words(words: list[str]) -> float:
    if not words:
        return -10.0
    brought = [max(-2.0, 1.0 - ((len(word) - 7) / 4) ** 2) for word in dict.fromkeys(words)]
    brought += [-1.0] * (len(words) - len(brought))
    return max(-10.0, 6.0 * sum(brought) / len(brought) - ((len(words) - 6) / 3) ** 2)


def functions() -> Iterator[tuple[str, str]]:
    """(signature, first sentence of the docstring or "") of the functions of Python's standard library, each signature
    once."""
    seen = set()
    for name, text in read_documents(stdlib_folder()):
        if not name.endswith(".py") or "test" in name:
            continue
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [one.arg for one in node.args.args if one.arg not in ("self", "cls")]
                asked = f"{node.name}({', '.join(arguments)})"
                if asked not in seen and len(asked) <= LONGEST_PROMPT:
                    seen.add(asked)
                    yield asked, _sentence(ast.get_docstring(node) or "")


def heldout_texts(number: int, characters: int) -> list[str]:
    """The beginnings of documents of the standard library that pretraining does not see."""
    found = (text for name, text in read_documents(stdlib_folder()) if is_heldout(name, HELDOUT_FRACTION))
    return [text[:characters] for text in itertools.islice(found, number)]


def _sentence(text: str) -> str:
    """The first sentence of a docstring, with its full stop; "" where there is none of a usable length."""
    first = " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
    usable = 12 <= len(first) < LONGEST_REPLY and first.isascii() and len(WORDS.findall(first)) > 2
    return f"{first}." if usable else ""


def write(folder: pathlib.Path) -> None:
    """demonstrations.jsonl, prompts.jsonl and heldout.jsonl: chats, what is asked, and what is asked in the end alone.
    The three have no signature in common but demonstrations with prompts."""
    found = list(functions())
    order = Draws("instructgpt", "functions").some(range(len(found)), len(found))
    found = [found[place] for place in order]
    held, rest = found[:HELD_OUT], found[HELD_OUT:]
    shown = [{"prompt": asked, "completion": said} for asked, said in rest if said]
    for name, records in {
        "demonstrations": shown,
        "prompts": [{"prompt": asked} for asked, _ in rest],
        "heldout": [{"prompt": asked} for asked, _ in held],
    }.items():
        write_records(folder / f"{name}.jsonl", records)


def write_records(file: pathlib.Path, records: Sequence[dict]) -> None:
    """A record a line; the file is there whole or not at all."""
    write_whole(file, "".join(json.dumps(record) + "\n" for record in records))


def read_records(file: pathlib.Path) -> list[dict]:
    """What `write_records` wrote."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def ranked(prompt: str, replies: Sequence[str], number: int) -> dict | None:
    """A record of ranked answers: ranks are drawn as Plackett and Luce have it, the next best is a reply with
    probability exp(gold) / the sum over those that are left (gold + Gumbel noise, sorted); so that of two replies one
    is preferred with probability sigmoid(difference in gold), and the best learnt reward is gold but for a constant.

    replies: that ended. An answer of a chat always ends, so that what a cut one costs is no ranking's but `CUT`.
    number: of the record, which the draws go by. None for less than two different replies that say something.
    """
    different = list(dict.fromkeys(reply for reply in replies if reply.strip()))
    if len(different) < 2:
        return None
    draws = Draws("instructgpt", "ranks", number)
    noise = [-math.log(-math.log(draws.uniform(1e-12, 1.0))) for _ in different]
    order = np.argsort(-(np.array(gold([], different)) + noise))
    ranks = np.empty(len(order), int)
    ranks[order] = np.arange(1, len(order) + 1)
    return {"prompt": prompt, "responses": different, "ranks": ranks.tolist()}
