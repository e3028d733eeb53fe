"""Which layers of a teacher go with those of a student."""

import pytest

from fmjax.errors import ConfigError
from fmjax.layers.layer_map import layer_map


def test_named_maps_are_those_of_the_papers():
    assert layer_map("spread", 6, 12, "x") == (0, 2, 4, 7, 9, 11)  # DistilBERT's scripts/extract.py
    assert layer_map("every", 4, 12, "x") == (2, 5, 8, 11)  # TinyBERT4: layer m of BERT's 3 m
    assert layer_map("every", 10, 30, "x") == tuple(range(2, 30, 3))
    assert layer_map("last", 3, 12, "x") == (-1, -1, 11)
    assert layer_map((0, -1, 2), 3, 3, "x") == (0, -1, 2)
    assert layer_map("spread", 1, 5, "x") == (0,) and layer_map("spread", 3, 3, "x") == (0, 1, 2)


@pytest.mark.parametrize(
    "layers, student, teacher, message",
    [
        ("every", 4, 10, "cuts the teacher's 10 layers into 4 equal parts"), ("evry", 4, 8, "did you mean 'every'"),
        ("spread", 4, 3, "picks 4 different layers, and the teacher has 3"), ((0, 1), 3, 6, "names 2 layers"),
        ((0, 6), 2, 6, "has no layer 6; its 6 are 0 to 5"), ((0, -2), 2, 6, "no layer -2"),
    ],
)  # fmt: skip
def test_what_fits_no_depth_is_refused(layers, student, teacher, message):
    with pytest.raises(ConfigError, match=f"key = .*{message}"):
        layer_map(layers, student, teacher, "key")
