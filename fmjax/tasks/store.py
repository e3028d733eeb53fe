"""Answers kept on disk as they come, so that an interrupted evaluation goes on and a repeated one is free.

One file for each model: its name is a digest of the weights, the architecture, the tokenizer and fmjax's version. One
line an answer, under a digest of the whole request. Another model, another tokenizer or a changed request therefore
never meets an answer that is not its own.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax

from fmjax.errors import DataError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.parallel.hosts import from_first_process
from fmjax.tasks.protocol import Generate, Request, Rolling, RollingAnswer, Score, ScoreAnswer

READ_AS = {Score: lambda x: ScoreAnswer(*x), Rolling: lambda x: RollingAnswer(*x)}


class AnswerStore:
    """Answers of one model.

    Args:
      folder: where the file lies; made if missing.
      model: a `fmjax.load.Model`.

    Only process 0 reads and writes; the others know what it read, so that all ask the model for the same, whatever is
    on their own disks. A last line that an interruption cut off is dropped. Raises DataError for any other line that is
    damaged.
    """

    def __init__(self, folder: pathlib.Path, model):
        self.path = folder / f"{model_fingerprint(model)}.jsonl"
        self._answers: dict[str, Any] = {}
        first = jax.process_index() == 0
        end = self._take(from_first_process(self.path.read_bytes() if first and self.path.exists() else b""))
        self._file = None
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._file.truncate(end)

    def _take(self, data: bytes) -> int:
        """Takes in what the file holds; gives the place after its last whole line."""
        end = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:end].splitlines(), start=1):
            try:
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{str(self.path)!r}, line {number}, is not an answer with its key: {line[:60]!r}; delete the line "
                    "or the file, and its requests are answered again"
                ) from None
        return end

    def get(self, request: Request, seed: int) -> Any:
        """The answer, or None where there is none yet."""
        known = self._answers.get(_key(request, seed))
        return known if known is None else READ_AS.get(type(request), lambda x: x)(known)

    def put(self, request: Request, seed: int, answer: Any) -> None:
        key = _key(request, seed)
        self._answers[key] = answer
        if self._file is not None:
            self._file.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _key(request: Request, seed: int) -> str:
    drawn = isinstance(request, Generate) and request.temperature > 0
    fields = [type(request).__name__, dataclasses.asdict(request), seed if drawn else None]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]
