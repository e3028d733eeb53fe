"""Misspelt options and a text in place of token ids are answered with what was meant."""

import pytest
from small_models import byte_model

from fmjax.errors import InputError


@pytest.fixture(scope="module")
def model():
    return byte_model()


@pytest.mark.parametrize(
    ("method", "given", "option", "meant"),
    [
        ("generate", ["a"], "temprature", "temperature"),
        ("complete", ["a"], "max_tokens", "max_new_tokens"),
        ("chat", [{"role": "user", "content": "a"}], "top_pp", "top_p"),
        ("stream", ["a"], "sed", "seed"),
        ("beam_search", ["a"], "num_beam", "num_beams"),
        ("score", [("a", "b")], "progres", "progress"),
        ("loglikelihood_rolling", ["a"], "progres", "progress"),
        ("embed", ["a"], "poling", "pooling"),
        ("fill_mask", ["a"], "topk", "top_k"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(model, method, given, option, meant):
    with pytest.raises(InputError, match=f"{method} has no option '{option}'; did you mean '{meant}'"):
        getattr(model, method)(given, **{option: 1})


@pytest.mark.parametrize("tokens", ["import", ["import"], [["import"]]])
def test_apply_to_a_text_points_to_encode(model, tokens):
    with pytest.raises(InputError, match=r"apply takes token ids \[B, T\].*m.apply\(\[m.encode\(text\)\]\)"):
        model.apply(tokens)


def test_apply_takes_rows_of_one_length(model):
    with pytest.raises(InputError, match=r"ids \[B, T\], .* shape \[4\]; put the row in a list: m.apply\(\[tokens\]\)"):
        model.apply(model.encode("abc"))
    with pytest.raises(InputError, match=r"got shape \[1, 1, 2\]$"):
        model.apply([[[1, 2]]])
    with pytest.raises(InputError, match=r"rows of one length, got \[\[1, 2\], \[3\]\]; fill the shorter"):
        model.apply([[1, 2], [3]])
