"""Steps of samplers are told in pieces of one program, which make what they make untold, and shown on a terminal."""

import io

import flax.linen as nn
import jax
import numpy as np
import pytest

from fmjax.commands import step_bar
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.inference import denoising_program, steps
from fmjax.inference.model import Model


class Velocity(nn.Module):
    num_classes: int = 2

    @nn.compact
    def __call__(self, inputs, times, labels, train=False):
        return inputs * (self.param("speed", nn.initializers.ones, ()) + labels[:, None, None, None])


# Parameters are bound to a device, as loaded ones are.
MODEL = Model(
    Velocity(), {"speed": jax.device_put(0.3, jax.devices()[0])}, {"objective": {"name": "flow_matching"}},
    codecs={"image": ImageCodec(2, 2, 1), "label": LabelCodec(2)},
)  # fmt: skip


def told(count, seconds, monkeypatch):
    """What is told and computed where a step takes so many seconds."""
    clock, found, calls = [0.0], [], []
    monkeypatch.setattr(steps.time, "perf_counter", lambda: clock[0])

    def advance(state, first, last):
        calls.append((first, last))
        clock[0] += seconds * (last - first)
        return state + last - first

    with steps.telling(lambda *said: found.append(said)):
        assert steps.in_pieces(advance, 0, count) == count
    return found, calls


def test_a_piece_is_as_short_as_calls_cost_nothing(monkeypatch):
    found, calls = told(10, 0.04, monkeypatch)
    assert calls == [(0, 1), (1, 3), (3, 7), (7, 10)]
    assert found == [(0, 10), (1, 10), (3, 10), (7, 10), (10, 10)]
    assert told(3, 1.0, monkeypatch)[1] == [(0, 1), (1, 2), (2, 3)]
    calls = []
    steps.in_pieces(lambda state, *part: calls.append(part), None, 10)  # nobody is told
    assert calls == [(0, 10)]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ancestral"])
def test_told_step_by_step_images_are_the_same_by_the_same_program(sampler, monkeypatch):
    options = dict(sampler=sampler, steps=5, seed=1, num_samples=2)
    untold, programs = MODEL.generate([0, 1], **options), denoising_program._advanced._cache_size()
    monkeypatch.setattr(steps, "LEAST_SECONDS", 0.0)
    said = []
    with steps.telling(lambda *one: said.append(one)):
        images = MODEL.generate([0, 1], **options)
    assert said == [(done, 5) for done in range(6)]
    np.testing.assert_array_equal(images, untold)
    assert denoising_program._advanced._cache_size() == programs


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_them_and_a_log_does_not(monkeypatch):
    for file in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", file)
        with step_bar.shown():
            MODEL.generate([0], steps=3, batch_size=1, num_samples=2)
        assert ("0/3" in file.getvalue()) == file.isatty()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("sys.stderr", Terminal())
    with step_bar.shown():
        assert steps._current.get() is None
