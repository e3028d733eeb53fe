"""The picture of a scene: shapes on black with smooth edges, the same bytes wherever it is drawn."""

import numpy as np

from fmjax.data.shapes.scenes import Look, Scene, light

SAMPLES = 4  # a pixel's value is the mean of this many points along each axis
RADII = {"small": 0.075, "large": 0.12}  # of the circle that a shape lies in, as shares of the picture's side


def draw(scene: Scene, size: int) -> np.ndarray:
    """The picture uint8 [size, size, 3]. A pixel's value is the share of it that a thing covers, to 1/16, times the
    thing's colour."""
    picture = np.zeros((size, size, 3), np.float32)
    for thing in scene:
        down, right = thing.centre
        radius = RADII[thing.look.size]
        top, bottom, left, right_end = (
            min(max(edge, 0), size)
            for edge in (
                int((down - radius) * size), int((down + radius) * size) + 2,
                int((right - radius) * size), int((right + radius) * size) + 2,
            )
        )  # fmt: skip
        y = (_points(top, bottom, size) - down)[:, None] / radius
        x = (_points(left, right_end, size) - right)[None] / radius
        inside = _inside(thing.look, y, x).reshape(bottom - top, SAMPLES, right_end - left, SAMPLES)
        covered = inside.mean(axis=(1, 3), dtype=np.float32)[..., None]
        place = picture[top:bottom, left:right_end]
        place[:] = place * (1 - covered) + light(thing.look.colour) * covered
    return np.rint(picture * 255).astype(np.uint8)


def _points(start: int, stop: int, size: int) -> np.ndarray:
    """Where the points of pixels start .. stop - 1 lie, from 0 to 1."""
    return (np.arange(start * SAMPLES, stop * SAMPLES) + 0.5) / (size * SAMPLES)


def _inside(look: Look, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whether points (y down, x right) lie in a shape within the unit circle around the origin."""
    if look.shape == "circle":
        return y**2 + x**2 <= 1
    if look.shape == "ring":
        return np.abs(y**2 + x**2 - 0.65) <= 0.35
    if look.shape == "square":
        return np.maximum(np.abs(y), np.abs(x)) <= 0.7
    if look.shape == "diamond":
        return np.abs(y) + np.abs(x) <= 1
    if look.shape == "triangle":  # upright, with equal sides
        return (y <= 0.5) & (y >= -1 + np.sqrt(3) * np.abs(x))
    if look.shape == "cross":
        return (np.minimum(np.abs(y), np.abs(x)) <= 0.25) & (np.maximum(np.abs(y), np.abs(x)) <= 0.95)
    raise ValueError(f"no shape {look.shape!r}")
