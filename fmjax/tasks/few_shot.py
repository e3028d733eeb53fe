"""Solved examples in front of a prompt: which, and how they are written.

The choice depends on the seed, the document's content and the set of examples alone, not on how many documents are
evaluated, in which order documents or examples come or by how many hosts. Neither a document nor another that asks the
same (`Task.asks`) is among its examples. Where a task's examples are fixed, they are its first ones.
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
class Pool:
    """Documents that examples are taken from.

    Attributes:
      documents: in the order of their keys, no two of them equal; where a task's examples are its first ones, all of
        them in its order (of MMLU's published examples two are equal).
      places: of those that ask the same (`Task.asks`) among them, ascending.
    """

    documents: Sequence[object]
    places: Mapping[Hashable, Sequence[int]]

    @classmethod
    def make(cls, documents: Sequence[object], task: Task) -> "Pool":
        places = defaultdict(list)
        for place, document in enumerate(documents):
            places[task.asks(document)].append(place)
        return cls(documents, dict(places))


def _skipping(number: int, places: Sequence[int]) -> int:
    """The place of number `number` of those that are not among `places`, which ascend."""
    for place in places:
        number += place <= number
    return number


@dataclasses.dataclass(frozen=True)
class FewShot:
    """What stands in front of a task's prompts.

    Attributes:
      task: the task.
      num_shots: examples in each prompt.
      seed: of their choice.
      pools: what they are taken from, by `Task.example_group`.
    """

    task: Task
    num_shots: int
    seed: int
    pools: Mapping[Hashable, Pool] = dataclasses.field(default_factory=dict)

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
        groups = defaultdict(list)
        for document in examples:
            groups[task.example_group(document)].append(document)
        if not task.examples_in_order:
            unique = {group: {task.key(document): document for document in found} for group, found in groups.items()}
            groups = {group: [found[key] for key in sorted(found)] for group, found in unique.items()}
        return cls(task, num_shots, seed, {group: Pool.make(found, task) for group, found in groups.items()})

    def examples(self, document) -> list:
        """The examples of a document. Raises InputError where there are too few others."""
        if not self.num_shots:
            return []
        task, group = self.task, self.task.example_group(document)
        pool = self.pools.get(group, Pool([], {}))
        same = pool.places.get(task.asks(document), [])
        count = len(pool.documents) - len(same)
        if count < self.num_shots:
            raise InputError(
                f"task {task.name}: num_shots={self.num_shots} takes as many examples that ask something else than "
                f"their document{'' if group is None else f', for {group!r}'}, and there are {count}"
            )
        chosen = range(self.num_shots)
        if not task.examples_in_order:
            digest = hashlib.sha256(f"{self.seed} {task.key(document)}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
            chosen = rng.choice(count, self.num_shots, replace=False)
        return [pool.documents[_skipping(int(number), same)] for number in chosen]

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
