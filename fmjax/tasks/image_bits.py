"""Bits a number of real images, as models that make images out of noise bound them."""

from fmjax.errors import InputError
from fmjax.tasks.capabilities import naming
from fmjax.tasks.made.making import average
from fmjax.tasks.made.references import reference
from fmjax.tasks.made.settings import parse
from fmjax.tasks.protocol import Apply, Task


class ImageBits(Task):
    """`bits_per_dim`: of an image's numbers, from 0 to 255, on top of its class where the model takes one; an upper
    bound in expectation (`fmjax.diffusion.likelihood`). Its parts: `prior`, what the noisiest image tells, `between`,
    `last`, what is left of the image when all but the least noise is gone. Standard errors hold that of drawn noise.
    """

    name, version, uses = "image_bits", "1", ("image_bits",)
    metrics = ("bits_per_dim", "prior", "between", "last")
    description = (
        "image_bits:DATA[:draws=32][:labels=none], bits a number of real images by a diffusion "
        "model's bound, at so many noise levels each"
    )
    needs = "DATA: digits, mnist, fashion_mnist, images:FOLDER, or own[:PART], the images of the model's own run"

    def __init__(self, argument: str):
        self.name = f"{type(self).name}:{argument}"
        with naming(self):
            settings = parse(argument, ("draws", "labels"))
            if settings.options:
                raise InputError(f"{settings.options[0][0]!r} is no setting; known: draws, labels=none")
            self.data, self.words = reference(settings.words), settings.words
            self.draws = settings.count("draws", 32)
            self.labels = settings.own.get("labels", "data")
            if self.labels not in ("data", "none"):
                raise InputError(f"labels={self.labels}: only labels=none, for images of no class, is known")

    def documents(self, context):
        self.seed = context.seed
        found = self.data.documents(context)
        return [{"index": index, "image": one["image"], "label": one["label"]} for index, one in enumerate(found)]

    def requests(self, document):
        label = document["label"] if self.labels == "data" else None
        number = (self.seed * 1_000_003 + document["index"]) % 2**32
        return [Apply("image_bits", (document["image"], label, number, self.draws))]

    def statistics(self, document, answers):
        prior, between, last = answers[0]
        return {"bits_per_dim": prior + between + last, "prior": prior, "between": between, "last": last}

    def gather(self, model, documents, answers):
        self.card = {
            "data": ":".join(self.words), "documents": len(documents), "size": list(model.codec.shape),
            "draws": self.draws, "labels": self.labels, "seed": self.seed, **average(model),
        }  # fmt: skip

    def details(self):
        return {"card": self.card}
