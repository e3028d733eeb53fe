"""Reading and writing published weights takes about one tensor more than the shards themselves (Linux: /proc)."""

import importlib.util
import pathlib
import sys

import pytest

MEASURE = pathlib.Path(__file__).parent.parent.parent / "experiments" / "load_memory" / "measure.py"


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_about_one_tensor_above_the_shards(tmp_path):
    spec = importlib.util.spec_from_file_location("measure", MEASURE)
    measure = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = measure
    spec.loader.exec_module(measure)
    measure.make(tmp_path / "model", 200, "float32")
    found = measure.measure(tmp_path / "model", 4, {"fsdp": 2, "tensor": 2}, "float32")
    slack = 20e6  # of what Python and JAX allocate beside it
    assert found["own"] > 3 * found["largest"] > slack
    assert found["load_peak"] < found["own"] + found["largest"] + slack
    assert found["save_peak"] < found["largest"] + slack
