"""Bytes that process 0 gives to the others: of any length, in pieces. (Between processes: `test_launch`.)"""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from fmjax.errors import DataError
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


def test_what_a_process_read_otherwise_than_the_first_is_named_with_its_host(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "from_first_process", lambda _: b'{"data": {"data": "ab", "tokenizer": "t"}}')
    hosts.check_same({"data": {"data": "ab", "tokenizer": "t"}})
    message = rf"data.data on host {hosts.socket.gethostname()} is 'cd', and for process 0 'ab'"
    with pytest.raises(DataError, match=message):
        hosts.check_same({"data": {"data": "cd", "tokenizer": "t"}})
    with pytest.raises(DataError, match="codec on host .* is {'image': 'x'}, and for process 0 None"):
        hosts.check_same({"data": {"data": "ab", "tokenizer": "t"}, "codec": {"image": "x"}})
