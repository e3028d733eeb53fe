"""Hosts of GPUs are slices: which axes of the mesh go from one to the next."""

import dataclasses

import pytest

from fmjax.errors import ConfigError
from fmjax.parallel.mesh import AXES, _laid_out


@dataclasses.dataclass(frozen=True)
class Gpu:
    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "a GPU"

    @property
    def process_index(self):
        return self.slice_index


def slices(hosts: int, each: int, **sizes):
    sizes = dict.fromkeys(AXES, 1) | sizes
    return _laid_out(sizes, [Gpu(host * each + n, host) for host in range(hosts) for n in range(each)])


@pytest.mark.parametrize(
    "hosts, sizes, axis",
    [
        (2, {"data": 2, "fsdp": 4}, "data"),
        (2, {"fsdp": 8}, "fsdp"),
        (2, {"fsdp": 4, "tensor": 2}, "fsdp"),
        (2, {"tensor": 8}, "tensor"),
        (2, {"tensor": 2, "sequence": 4}, "sequence"),
    ],
)
def test_slices_fall_along_the_axis_that_sends_least(hosts, sizes, axis):
    grid = slices(hosts, 4, **sizes)
    assert sorted(device.id for device in grid.flat) == list(range(8))
    number = AXES.index(axis)
    for half in range(2):
        part = grid.take(range(half * grid.shape[number] // 2, (half + 1) * grid.shape[number] // 2), axis=number)
        assert len({device.slice_index for device in part.flat}) == 1


def test_slices_may_fall_along_two_axes():
    grid = slices(4, 2, data=2, fsdp=4)
    for row in grid.reshape(2, 2, 2):
        assert [len({device.slice_index for device in pair}) for pair in row] == [1, 1]


def test_what_does_not_divide_over_the_slices_is_named():
    with pytest.raises(ConfigError, match="mesh.data = 2, mesh.fsdp = 1.* do not divide over 3 slices"):
        slices(3, 2, data=2, expert=3)
