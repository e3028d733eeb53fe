"""FLOPs of evaluations against a hand calculation; energy by a fake meter, and estimates labelled as such."""

import time

import pytest

from fmjax.models.gpt import GPT
from fmjax.tasks import cost


def test_flops_of_forward_passes_are_the_hand_calculation():
    width, layers, vocab = 16, 2, 50
    module = GPT(num_layers=layers, hidden_size=width, num_heads=2, max_length=64, vocab_size=vocab)

    def by_hand(n):
        matrices = 2 * n * layers * (4 * width**2 + 8 * width**2)  # attention's four, the MLP's two
        pairs = n * (n + 1) // 2
        return matrices + layers * 2 * 2 * pairs * width + 2 * n * width * vocab

    assert cost.flops(module, {7: 3, 20: 1, 0: 5}) == pytest.approx(3 * by_hand(7) + by_hand(20))
    assert cost.flops(module, {7: 1}, {20: 2}) == pytest.approx(by_hand(7) + 2 * 3 * by_hand(20))
    assert cost.flops(object(), {7: 3}) is None


def zone(root, name, count, limit=1_000_000):
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "energy_uj").write_text(f"{count}\n")
    (root / name / "max_energy_range_uj").write_text(f"{limit}\n")


def test_packages_are_counted_once_and_a_counter_that_starts_again_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "POWERCAP", tmp_path)
    monkeypatch.setattr(cost, "MOST_WATTS", 1e-3)
    zone(tmp_path, "intel-rapl:0", 900_000)
    zone(tmp_path, "intel-rapl:1", 100_000)
    zone(tmp_path, "intel-rapl:0:0", 5_000)  # a part of package 0
    meter = cost.EnergyMeter()
    zone(tmp_path, "intel-rapl:0", 200_000)  # past the end: 0.3 J more
    zone(tmp_path, "intel-rapl:1", 600_000)
    energy = meter.read()
    assert energy.joules == pytest.approx(0.3 + 0.5) and energy.source == "measured: RAPL, the whole machine"


def test_a_counter_that_starts_again_many_times_is_followed(tmp_path, monkeypatch):
    """One reading at each end would give 0.05 J of the 3 that it counts three times over."""
    monkeypatch.setattr(cost, "POWERCAP", tmp_path)
    monkeypatch.setattr(cost, "MOST_WATTS", 1e-3)  # it is read by hand, and by nobody else
    zone(tmp_path, "intel-rapl:0", 0)
    meter, now = cost.EnergyMeter(), cost.time.perf_counter()
    for number in range(1, 62):
        zone(tmp_path, "intel-rapl:0", number * 50_000 % 1_000_000)
        meter._sample(now)
    energy = meter.read()
    assert energy.joules == pytest.approx(61 * 0.05) and energy.source.startswith("measured: RAPL")


def test_the_counter_is_read_in_time_or_the_figure_is_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "POWERCAP", tmp_path)
    monkeypatch.setattr(cost, "MOST_WATTS", 2.0)  # of 1 J: 0.5 s at most from one reading to the next
    zone(tmp_path, "intel-rapl:0", 0)
    meter = cost.EnergyMeter()
    zone(tmp_path, "intel-rapl:0", 400_000)
    deadline = time.monotonic() + 20
    while meter._joules == 0.0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert meter._joules == pytest.approx(0.4)
    meter._ended.set()
    meter._at -= 0.6  # as if the thread had not come
    assert meter.read().source.startswith("estimated")
    # A counter that is gone says nothing either.
    monkeypatch.setattr(cost, "MOST_WATTS", 1e-3)
    meter = cost.EnergyMeter()
    monkeypatch.setattr(cost, "POWERCAP", tmp_path / "none")
    assert meter.read().source.startswith("estimated")
    monkeypatch.setattr(cost.jax, "process_count", lambda: 2)
    assert cost.EnergyMeter().read().source.endswith("; of one host alone, of 2 processes")


def test_without_a_meter_the_estimate_says_that_it_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "POWERCAP", tmp_path / "none")
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(cost.os, "cpu_count", lambda: 4)
    energy = cost.EnergyMeter().read()
    assert energy.joules == pytest.approx(3 * 4 * cost.WATTS_PER_CORE)
    assert energy.source == "estimated: 4 cores of 5 W"
