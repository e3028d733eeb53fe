"""Chats up to the reply: rows of prompts with what is known of a right reply, and texts of pretraining beside them."""

import json

import numpy as np
import pytest

from fmjax.data.chats.asked import ChatPromptData, read_asked
from fmjax.data.chats.data import ChatData
from fmjax.data.with_pretraining import WithPretraining
from fmjax.errors import ConfigError, DataError

TEMPLATE = dict(tokenizer="bytes", chat_template="turns", heldout_fraction=0.25)


def opened(tmp_path, **fields):
    records = [{"prompt": f"What is {n} + 1?", "answer": n + 1} for n in range(40)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, records)))
    fields = dict(sequence_length=40, answer_bytes=3) | TEMPLATE | fields
    return ChatPromptData(source=str(tmp_path / "asked.jsonl"), **fields).open(seed=0, cache_dir=tmp_path / "cache")


def test_a_row_is_a_prompt_in_the_template_and_its_answer(tmp_path):
    data = opened(tmp_path)
    row = data.train[3]
    text = bytes(row["tokens"][: row["lengths"]].clip(max=255).astype(np.uint8))
    number = int(text.split(b"What is ")[1].split(b" ")[0])
    asked = [256, *f"user\nWhat is {number} + 1?".encode(), 257, 256, *b"assistant\n"]
    assert row["tokens"][: row["lengths"]].tolist() == asked and not row["tokens"][row["lengths"] :].any()
    assert bytes(row["answers"]).rstrip(b"\0") == str(number + 1).encode()
    assert list(data.stop_ids) == [257] and 2 < len(data.evaluation["heldout"]) < 25
    example = ChatPromptData(source="x", sequence_length=40, answer_bytes=3, **TEMPLATE).example
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {k: (v.shape, v.dtype) for k, v in row.items()}
    with pytest.raises(DataError, match="record|row|line"):
        opened(tmp_path, answer_bytes=1)


def test_what_is_asked_and_what_is_right():
    where = "here"
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert (read_asked(chat, where).messages, read_asked(chat, where).answer) == (chat["messages"][:1], "b")
    assert read_asked({"prompt": "a", "completion": "b"}, where).answer == "b"
    assert read_asked({"prompt": "a", "completion": "b", "answer": 2.5}, where).answer == "2.5"
    assert read_asked({"instruction": "a", "input": "c", "tests": ["assert 1", "assert 2"]}, where) == read_asked(
        {"prompt": "a\n\nc", "answer": "assert 1\nassert 2"}, where
    )
    for record, message in (({"text": "a"}, "nothing is asked"), ({"prompt": "a", "answer": {}}, "a text or a number")):
        with pytest.raises(DataError, match=message):
            read_asked(record, where)


def test_texts_lie_beside_each_prompt(tmp_path):
    prompts = ChatPromptData(sequence_length=40, **TEMPLATE)
    text = ChatData(sequence_length=96, **TEMPLATE)
    data = WithPretraining(prompts, text, texts=2)
    rows = data.open(seed=1, cache_dir=tmp_path)
    alone = [one.open(seed=1, cache_dir=tmp_path).train for one in (prompts, text)]
    row = rows.train[5]
    np.testing.assert_array_equal(row["tokens"], alone[0][5]["tokens"])
    np.testing.assert_array_equal(row["ptx_targets"], np.stack([alone[1][10]["targets"], alone[1][11]["targets"]]))
    assert {k: (v.shape, v.dtype) for k, v in data.example.items()} == {k: (v.shape, v.dtype) for k, v in row.items()}
    (tmp_path / "words").write_text("words of text\n" * 400)
    other = ChatData(sequence_length=96, **TEMPLATE | {"tokenizer": "train:300"})
    with pytest.raises(ConfigError, match="data.text is cut by another tokenizer"):
        WithPretraining(prompts, other).open(seed=1, cache_dir=tmp_path)
