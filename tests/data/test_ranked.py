"""Judged answers: the shapes they come in, and the rows they make."""

import json

import numpy as np
import pytest

from fmjax.data.chats.arithmetic import preferences, rankings
from fmjax.data.chats.comparisons import read_comparison, read_labelled
from fmjax.data.chats.ranked import LabelledData, PreferenceData
from fmjax.data.chats.records import BadChat
from fmjax.errors import ConfigError, DataError


def said(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


SHAPES = {
    "texts": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "messages": {"prompt": said("q"), "chosen": said("q", "a")[1:], "rejected": said("q", "b")[1:]},
    "whole chats": {"chosen": said("q", "a"), "rejected": said("q", "b"), "prompt": "ignored"},
    "one message": {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
                    "rejected": {"from": "gpt", "value": "b"}},
    "instruction": {"instruction": "q", "input": "", "output": "ignored", "chosen": "a", "rejected": "b"},
    "transcripts": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "scores": {"prompt": "q", "responses": ["a", "b"], "scores": [1, 0]},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_told_by_their_fields(name):
    found = read_comparison(SHAPES[name], "here")
    assert found.chats() == [said("q", "a"), said("q", "b")] and found.scores == (1.0, 0.0)
    assert found.reference_logprobs is None and found.margin == 0


def test_ranks_margins_references_and_labels():
    found = read_comparison({"prompt": "q", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}, "here")
    assert found.scores == (-2.0, -1.0, -2.0)
    more = {"margin": 0.5, "ref_chosen_logps": -1, "ref_rejected_logps": -2}
    found = read_comparison({**SHAPES["texts"], **more}, "here")
    assert found.margin == 0.5 and found.reference_logprobs == (-1.0, -2.0)
    liked, disliked = read_labelled(SHAPES["texts"], "here")
    assert (liked.chats(), liked.scores) == ([said("q", "a")], (1.0,))
    assert (disliked.chats(), disliked.scores) == ([said("q", "b")], (0.0,))
    for record in ({"prompt": "q", "completion": "a", "label": True}, {"messages": said("q", "a"), "label": True}):
        (found,) = read_labelled(record, "here")
        assert found.chats() == [said("q", "a")] and found.scores == (1.0,)


BAD = [
    ({"prompt": "q", "chosen": "a"}, DataError, "no judged answers. Found the fields prompt, chosen; expected"),
    ({"chosen": "a", "rejected": "b"}, DataError, "no judged answers"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, DataError, "here, scores: expected 2 finite numbers"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1, None]}, DataError, "here, scores: expected 2 finite"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, BadChat, "none of 2 answers is better"),
    ({"prompt": "q", "responses": ["a"], "scores": [1]}, BadChat, "none of 1 answers is better"),
    ({"prompt": "q", "chosen": "a", "rejected": " "}, BadChat, "message 1, the assistant's, is empty"),
    ({"chosen": said("q", "a"), "rejected": said("p", "b")}, BadChat, "chats that differ before their last reply"),
    ({"prompt": "q", "chosen": {"role": "user", "content": "a"}, "rejected": "b"}, BadChat, "chosen: the answer is of"),
    ({**SHAPES["texts"], "margin": "x"}, DataError, "here, margin: expected 1 finite number"),
    ("q", DataError, "expected an object, found str"),
]


@pytest.mark.parametrize("record, error, message", BAD)
def test_what_is_no_comparison_is_said(record, error, message):
    with pytest.raises(error, match=message):
        read_comparison(record, "here")
    if error is DataError and isinstance(record, dict) and "chosen" not in record:
        with pytest.raises(DataError, match="a boolean 'label'"):
            read_labelled(record, "here")


def opened(tmp_path, records, kind=PreferenceData, **fields):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    fields = {"sequence_length": 32, "chat_template": "turns", "heldout_fraction": 0.0} | fields
    return kind(source=str(tmp_path / "a.jsonl"), **fields).open(seed=0, cache_dir=tmp_path / "cache")


