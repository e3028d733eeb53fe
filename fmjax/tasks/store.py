"""Answers kept on disk as they come, so that an interrupted evaluation goes on and a repeated one is free.

One file for each model: its name is a digest of the weights, the architecture, the tokenizer and the code that computes
(`model_fingerprint`). One line an answer, under a digest of the whole request. Another model, another tokenizer, a
changed request or changed code therefore never meets an answer that is not its own.
"""

import contextlib
import hashlib
import json
import pathlib
from typing import Any

import jax

from fmjax import file_lock
from fmjax.code_digest import code_digest
from fmjax.errors import DataError, InputError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.parallel.hosts import from_first_process
from fmjax.registry import import_object
from fmjax.tasks.protocol import Apply, Generate, Request, Rolling, RollingAnswer, Score, ScoreAnswer, request_fields

READ_AS = {Score: lambda x: ScoreAnswer(*x), Rolling: lambda x: RollingAnswer(*x)}


class AnswerStores(contextlib.ExitStack):
    """The stores of one evaluation, open until its end: one for each model that differs in what it computes.

    Args:
      folder: where the files lie; made if missing.
    """

    def __init__(self, folder: pathlib.Path):
        super().__init__()
        self._folder = folder
        self._stores: dict[str, AnswerStore] = {}

    def of(self, model, fingerprint: str | None = None) -> "AnswerStore":
        """The store of a model. `fingerprint` is its own, where it is known already."""
        fingerprint = fingerprint or model_fingerprint(model)
        if fingerprint not in self._stores:
            self._stores[fingerprint] = self.enter_context(AnswerStore(self._folder, model, fingerprint))
        return self._stores[fingerprint]


class AnswerStore:
    """Answers of one model.

    Args:
      folder: where the file lies; made if missing.
      model: a `fmjax.load.Model`.
      fingerprint: of it, where it is known already.

    Only process 0 reads and writes; the others know what it read, so that all ask the model for the same, whatever is
    on their own disks. A last line that an interruption cut off is dropped. Raises DataError for any other line that is
    damaged, InputError while another evaluation writes to the file.
    """

    def __init__(self, folder: pathlib.Path, model, fingerprint: str | None = None):
        self.path = folder / f"{fingerprint or model_fingerprint(model)}.jsonl"
        self._model = model
        self._answers: dict[str, Any] = {}
        self._code: dict[str, str] = {}
        self._file, data = None, b""
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+")
            if not file_lock.take(self._file, self.path):
                self._file.close()
                raise InputError(
                    f"{str(self.path)!r} is in use by another evaluation of the same model; wait for its end, or give "
                    "another folder for the answers (--answers=DIR)"
                )
            self._file.seek(0)
            data = self._file.read()
        end = self._take(from_first_process(data))
        if self._file is not None:
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
        known = self._answers.get(self._key(request, seed))
        return known if known is None else READ_AS.get(type(request), lambda x: x)(known)

    def put(self, request: Request, seed: int, answer: Any) -> None:
        key = self._key(request, seed)
        self._answers[key] = answer
        if self._file is not None:
            self._file.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")
            self._file.flush()

    def _key(self, request: Request, seed: int) -> str:
        drawn = isinstance(request, Generate) and request.temperature > 0
        fields = [type(request).__name__, request_fields(request), seed if drawn else None]
        path = request.function if isinstance(request, Apply) else getattr(request, "environment", "")
        if ":" in path:  # code that only this request names
            function = import_object(path, "function")
            if path not in self._code:
                self._code[path] = code_digest([function])
            fields.append(self._code[path])
            depends_on = getattr(function, "depends_on", None) if isinstance(request, Apply) else None
            if depends_on is not None and (besides := depends_on(self._model, request.inputs)):
                fields.append(besides)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()
