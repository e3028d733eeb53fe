"""metrics.jsonl never holds a step twice, and survives a torn line; the clock's arithmetic."""

import errno
import json
import math
import resource
import struct
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.data.codecs.image import ImageCodec
from fmjax.parallel.mesh import MeshConfig, make_mesh
from fmjax.training import clock as clocks
from fmjax.training.metrics import MetricsWriter, _smooth, plot_loss, read_metrics
from fmjax.training.sampling import SampleLog, read_blocks


def test_a_resumed_run_drops_what_was_logged_after_its_checkpoint(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in range(1, 6):
        writer.write(step, {"train/loss": 1.0 / step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')  # a kill in the middle of a line
    writer = MetricsWriter(tmp_path, start_step=3, tensorboard=False)
    writer.write(4, {"train/loss": math.inf})
    writer.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["train/loss"] is None  # JSON has no infinity
    assert read_metrics(tmp_path / "metrics.jsonl") == rows


def test_the_picture_is_drawn_from_what_is_there(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True)
    for step in range(1, 20):
        writer.write(step, {"train/loss": 3.0 / step})
    writer.write(19, {"eval/loss": 1.0})
    writer.close()
    plot_loss(tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())
    assert _smooth([2.0, 2.0, 2.0])[-1] == 2.0


def test_a_full_disk_is_an_error_where_it_is_met(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    raised = []

    def fill():
        try:
            for step in range(2000):
                writer.tensorboard.scalars(step, {"train/loss": 1.0})
        except OSError as error:
            raised.append(error.errno)

    thread = threading.Thread(target=fill, daemon=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        thread.start()
        thread.join(30)  # tensorboardX's own writer waits for ever
        with pytest.raises(OSError):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised == [errno.EFBIG] and writer.file.closed


def test_samples_of_later_steps_and_torn_ones_are_dropped(tmp_path):
    log, writer = SampleLog(tmp_path), MetricsWriter(tmp_path, 0, tensorboard=False)
    for step in (2, 4, 6):
        log.write(step, [f"text {step}", "line\n\nline"], None, writer)
    whole = (tmp_path / "samples.txt").read_text()
    assert SampleLog(tmp_path, 4).found
    assert [step for step, _ in read_blocks(tmp_path / "samples.txt")] == [2, 4]
    (tmp_path / "samples.txt").write_text(whole[:-1])
    assert not SampleLog(tmp_path, 6).found
    assert (tmp_path / "samples.txt").read_text() == "".join(
        block for _, block in read_blocks(tmp_path / "samples.txt")
    )


def test_results_written_again_replace_those_of_the_same_step(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(3, {"train/loss": 1.0})
    for value in (1.0, 2.0):
        writer.replace(3, {"task/acc": value})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 3, "train/loss": 1.0}, {"step": 3, "task/acc": 2.0}]
    assert MetricsWriter(tmp_path, 3, tensorboard=False).found == {"train/loss": 1.0, "task/acc": 2.0}


def test_speed_leaves_pauses_out_and_mfu_needs_a_known_chip(monkeypatch):
    mesh = make_mesh(MeshConfig(data=8))
    assert clocks.Clock(mesh, 4, 40, 1e6).peak is None  # a CPU's peak is not known, so not guessed
    monkeypatch.setattr(clocks, "peak_flops", lambda device: 1e9)
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = clocks.Clock(mesh, 4, 40, 1e6)
    clock.restart(input_wait=1.0)
    clock.steps = 10
    now[0] += 25.0
    clock.pause(5.0)
    read = clock.read(input_wait=3.0)
    assert read["perf/seconds_per_step"] == 2.0
    assert read["perf/tokens_per_second"] == 20.0 and read["perf/examples_per_second"] == 2.0
    assert read["perf/input_wait_share"] == 0.1
    assert read["perf/model_flops_per_second"] == 5e5 and read["perf/mfu"] == 5e5 / 8e9


def test_the_smoothed_curve_does_not_lag():
    falling = [100.0 - step for step in range(101)]
    np.testing.assert_allclose(_smooth(falling), falling)


def test_an_interval_ends_where_its_last_step_was_complete_not_where_it_is_read():
    completions = clocks.Completions()
    clock = clocks.Clock(make_mesh(MeshConfig(data=8)), 4, 40, None)
    clock.restart(0.0)
    completed = completions.of(jnp.zeros(()))
    time.sleep(0.2)  # as where the next step has run before this one's metrics are read
    following = completions.of(jnp.zeros(()))
    seconds = []
    for future in (completed, following):
        clock.steps += 1
        seconds.append(clock.read(0.0, future.result())["perf/seconds_per_step"])
    completions.close()
    assert seconds[0] < 0.15 < seconds[1]


def summaries(folder):
    """The summaries of the event files in a folder: records of a length, its checksum, the event and a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for file in folder.iterdir():
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            if event.HasField("summary"):
                yield event.summary


def test_images_have_a_folder_a_step_whole_or_not_at_all(tmp_path):
    codec, images = ImageCodec(2, 3, 1), [np.full((2, 3, 1), value, np.uint8) for value in (0, 128, 255)]
    log, writer = SampleLog(tmp_path), MetricsWriter(tmp_path, 0)
    for step in (2, 4):
        log.write(step, images, codec, writer)
    writer.close()
    assert {p.name for p in (tmp_path / "samples" / "4").iterdir()} == {"0.png", "1.png", "2.png", "all.png"}
    np.testing.assert_array_equal(codec.read(tmp_path / "samples" / "2" / "1.png"), images[1])
    events = [summary.value for summary in summaries(tmp_path / "tensorboard")]
    assert [(v.tag, v.image.height, v.image.width) for values in events for v in values] == [("samples", 5, 7)] * 2
    (tmp_path / "samples" / "5.part").mkdir()
    (tmp_path / "samples" / "task.jsonl").touch()
    assert SampleLog(tmp_path, 2).found and not SampleLog(tmp_path, 1).found
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["task.jsonl"]
