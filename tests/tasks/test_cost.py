"""FLOPs of evaluations against a hand calculation; energy by a fake meter, and estimates labelled as such."""

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

    assert cost.forward_flops(module, {7: 3, 20: 1, 0: 5}) == pytest.approx(3 * by_hand(7) + by_hand(20))
    assert cost.forward_flops(object(), {7: 3}) is None


def zone(root, name, count, limit=1_000_000):
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "energy_uj").write_text(f"{count}\n")
    (root / name / "max_energy_range_uj").write_text(f"{limit}\n")


def test_packages_are_counted_once_and_a_counter_that_starts_again_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "POWERCAP", tmp_path)
    zone(tmp_path, "intel-rapl:0", 900_000)
    zone(tmp_path, "intel-rapl:1", 100_000)
    zone(tmp_path, "intel-rapl:0:0", 5_000)  # a part of package 0
    meter = cost.EnergyMeter()
    zone(tmp_path, "intel-rapl:0", 200_000)  # past the end: 0.3 J more
    zone(tmp_path, "intel-rapl:1", 600_000)
    energy = meter.read()
    assert energy.joules == pytest.approx(0.3 + 0.5) and energy.source == "measured: RAPL, the whole machine"


def test_without_a_meter_the_estimate_says_that_it_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "POWERCAP", tmp_path / "none")
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(cost.os, "cpu_count", lambda: 4)
    energy = cost.EnergyMeter().read()
    assert energy.joules == pytest.approx(3 * 4 * cost.WATTS_PER_CORE)
    assert energy.source == "estimated: 4 cores of 5 W"
