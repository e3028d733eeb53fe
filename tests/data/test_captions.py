"""Captions as rows: the tokenizer's frame stays whole where a text is cut, and what is too long is counted."""

import pytest

from fmjax.data.captions import CaptionRows
from fmjax.data.tokenizers.byte import ByteTokenizer
from fmjax.errors import ConfigError, DataError


class Framed(ByteTokenizer):
    add_eos = True


class Respelling(ByteTokenizer):
    """Small letters inside the frame alone."""

    def encode_pair(self, first, second=None):
        return super().encode_pair(first.lower(), second)


def test_a_caption_is_framed_padded_and_cut_within_its_frame():
    short = CaptionRows(Framed(), 6)("cat")
    assert short["tokens"].tolist() == [256, *b"cat", 257, 0] and short["segment_ids"].tolist() == [1] * 5 + [0]
    assert CaptionRows(Framed(), 6)("a cat")["tokens"].tolist() == [256, *b"a ca", 257]
    plain = CaptionRows(ByteTokenizer(), 4)("a cat")
    assert plain["tokens"].tolist() == [256, *b"a c"] and plain["segment_ids"].tolist() == [1] * 4
    assert {array.dtype.name for array in plain.values()} == {"int32"}


def test_what_does_not_fit_is_counted_or_refused(caplog):
    texts = ["a cat", "a dog on a mat", "two dogs"]
    CaptionRows(Framed(), 8).check_lengths(texts, "pets.csv")
    assert "pets.csv: 2 of 3 captions are longer than data.sequence_length = 8 tokens, and are cut" in caplog.text
    assert "the longest, 'a dog on a mat', has 16" in caplog.text
    caplog.clear()
    CaptionRows(Framed(), 16, "error").check_lengths(texts, "pets.csv")
    assert not caplog.text
    refusing = CaptionRows(Framed(), 8, "error")
    with pytest.raises(DataError, match="pets.csv: 2 of 3 captions .*Raise it, or set data.overlong = 'cut'"):
        refusing.check_lengths(texts, "pets.csv")
    with pytest.raises(DataError, match="'two dogs' has 10 tokens, more than data.sequence_length = 8"):
        refusing("two dogs")
    with pytest.raises(DataError, match="a caption is empty"):
        CaptionRows(Framed(), 8)(" ")
    with pytest.raises(ConfigError, match="'A CAT' is too long, and cannot be cut"):
        CaptionRows(Respelling(), 4)("A CAT")
    with pytest.raises(ConfigError, match="sequence_length = 2 leaves no token for text: the tokenizer puts 2 around"):
        CaptionRows(Framed(), 2)("cat")
