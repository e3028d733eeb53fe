"""Solved examples in front of a prompt: which, and how they are written.

The choice depends on the seed and the document's content alone, not on how many documents are evaluated, in
which order or by how many hosts; a document is never among its own examples. Where a task's examples are fixed, they
are its first ones.
"""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from fmjax.errors import InputError
from fmjax.tasks.protocol import Generate, Request, Score, Task, TaskContext


class NoExamplesError(InputError):
    """Examples are asked for of a task that takes none."""


@dataclasses.dataclass(frozen=True)
class FewShot:
    """What stands in front of a task's prompts.

    Attributes:
      task: the task.
      num_shots: examples in each prompt.
      seed: of their choice.
      pools: documents that they are taken from, with their keys, by `Task.example_group`; no two have the same key.
    """

    task: Task
    num_shots: int
    seed: int
    pools: Mapping[Hashable, Sequence[tuple[str, object]]] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(cls, task: Task, num_shots: int | None, seed: int, context: TaskContext) -> "FewShot":
        """For `num_shots` examples, None for the task's own number.

        Raises NoExamplesError where the task takes none.
        """
        num_shots = task.num_shots if num_shots is None else num_shots
        if num_shots == 0:
            return cls(task, 0, seed)
        examples = task.examples(context)
        if examples is None:
            raise NoExamplesError(f"task {task.name}: takes no examples in the prompt, got num_shots={num_shots}")
        pools = defaultdict(dict)
        for document in examples:
            pools[task.example_group(document)].setdefault(task.key(document), document)
        return cls(task, num_shots, seed, {group: list(pool.items()) for group, pool in pools.items()})

    def examples(self, document) -> list:
        """The examples of a document. Raises InputError where there are too few others."""
        if not self.num_shots:
            return []
        key, group = self.task.key(document), self.task.example_group(document)
        pool = self.pools.get(group, ())
        # Drawing takes one more than asked for: the document itself may be among them.
        needed = self.num_shots + (not self.task.examples_in_order or any(one == key for one, _ in pool))
        if len(pool) < needed:
            raise InputError(
                f"task {self.task.name}: num_shots={self.num_shots} takes at least {needed} different documents to "
                f"take examples from{'' if group is None else f' for {group!r}'}, and there are {len(pool)}"
            )
        order = range(needed)
        if not self.task.examples_in_order:
            digest = hashlib.sha256(f"{self.seed} {key}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
            order = rng.choice(len(pool), needed, replace=False)
        return [pool[i][1] for i in order if pool[i][0] != key][: self.num_shots]

    def prefix(self, document) -> str:
        """Preamble and examples, each followed by the task's separator."""
        task = self.task
        shown = [task.example(example) + task.separator for example in self.examples(document)]
        return task.preamble_of(document) + "".join(shown)

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
