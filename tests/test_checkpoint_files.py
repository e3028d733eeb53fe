"""Arrays in the files of checkpoints: keys of random numbers, and arrays that lie on several devices."""

import logging

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fmjax import checkpoint_files
from fmjax.checkpoint_files import read_item, save_params


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_of_random_numbers_come_back_as_keys(tmp_path, impl):
    key = jax.random.key(3, impl=impl)
    save_params(tmp_path, {"key": key, "bias": np.arange(3.0, dtype=np.float32)})
    item = tmp_path / "checkpoints/0/params"
    assert list((item / "array_metadatas").iterdir())  # which Orbax checks when it saves
    found = read_item(item)
    assert found["key"].dtype == key.dtype and found["bias"].dtype == np.float32
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(key))


def test_a_small_array_on_several_devices_is_written_without_a_program(tmp_path, caplog):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    array = jax.device_put(np.zeros((6, 10), np.float32), NamedSharding(mesh, PartitionSpec()))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        save_params(tmp_path, {"array": array})
    assert "Compiling" not in caplog.text


def test_a_failure_to_register_leaves_the_logger_as_it_was(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no")

    monkeypatch.setattr(ocp.type_handlers, "register_type_handler", refuse)
    level = logging.getLogger("absl").level
    with pytest.raises(ValueError, match="no"):
        checkpoint_files._write_small_arrays_whole()
    assert logging.getLogger("absl").level == level