def spelt(row):
    """(chat, what of it is learnt) of each answer."""
    spell = lambda ids: "".join({256: "<", 257: ">"}.get(i) or chr(i) for i in ids.tolist())
    found = []
    for k in range(int(row["answer_weights"].sum())):
        there, learnt = row["segment_ids"][k] == 1, row["loss_weights"][k] > 0
        np.testing.assert_array_equal(row["positions"][k][there], np.arange(there.sum()))
        targets = row["targets"][k]
        np.testing.assert_array_equal(row["tokens"][k][there][1:], targets[there][:-1])
        found.append((spell(row["tokens"][k][there]), spell(targets[learnt])))
    return found


def test_a_row_has_the_answers_each_in_its_chat(tmp_path):
    records = [{"prompt": f"q{n}", "responses": ["a", "bb"], "scores": [n, 1]} for n in (2, 3)]
    records.append({"prompt": "q4", "responses": ["a", "bb", "c"], "scores": [5, 1, 1], "margin": 2})
    data = opened(tmp_path, records, num_answers=3)
    rows = {row["scores"][0]: row for row in (data.train[i] for i in range(3))}
    assert set(rows) == {2.0, 3.0, 5.0}
    chat = "<user\nq{}><assistant\n{}>"
    assert spelt(rows[2]) == [(chat.format(2, "a"), "a>"), (chat.format(2, "bb"), "bb>")]
    assert spelt(rows[5])[2] == (chat.format(4, "c"), "c>")
    assert rows[2]["answer_weights"].tolist() == [1, 1, 0] and not rows[2]["tokens"][2].any()
    assert rows[5]["scores"].tolist() == [5, 1, 1] and rows[5]["margins"] == 2
    example = PreferenceData(source="x", sequence_length=32, num_answers=3).example
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {k: (v.shape, v.dtype) for k, v in rows[2].items()}
    with pytest.raises(DataError, match=r"a.jsonl line 3: 3 answers, more than data.num_answers = 2; raise it"):
        opened(tmp_path, records)
    with pytest.raises(DataError, match="no chat fits"):
        opened(tmp_path, records[:1], sequence_length=12)


def test_log_probabilities_of_a_reference_are_of_all_answers_or_none(tmp_path):
    record = {**SHAPES["texts"], "reference_logprobs": [-1.5, -2.5]}
    row = opened(tmp_path, [record]).train[0]
    assert row["reference_logprobs"].tolist() == [-1.5, -2.5]
    with pytest.raises(DataError, match="2 of 4 answers have reference_logprobs"):
        opened(tmp_path, [record, SHAPES["texts"]])


def test_a_labelled_answer_stands_beside_another_chats(tmp_path):
    records = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n % 2 == 0} for n in range(3)]
    data = opened(tmp_path, records, LabelledData)
    found = {row["scores"][0]: [] for row in (data.train[i] for i in range(3))}
    for row in (data.train[i] for i in range(3)):
        found[row["scores"][0]].append(spelt(row))
    chat = "<user\nq{}><assistant\na{}>"
    assert found[0.0] == [[(chat.format(1, 1), "a1>"), (chat.format(1, 0), "a0>")]]
    others = [[(chat.format(n, n), f"a{n}>"), (chat.format(n, (n - 1) % 3), f"a{(n - 1) % 3}>")] for n in (0, 2)]
    assert sorted(found[1.0]) == sorted(others)
    with pytest.raises(DataError, match="the only train record"):
        opened(tmp_path, records[:1], LabelledData)
    with pytest.raises(ConfigError, match="not for labelled answers"):
        LabelledData(num_answers=3)


def test_built_in_answers_are_right_and_wrong():
    for record in preferences(20):
        found = read_comparison(record, "here")
        right = sum(map(int, record["prompt"].removeprefix("What is ").removesuffix("?").split(" + ")))
        assert record["chosen"].endswith(f"= {right}.") and not record["rejected"].endswith(f"= {right}.")
        assert len(found.answers) == 2
    for record in rankings(20):
        assert len(set(record["responses"])) == 4 and record["scores"][0] == 0 == max(record["scores"])
        read_comparison(record, "here")
    assert rankings(3) == rankings(20)[:3] and preferences(3) == preferences(20)[:3]
