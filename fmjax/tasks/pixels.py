"""How well models that predict images pixel after pixel do so: nats a pixel, of the colours of their palette."""

import math

from fmjax.tasks.images import DigitsSubsets, MNISTData
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


class DigitsPixels(PixelNats, DigitsSubsets):
    """As `digits`, with its subsets."""

    name, version = "digits_pixels", "1"
    description = "nats a pixel of the handwritten digits that training holds out (_train: of the others), 8x8 pixels"


class MNISTPixels(PixelNats, MNISTData):
    """The images of `mnist`."""

    name, version = "mnist_pixels", "1"
    description = "nats a pixel of MNIST's test images, 28x28 pixels, of a model that predicts such"
