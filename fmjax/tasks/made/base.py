"""What tasks about made images share: a document is a real image, and what is asked for is one like it."""

import collections
import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fmjax.errors import InputError
from fmjax.tasks.capabilities import naming
from fmjax.tasks.made import making
from fmjax.tasks.made.references import fitted, reference, stacked
from fmjax.tasks.made.settings import parse
from fmjax.tasks.protocol import Apply, Task


class MadeImages(Task):
    """`NAME:DATA[:KEY=VALUE...]`. Of each real image that was not trained on, `copies` images of its class (or caption)
    are made, so that both sides have the same classes, as often. They are made once for all tasks with the same options
    of the generator, which are keys too (`steps=20`, `sampler=heun`, ...).

    A subclass gives `measure`, called once with all images.

    Attributes:
      keys: settings of the task, with that of all, "copies". One that judges images whatever they are of has "prompts"
        ("none": nothing is said of what to make).
      required: those of them without which there is no score.
    """

    uses = ("make_images",)
    needs = "DATA: digits, mnist, fashion_mnist, images:FOLDER, or own[:PART], the images of the model's own run"
    keys: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[str, ...]] = ()

    def __init__(self, argument: str):
        self.name = f"{type(self).name}:{argument}".removesuffix(":")
        self.card: dict[str, Any] = {}
        with naming(self):
            self.settings = parse(argument, ("copies", *self.keys), self.required)
            if "prompts" not in self.keys and "prompts" in dict(self.settings.options):
                raise InputError("prompts is not set here: the score is about what images are asked for; leave it out")
            self.data = self.open_reference(self.settings.words)
            self.copies = self.settings.count("copies", 1)
            if self.settings.own.get("prompts", "none") != "none":
                raise InputError(f"prompts={self.settings.own['prompts']}: only prompts=none, for no prompts, is known")

    def open_reference(self, words: Sequence[str]):
        """The real images (`references.reference`)."""
        return reference(words)

    def documents(self, context):
        """{"index", "image", "label", "prompt", "first"}: the number of the first copy that is made of its prompt."""
        self.context = context
        counts, found = collections.Counter(), []
        for index, document in enumerate(self.data.documents(context)):
            told = document.get("prompt", document.get("label"))
            prompt = None if "prompts" in self.settings.own else told
            first, counts[prompt] = counts[prompt], counts[prompt] + self.copies
            found.append({"label": None} | document | {"index": index, "prompt": prompt, "first": first})
        return found

    def requests(self, document):
        numbers = range(document["first"], document["first"] + self.copies)
        rest = self.settings.options, self.context.seed
        return [Apply(making.MAKE, (document["prompt"], number, *rest)) for number in numbers]

    def gather(self, model, documents, answers):
        made = stacked([map(making.decoded, group) for group in answers])
        self.model, self.codec = model, model.codec
        self.card = {
            "data": ":".join(self.settings.words), "documents": len(documents), "made": len(made),
            "size": list(made.shape[1:]), "prompts": "none" if "prompts" in self.settings.own else "the real images'",
            **making.card(model, self.settings.options, self.context.seed),
        }  # fmt: skip
        self.columns = self.measure(made, documents)

    def measure(self, made: np.ndarray, documents: Sequence[dict]) -> dict[str, np.ndarray]:
        """Statistics of all documents, [documents] by name: of `made` uint8 [documents * copies, H, W, C], the copies
        of a document one after the other. It adds to `self.card` what the score depends on."""
        raise NotImplementedError

    def statistics(self, document, answers):
        return {name: float(column[document["index"]]) for name, column in self.columns.items()}

    def details(self):
        return {"card": self.card}

    def real(self, documents) -> np.ndarray:
        """Their images as the model makes such, uint8 [N, H, W, C]."""
        return fitted(self.codec, documents)

    def training(self, count: int | None = None) -> list[dict]:
        """Training images, `count` of them, or all where there are fewer, in an order by content; the card says how
        many, and of which where they are not of all."""
        found = list(self.data.training(self.context))
        if count is not None and count < len(found):
            order = {id(one): _place(one, self.context.seed) for one in found}
            found = sorted(found, key=lambda one: order[id(one)])[:count]
        self.card["training_images"] = len(found)
        if left_out := getattr(self.data, "left_out", ""):
            self.card["training_rows"] = left_out
        return found

    def by_document(self, values: np.ndarray) -> np.ndarray:
        """The mean over a document's copies, [documents], of a number for each made image."""
        return np.asarray(values, np.float64).reshape(-1, self.copies).mean(axis=1)


def _place(document: dict, seed: int) -> str:
    return hashlib.sha256(f"{seed} {document['image'].fingerprint} {document['label']}".encode()).hexdigest()
