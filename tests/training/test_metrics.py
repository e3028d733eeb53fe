"""metrics.jsonl never holds a step twice, and survives a torn line; the clock's arithmetic."""

import json
import math
import time

from fmjax.parallel.mesh import MeshConfig, make_mesh
from fmjax.training import clock as clocks
from fmjax.training.metrics import MetricsWriter, _smooth, plot_loss, read_metrics


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
