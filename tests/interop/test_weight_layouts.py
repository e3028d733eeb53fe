"""Layouts of convolutions and patches against scipy's correlation, and exactly back; named indices of nested stacks."""

import numpy as np
import pytest
from jax import lax
from scipy.signal import correlate

from fmjax.errors import ConfigError, InputError
from fmjax.interop.weights import CONV, LINEAR, ROW, SAME, Slot, Weight, conv, part, patches, slots
from fmjax.layers.patchify import patchify

RNG = np.random.default_rng(0)


def torch_convolution(x, weight):
    """[O, ...] of x [C, ...], by PyTorch's definition: weight [O, C / groups, ...], no padding."""
    outputs, inside = weight.shape[:2]
    groups = len(x) // inside
    per_group = outputs // groups
    rows = [x[o // per_group * inside :][:inside] for o in range(outputs)]
    return np.stack([sum(correlate(c, k, "valid") for c, k in zip(row, w)) for row, w in zip(rows, weight)])


@pytest.mark.parametrize("axes, groups", [(1, 1), (2, 1), (2, 6), (2, 2), (3, 1)])
def test_convolutions(axes, groups):
    x = RNG.normal(size=(6, *(5, 6, 7)[:axes])).astype(np.float32)
    weight = RNG.normal(size=(12, 6 // groups, *(2, 3, 4)[:axes])).astype(np.float32)
    kernel = CONV.view(weight)
    assert CONV.shape(kernel.shape) == weight.shape and np.may_share_memory(kernel, weight)
    letters = "DHW"[3 - axes :]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    found = lax.conv_general_dilated(
        np.moveaxis(x, 0, -1)[None], kernel, (1,) * axes, "VALID", dimension_numbers=numbers, feature_group_count=groups
    )
    np.testing.assert_allclose(np.moveaxis(found[0], -1, 0), torch_convolution(x, weight), atol=1e-4)


def test_products_over_patches_are_convolutions():
    images = RNG.normal(size=(1, 6, 9, 2)).astype(np.float32)
    weight = RNG.normal(size=(5, 2, 3, 3)).astype(np.float32)
    kernel = patches(3).view(weight)
    assert kernel.shape == (18, 5) and patches(3).shape(kernel.shape) == weight.shape
    found = np.asarray(patchify(images, 3) @ kernel).reshape(2, 3, 5)
    expected = torch_convolution(images[0].transpose(2, 0, 1), weight)[:, ::3, ::3]
    np.testing.assert_allclose(found.transpose(2, 0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("axes", [1, 3])
def test_patches_of_other_numbers_of_axes(axes):
    weight = RNG.normal(size=(5, 3, *(2,) * axes)).astype(np.float32)
    kernel = patches(2, axes).view(weight)
    patch = RNG.normal(size=(*(2,) * axes, 3)).astype(np.float32)
    expected = torch_convolution(np.moveaxis(patch, -1, 0), weight).reshape(5)
    np.testing.assert_allclose(patch.reshape(-1) @ kernel, expected, atol=1e-5)
    assert patches(2, axes).shape(kernel.shape) == weight.shape


LAYOUTS = {
    "same": (SAME, (4, 6)), "linear": (LINEAR, (4, 6)), "row": (ROW, (4, 6)), "part": (part(0, 1), (4, 6)),
    "conv1": (CONV, (3, 4, 6)), "conv2": (CONV, (3, 2, 4, 6)), "conv3": (CONV, (3, 2, 2, 4, 6)),
    "depthwise": (CONV, (3, 3, 1, 6)), "patches": (patches(2), (12, 6)), "patches3": (patches(2, 3), (24, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_written_is_what_was_read(name):
    layout, shape = LAYOUTS[name]
    parameter = RNG.normal(size=shape).astype(np.float32)
    slot = Slot("kernel", (), "weight", layout.shape(shape), layout.view)
    published = np.zeros(slot.shape, np.float32)
    for half in (slice(0, 2), slice(2, None)):  # as two shards
        index = (*(slice(None),) * (len(shape) - 2), half, slice(None))
        slot.write(published, index, parameter[index])
    np.testing.assert_array_equal(layout.view(published), parameter)
    assert set(published.ravel()) == set(parameter.ravel())


def test_a_patch_size_that_does_not_divide_the_product():
    with pytest.raises(ConfigError, match=r"has 18 inputs, no multiple of 16 \(patch_size=4\)"):
        patches(4).shape((18, 5))


def test_nested_stacks_have_named_indices():
    """Stages of their own widths, in each a stack of layers, and a stack of stacks."""
    table = [
        *conv("stages_{stage}/merge", "encoder.layers.{stage}.downsample"),
        Weight("stages_{stage}/blocks/up/kernel", "encoder.layers.{stage}.blocks.{layer}.fc.weight", LINEAR),
        Weight("groups/kernel", "groups.{group}.{layer}.weight", LINEAR),
    ]
    table = [weight.of(None) for weight in table]
    shapes = {f"stages_{i}/blocks/up/kernel": (2 + i, 4 * 2**i, 3) for i in (0, 1)}
    shapes |= {"stages_0/merge/kernel": (2, 2, 4, 8), "stages_0/merge/bias": (8,), "groups/kernel": (2, 3, 5, 7)}
    found = {slot.name: slot for slot in slots(table, shapes)}
    assert len(found) == 2 + (2 + 3) + 6
    last = found["encoder.layers.1.blocks.2.fc.weight"]
    assert (last.path, last.place, last.shape) == ("stages_1/blocks/up/kernel", (2,), (3, 8))
    assert found["encoder.layers.0.downsample.weight"].shape == (8, 4, 2, 2)
    assert found["groups.1.2.weight"].place == (1, 2) and found["groups.1.2.weight"].shape == (7, 5)
    apart = {f"stages_1/blocks_{i}/up/kernel": (8, 3) for i in range(12)}
    named = [(slot.name, slot.path, slot.place) for slot in slots(table, apart)]
    assert named[10] == ("encoder.layers.1.blocks.10.fc.weight", "stages_1/blocks_10/up/kernel", ())
    line = Weight("blocks/up/kernel", "h.{layer}.up.weight", LINEAR).of(None)
    for shape in ({"blocks/up/kernel": (2, 4, 3)}, {f"blocks_{i}/up/kernel": (4, 3) for i in (0, 1)}):
        assert [slot.name for slot in slots([line], shape)] == ["h.0.up.weight", "h.1.up.weight"]
    with pytest.raises(InputError, match="'stages_1/norm/scale' has no published name"):
        slots(table, {"stages_1/norm/scale": (8,)})
    with pytest.raises(InputError, match=r"'encoder.norm' of 'stages_\{stage\}/norm' lacks the indices \['stage'\]"):
        Weight("stages_{stage}/norm", "encoder.norm")


def test_tensors_that_files_hold_more_than_once():
    line = Weight("time/kernel", "blocks.{copy}.time.weight", LINEAR, copies=lambda module: module)
    (slot,) = slots([line.of(3)], {"time/kernel": (4, 5)})
    assert (slot.name, slot.copies) == ("blocks.0.time.weight", ("blocks.1.time.weight", "blocks.2.time.weight"))
    assert line.of(1, "image", "vision.").name == "vision.blocks.{copy}.time.weight"
