"""How well models that predict images pixel after pixel do so: nats a pixel, of the colours of their palette."""

import math

from fmjax.tasks.images import MNIST, Digits
from fmjax.tasks.protocol import Apply, Task


class PixelNats(Task):
    """Mean negative log-likelihood. It compares between models of one palette alone: of fewer colours it is smaller."""

    metrics, uses = ("nats_per_pixel", "bits_per_pixel"), ("pixel_nats",)

    def requests(self, document):
        return [Apply("pixel_nats", document["image"])]

    def statistics(self, document, answers):
        return {"nats": float(sum(answers[0])), "pixels": len(answers[0])}

    def reduce(self, totals):
        nats = totals["nats"] / totals["pixels"]
        return {"nats_per_pixel": nats, "bits_per_pixel": nats / math.log(2)}


class DigitsPixels(PixelNats, Digits):
    """As `digits`, with its subsets."""

    name, version, metrics, uses = "digits_pixels", "1", PixelNats.metrics, PixelNats.uses
    description = "nats a pixel of the handwritten digits that training holds out (_train: of the others), 8x8 pixels"

    def __init__(self, subset: str = ""):
        super().__init__(subset)
        self.name = f"digits_pixels_{subset}" if subset else "digits_pixels"


class MNISTPixels(PixelNats, MNIST):
    """The images of `mnist`."""

    name, version, metrics, uses = "mnist_pixels", "1", PixelNats.metrics, PixelNats.uses
    description = "nats a pixel of MNIST's test images, 28x28 pixels, of a model that predicts such"
