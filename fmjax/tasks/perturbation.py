"""Any task made harder: `NAME+typos` and the like of texts (`text_changes`), `NAME+noise` of images (`image_changes`).

Each document is asked twice, as it is and perturbed, and the drop of every metric is reported with its error, which
the pairing makes small. What is changed depends on the seed in the task's name (`+typos`) and the document alone.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from fmjax.data.codecs.media import Media
from fmjax.errors import InputError
from fmjax.tasks.image_changes import CHANGES, ImageChange
from fmjax.tasks.protocol import Apply, Generate, Request, Score, Task
from fmjax.tasks.text_changes import around_gap, around_labels, distractor, paraphrase, typos, words_changed

PERTURBATIONS: dict[str, Callable | None] = {
    "typos": typos,
    "paraphrase": paraphrase,
    "distractor": distractor,
    "options": None,  # reorders a document, not a text
    **dict.fromkeys(CHANGES),  # change images, not texts
}


@dataclasses.dataclass(frozen=True)
class _Both:
    """A document as it is and perturbed; the second is the same where only texts of requests change."""

    task: "Perturbed"
    plain: object
    perturbed: object

    @functools.cached_property
    def requests(self) -> tuple[list[Request], list[Request]]:
        """Those of either, made once: the statistics ask whether they differ."""
        return self.task.sides(self)


class Perturbed(Task):
    """A task beside its perturbed self.

    A change of images is made of every image in what the document applies to the model (`Apply`). Another perturbation
    changes what the document itself asks, in its contexts (`Score`) and prompts (`Generate`), not the examples in front
    of it, not the template's labels (`Task.labels`) and not the continuations that are scored. Where a document's
    contexts are one text with a gap (`Task.gap_in_context`), all of them are changed alike, outside of the gap.

    Args:
      task: the task.
      perturbation: a name of `PERTURBATIONS`.

    Metrics: for each metric of the task, itself, NAME_perturbed, and NAME_drop, the first less the second; `changed`,
    the part of the documents that the perturbation changed at all, and `words_changed`, how many words of a document it
    changed in the mean, where it changes texts.

    Raises InputError for a task that the perturbation cannot change, and from `check_changes`.
    """

    def __init__(self, task: Task, perturbation: str):
        if isinstance(task, Perturbed):
            raise InputError(f"task {task.name}+{perturbation}: perturbations do not stack; give one of them")
        if perturbation == "options" and not hasattr(task, "reorder"):
            raise InputError(
                f"task {task.name}+options: {task.name} has no options in its prompt, so there is no order to change "
                "(options that are scored one by one have none); mmlu lists its options"
            )
        if task.adapts and perturbation not in CHANGES:
            raise InputError(
                f"task {task.name}+{perturbation}: {task.name} trains on its texts; perturb a prompted task"
            )
        self.task, self.perturbation = task, perturbation
        self.counted = ("changed",) if perturbation in CHANGES else ("changed", "words_changed")
        self.name = f"{task.name}+{perturbation}"
        self.version = f"{task.version}.3"
        self.metrics = tuple(name + end for name in task.metrics for end in ("", "_perturbed", "_drop"))
        self.metrics += self.counted
        self.description = f"{task.description}; beside it with {perturbation}"
        for field in ("needs", "uses", "num_shots", "separator", "examples_in_order"):
            setattr(self, field, getattr(task, field))

    def check(self):
        self.task.check()

    def documents(self, context):
        return [self._both(document) for document in self.task.documents(context)]

    def examples(self, context):
        found = self.task.examples(context)
        return None if found is None else [_Both(self, document, document) for document in found]

    def example(self, document):
        return self.task.example(document.plain)

    def asks(self, document):
        return self.task.asks(document.plain)

    def example_group(self, document):
        return self.task.example_group(document.plain)

    def adapt(self, model, context):
        return self.task.adapt(model, context)

    def preamble_of(self, document):
        return self.task.preamble_of(document.plain)

    def details(self):
        return self.task.details()

    def _both(self, document) -> _Both:
        if self.perturbation != "options":
            return _Both(self, document, document)
        count = len(self.task.requests(document))
        order = [int(i) for i in self._rng(document).permutation(count)]
        if order == sorted(order):  # a document that stays as it was would hide a part of the drop
            order = [*order[1:], order[0]]
        return _Both(self, document, self.task.reorder(document, order))

    def requests(self, document):
        plain, perturbed = document.requests
        return [*plain, *perturbed]

    def sides(self, document: _Both) -> tuple[list[Request], list[Request]]:
        """The requests of the document as it is, and perturbed."""
        plain, perturbed = self.task.requests(document.plain), self.task.requests(document.perturbed)
        if self.perturbation in CHANGES:
            seed = int(self._rng(document.plain).integers(2**63))
            return plain, [self._with_media(request, ImageChange(self.perturbation, seed)) for request in perturbed]
        change = PERTURBATIONS[self.perturbation]
        if change is not None:
            texts = list(dict.fromkeys(self._text(request) for request in perturbed))

            def own(text: str) -> str:
                return change(text, self._rng(document.plain))

            changed = self._changed(texts, lambda text: around_labels(self.task.labels, text, own))
            perturbed = [self._with_text(request, changed[self._text(request)]) for request in perturbed]
        return plain, perturbed

    def check_changes(self, documents: Sequence[_Both]) -> None:
        """Raises InputError where the perturbation changes none of the documents, whose drop of 0 would say nothing."""
        if all(before == after for before, after in (document.requests for document in documents)):
            raise InputError(
                f"task {self.name}: {self.perturbation} changes none of the {len(documents)} documents asked, whose "
                f"contexts and prompts are empty or hold nothing that it changes; choose another perturbation of "
                f"{', '.join(PERTURBATIONS)}, another task, or a higher limit where there is one"
            )

    def _changed(self, texts: Sequence[str], change: Callable[[str], str]) -> dict[str, str]:
        if self.task.gap_in_context and len(texts) > 1:
            return around_gap(texts, change)
        return {text: change(text) for text in texts}

    def _text(self, request: Request) -> str:
        if isinstance(request, Score):
            return request.context
        if isinstance(request, Generate):
            return request.prompt
        raise InputError(f"task {self.name}: only what is scored or generated after a text can be perturbed")

    def _with_text(self, request: Score | Generate, text: str) -> Request:
        return dataclasses.replace(request, **{"context" if isinstance(request, Score) else "prompt": text})

    def _with_media(self, request: Request, change: ImageChange) -> Request:
        """The request with its images changed."""

        def changed(value):
            if isinstance(value, Media) and value.modality == "image":
                return dataclasses.replace(value, name=f"{value.name}+{change.name}", change=change)
            return tuple(map(changed, value)) if isinstance(value, tuple) else value

        made = dataclasses.replace(request, inputs=changed(request.inputs)) if isinstance(request, Apply) else request
        if made == request:
            raise InputError(f"task {self.name}: {self.task.name} asks about no image, which {change.name} changes")
        return made

    def _rng(self, document) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.perturbation} {self.task.key(document)}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def statistics(self, document, answers):
        half = len(answers) // 2
        plain = self.task.statistics(document.plain, answers[:half])
        perturbed = self.task.statistics(document.perturbed, answers[half:])
        before, after = document.requests
        sides = {f"plain/{k}": v for k, v in plain.items()} | {f"perturbed/{k}": v for k, v in perturbed.items()}
        sides["changed"] = float(before != after)
        if "words_changed" in self.counted:
            texts = {(self._text(old), self._text(new)) for old, new in zip(before, after)}
            sides["words_changed"] = float(max(words_changed(*pair) for pair in texts))
        return sides

    @property
    def is_summable(self):
        return self.task.is_summable

    def reduce_documents(self, statistics):
        total = math.fsum(statistics["documents"])
        metrics = {name: math.fsum(statistics[name]) / total for name in self.counted}
        sides = [
            self.task.reduce_documents(
                {k.removeprefix(side): v for k, v in statistics.items() if k.startswith(side)}
                | {"documents": statistics["documents"]}
            )
            for side in ("plain/", "perturbed/")
        ]
        for name in sides[0]:
            before, after = sides[0][name], sides[1][name]
            metrics |= {name: before, f"{name}_perturbed": after, f"{name}_drop": before - after}
        return metrics

    def key(self, document):
        return self.task.key(document.plain)

    def cluster(self, document):
        return self.task.cluster(document.plain)

    def record(self, document):
        return self.task.record(document.plain)
