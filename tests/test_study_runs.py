"""What the studies of experiments/ share."""

import importlib.util
import pathlib

FILE = pathlib.Path(__file__).parents[1] / "experiments" / "runs.py"


def test_a_figure_is_kept_by_what_it_was_measured_with(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("study_runs", FILE)
    runs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runs)
    file = tmp_path / "runs" / "measured.json"
    measured = iter(range(10))
    once = lambda **settings: runs.Measured(file).once(settings, lambda: next(measured))
    assert [once(rows=1, draft="lookup"), once(draft="lookup", rows=1), once(rows=4, draft="lookup")] == [0, 0, 1]
    monkeypatch.setattr(runs, "processor", lambda: "another")
    assert [once(rows=1, draft="lookup"), once(rows=1, draft="lookup")] == [2, 2]
