"""Solved examples in front of a prompt: which, and how they are written.

The choice depends on the seed and the document's content alone, not on how many documents are evaluated, in
which order or by how many hosts; a document is never among its own examples. Where a task's examples are fixed, they
are its first ones.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from fmjax.errors import InputError
from fmjax.tasks.protocol import Generate, Request, Score, Task, TaskContext


@dataclasses.dataclass(frozen=True)
class FewShot:
    """What stands in front of a task's prompts.

    Attributes:
      task: the task.
      num_shots: examples in each prompt.
      seed: of their choice.
      pool: documents that they are drawn from, with their keys; no two have the same key.
    """

    task: Task
    num_shots: int
    seed: int
    pool: Sequence[tuple[str, object]] = ()

    @classmethod
    def make(cls, task: Task, num_shots: int | None, seed: int, context: TaskContext) -> "FewShot":
        """For `num_shots` examples, None for the task's own number.

        Raises InputError where the task takes none, or has fewer documents to draw from.
        """
        num_shots = task.num_shots if num_shots is None else num_shots
        if num_shots == 0:
            return cls(task, 0, seed)
        examples = task.examples(context)
        if examples is None:
            raise InputError(f"task {task.name}: takes no examples in the prompt, got num_shots={num_shots}")
        pool = {}
        for document in examples:
            pool.setdefault(task.key(document), document)
        # One more than asked for: the document itself may be among those drawn.
        if len(pool) < num_shots + (not task.fixed_examples):
            raise InputError(
                f"task {task.name}: num_shots={num_shots} takes "
                f"{'at least' if task.fixed_examples else 'more than'} that many different documents to draw "
                f"examples from, and there are {len(pool)}"
            )
        return cls(task, num_shots, seed, list(pool.items()))

    def examples(self, key: str) -> list:
        """The examples of the document with this key."""
        if not self.num_shots:
            return []
        if self.task.fixed_examples:
            return [example for other, example in self.pool if other != key][: self.num_shots]
        digest = hashlib.sha256(f"{self.seed} {key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        drawn = rng.choice(len(self.pool), self.num_shots + 1, replace=False)
        return [self.pool[i][1] for i in drawn if self.pool[i][0] != key][: self.num_shots]

    def prefix(self, document) -> str:
        """Preamble and examples, each followed by the task's separator."""
        task = self.task
        shown = [task.example(example) + task.separator for example in self.examples(task.key(document))]
        return task.preamble + "".join(shown)

    def requests(self, document) -> list[Request]:
        """The document's requests with the prefix in front of every context and prompt."""
        return add_prefix(self.task.requests(document), self.prefix(document))


def add_prefix(requests: Sequence[Request], prefix: str) -> list[Request]:
    """The requests with `prefix` in front of every context (`Score`) and prompt (`Generate`)."""
    if not prefix:
        return list(requests)
    found = []
    for request in requests:
        if isinstance(request, Score):
            request = dataclasses.replace(request, context=prefix + request.context)
        elif isinstance(request, Generate):
            request = dataclasses.replace(request, prompt=prefix + request.prompt)
        found.append(request)
    return found
