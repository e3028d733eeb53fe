"""Bytes that process 0 gives to the others: of any length, in pieces. (Between processes: `test_launch`.)"""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from fmjax.parallel import hosts


class Sent(Exception):
    pass


def test_more_bytes_than_32_bits_can_count_keep_their_number(monkeypatch):
    class Long(bytes):
        def __len__(self):
            return 2**31 + 5

    def send(array):
        # Anything wider would be made 32 bits on its way through JAX.
        assert array.dtype == np.uint8
        raise Sent(int.from_bytes(array.tobytes(), "little"))

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", send)
    with pytest.raises(Sent) as sent:
        hosts.from_first_process(Long(b"ab"))
    assert sent.value.args == (2**31 + 5,)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_pieces_are_put_together_in_a_process_that_has_nothing(monkeypatch, count):
    data = bytes(range(1, count + 1))
    on_their_way = []

    def give(array):
        on_their_way.append(array)
        return array

    monkeypatch.setattr(hosts, "PIECE", 4)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", give)
    assert hosts.from_first_process(data) == data
    pieces = list(on_their_way)
    assert all(len(piece) <= 8 for piece in pieces)

    def take(array):
        piece = pieces.pop(0)
        assert array.shape == piece.shape  # as a collective needs it
        return piece

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", take)
    assert hosts.from_first_process(b"my own") == data and not pieces
