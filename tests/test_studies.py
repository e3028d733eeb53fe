"""What studies share: figures kept by their settings, and the best of n."""

import importlib.util
import itertools
import os
import pathlib

import numpy as np
import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def module(name: str):
    spec = importlib.util.spec_from_file_location(f"study_{name}", EXPERIMENTS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_figures_are_kept_and_refused_with_other_settings(tmp_path):
    runs = module("runs")
    made = []
    make = lambda: made.append(1) or (1, 2)
    for _ in range(2):
        assert runs.Kept(tmp_path / "a", {"steps": 3, "sizes": (1, 2)}).once("loss", make) == [1, 2]
    assert len(made) == 1
    with pytest.raises(SystemExit, match="steps was 3, is 4"):
        runs.Kept(tmp_path / "a", {"steps": 4, "sizes": (1, 2)})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "measured.json").write_text("{}")
    with pytest.raises(SystemExit, match="measured.json and no settings.json"):
        runs.keyed(tmp_path / "b", {"steps": 3})
    runs.keyed(tmp_path / "c" / "short", {"steps": 1})
    runs.keyed(tmp_path / "c", {"steps": 3})


def test_a_file_that_fails_to_be_written_is_as_it_was(tmp_path, monkeypatch):
    runs = module("runs")
    kept = runs.Kept(tmp_path / "a", {})
    kept.once("one", lambda: 1)
    with monkeypatch.context() as failing:
        failing.setattr(os, "replace", lambda *names: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kept.once("two", lambda: 2)
    assert runs.Kept(tmp_path / "a", {}).once("one", lambda: 2) == 1


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_best_of_n_is_the_mean_over_all_choices(n):
    best_of_n = module("best_of_n")
    ranked_by, values = np.random.default_rng(0).normal(size=(2, 3, 5))
    best = lambda row, some: values[row, max(some, key=lambda place: ranked_by[row, place])]
    choices = [best(row, some) for row in range(3) for some in itertools.combinations(range(5), n)]
    assert best_of_n.mean(n, ranked_by, values) == pytest.approx(np.mean(choices), abs=1e-12)


def test_the_kl_of_the_best_of_n_is_that_of_many_different_rewards():
    best_of_n = module("best_of_n")
    chances = (np.arange(1, 20001) / 20000) ** 4 - (np.arange(20000) / 20000) ** 4
    assert best_of_n.most_kl(4) == pytest.approx(np.sum(chances * np.log(chances * 20000)), abs=1e-3)
