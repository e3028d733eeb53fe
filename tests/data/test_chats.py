"""Chats: what is learnt of them, the shapes they come in, and the rows they make.

The fixture is written by tests/oracles/make_reply_fixtures.py.
"""

import json
import pathlib
import re

import numpy as np
import pytest
from chat_tokenizers import CHATS, read_chat_tokenizer

from fmjax.data.chats.arithmetic import chats
from fmjax.data.chats.data import ChatData
from fmjax.data.chats.records import BadChat, read_chat
from fmjax.data.packing import PackedRows, PackingPlan
from fmjax.data.tokenizers.chat import encode_chat
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.data.tokenizers.replies import DATE, encode_replies
from fmjax.data.tokenizers.templates import TURNS
from fmjax.errors import ConfigError, DataError, InputError, TokenizerError

FIXTURE = json.loads((pathlib.Path(__file__).parents[1] / "oracles" / "replies.json").read_text())
NAMES = sorted({found["tokenizer"] for found in FIXTURE["found"]})


def said(*texts, system=None):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def tokenizer_of(name, *, says: bool):
    """A fixture's tokenizer, its template with {% generation %} or without."""
    template = CHATS["templates"][name]
    return read_chat_tokenizer(name, template if says else silent(template))


def silent(template):
    """The template, its {% generation %} replaced by what says nothing and takes away as much white space."""
    return re.sub(r"\bgeneration\b", "if true", re.sub(r"\bendgeneration\b", "endif", template))


def with_template(template):
    return ByteTokenizer({"default": template})


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_replies_are_those_of_transformers(name, says):
    """Equal to its mask, whether the template says what is the assistant's or not; the end of Gemma's turn, which the
    fixture's template leaves out, is learnt too."""
    tokenizer = tokenizer_of(name, says=says)
    for expected in (found for found in FIXTURE["found"] if found["tokenizer"] == name):
        messages = FIXTURE["chats"][expected["chat"]]
        found = encode_replies(tokenizer, messages)
        assert found.ids == expected["ids"]
        assert found.ids == encode_chat(tokenizer, messages, now=DATE)
        mask = list(expected["mask"])
        if name == "gemma":
            end = tokenizer.token_to_id("<end_of_turn>")
            for place in range(1, len(mask)):
                mask[place] |= found.ids[place] == end and mask[place - 1]
        assert found.learnt == mask
        replies = sum(message["role"] == "assistant" for message in messages)
        assert len(found.ends) == replies and set(found.ends) <= set(found.ids)
        last = encode_replies(tokenizer, messages, which="last")
        assert last.ids == found.ids and len(last.ends) == 1
        assert [i for i, learnt in enumerate(last.learnt) if learnt] == _last_run(found.learnt)


def _last_run(mask):
    end = len(mask) - mask[::-1].index(1)
    start = max((i + 1 for i in range(end) if not mask[i]), default=0)
    return list(range(start, end))


def test_packed_rows_are_what_trl_trains_on():
    for name in ("qwen3", "llama3"):
        tokenizer, expected = tokenizer_of(name, says=False), FIXTURE["packed"][name]
        found = [encode_replies(tokenizer, messages) for messages in FIXTURE["chats"]]
        lengths = np.array([len(one.ids) for one in found])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        tokens, learnt = (np.concatenate([getattr(one, kind) for one in found]) for kind in ("ids", "learnt"))
        plan = PackingPlan(starts, (lengths - 1).astype(np.int32), np.array([0, len(found)]))
        row = PackedRows(tokens, plan, int((lengths - 1).sum()), learnt)[0]
        # There a row has all ids; here the last of a chat, which predicts nothing, is left out.
        last = np.isin(np.arange(len(tokens)), starts + lengths - 1)
        labels = np.array(expected["labels"])[1:][~last[:-1]]
        np.testing.assert_array_equal(row["tokens"], np.array(expected["input_ids"])[~last])
        np.testing.assert_array_equal(row["positions"], np.array(expected["position_ids"])[~last])
        np.testing.assert_array_equal(row["loss_weights"], labels != -100)
        np.testing.assert_array_equal(row["targets"][labels != -100], labels[labels != -100])


def test_a_template_that_drops_thoughts_is_learnt_reply_by_reply():
    template = (
        "{% for m in messages %}{{ bos_token + m.role[0] }}{% if m.role == 'assistant' and loop.last %}<think>"
        "{% endif %}{{ m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token + 'a' }}{% endif %}"
    )
    tokenizer, chat = with_template(template), said("1", "one", "2", "two")
    with pytest.raises(TokenizerError, match="otherwise once it goes on.*data.replies=each"):
        encode_replies(tokenizer, chat)
    found = encode_replies(tokenizer, chat, which="last")
    assert bytes(i for i, m in zip(found.ids, found.learnt) if m and i < 256) == b"<think>two"


def test_what_could_teach_no_end_is_refused():
    ends = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    ends += "{% if add_generation_prompt %}assistant:{% endif %}"
    with pytest.raises(TokenizerError, match="ends a reply with no control token.*{{ eos_token }}"):
        encode_replies(with_template(ends), said("a", "b"))
    with pytest.raises(TokenizerError, match="once it has a reply"):
        encode_replies(with_template("{{ messages[-1].content }}{{ eos_token }}"), said("a", "b"), which="last")
    # The names of control tokens in a reply are text, and no end of it.
    found = encode_replies(with_template(TURNS), said("<eos>", "<eos>b", "c", "d"))
    assert bytes(i for i, m in zip(found.ids, found.learnt) if m and i < 256) == b"<eos>bd"
    assert found.ends == [ByteTokenizer.eos_id] * 2 and found.ids.count(ByteTokenizer.eos_id) == 4


ONE = said("2 + 3?", "5.")
SHAPES = {
    "messages": {"messages": ONE, "prompt": "ignored", "completion": "ignored"},
    "filled": {"messages": [{**message, "tool_calls": None} for message in ONE]},
    "prompt": {"prompt": "2 + 3?", "completion": "5."},
    "response": {"prompt": "2 + 3?", "response": "5."},
    "prompt of messages": {"prompt": ONE[:1], "completion": ONE[1:]},
    "alpaca": {"instruction": "2 + 3?", "input": "", "output": "5."},
    "sharegpt": {"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5."}]},
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_told_by_their_fields(name):
    assert read_chat(SHAPES[name], "here").messages == ONE
    found = read_chat({**SHAPES[name], "system": "Be brief."}, "here")
    assert found.messages == said("2 + 3?", "5.", system="Be brief.")


def test_what_stands_beside_an_instruction_and_the_calls_of_a_reply():
    chat = read_chat({"instruction": "Add.", "context": "2, 3", "response": "5."}, "here")
    assert chat.messages == said("Add.\n\n2, 3", "5.")
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}
    messages = [ONE[0], call, {"role": "tool", "content": "5"}, ONE[1]]
    chat = read_chat({"messages": messages, "tools": '[{"name": "add"}]'}, "here")
    assert chat.messages == messages and chat.tools == [{"name": "add"}]


BAD = [
    ({"text": "a"}, DataError, r"here: no chat. Found the fields text; expected 'messages'.*'instruction'"),
    (["a"], DataError, "here: expected an object, found list"),
    ({"messages": "a"}, DataError, "here, messages: expected a list of messages, found str"),
    ({"messages": [{"text": "a"}]}, DataError, r"here, messages\[0\]: expected {'role', 'content'} or"),
    ({"prompt": 3, "completion": "a"}, DataError, "here, prompt: expected a list of messages, found int"),
    ({"messages": []}, BadChat, "without messages"),
    ({"messages": said("a", "b", "c")}, BadChat, "here: the last message is of the user"),
    ({"messages": said("a", "b")[1:]}, BadChat, "message 0 is of the assistant, expected one of the system"),
    ({"messages": said("a", "b") + said("c", "d")[1:]}, BadChat, "message 2 is of the assistant, expected one of the"),
    ({"messages": said("a", "b", system="s")[1:] + said("c", "d", system="s")}, BadChat, "message 2 is of the system"),
    ({"messages": said("a", " \n")}, BadChat, "message 1, the assistant's, is empty"),
    ({"messages": [{"role": "user", "content": None}, ONE[1]]}, BadChat, r"message 0 \(of the user\) has no text"),
]


@pytest.mark.parametrize("record, error, message", BAD)
def test_what_is_no_chat_is_said(record, error, message):
    with pytest.raises(error, match=message):
        read_chat(record, "here")


def write(path, records):
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def opened(source, cache, **fields):
    fields = {"sequence_length": 64, "chat_template": "turns", "heldout_fraction": 0.0} | fields
    return ChatData(source=str(source), **fields).open(seed=0, cache_dir=cache)


def chats_in(data, row):
    """The (text, learnt text) of the chats in a row."""
    found = []
    for segment in range(1, row["segment_ids"].max() + 1):
        place = row["segment_ids"] == segment
        ids = [int(row["tokens"][place][0]), *row["targets"][place].tolist()]
        np.testing.assert_array_equal(row["positions"][place], np.arange(place.sum()))
        np.testing.assert_array_equal(row["tokens"][place][1:], row["targets"][place][:-1])
        learnt = row["targets"][place & (row["loss_weights"] > 0)].tolist()
        spell = lambda ids: "".join({256: "<", 257: ">"}.get(i) or chr(i) for i in ids)
        found.append((spell(ids), spell(learnt)))
    assert not row["loss_weights"][row["segment_ids"] == 0].any()
    return found


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_each_chat_stands_whole_in_one_row(tmp_path, suffix):
    records = [{"messages": said(f"q{n}", "r" * (n % 7 + 1), "?", f"{n}!")} for n in range(20)]
    data = opened(write(tmp_path / f"a{suffix}", records), tmp_path / "cache", sequence_length=128)
    found, index = [], 0
    while len(found) < 20:  # an epoch
        found += chats_in(data, data.train[index])
        index += 1
    expected = [
        (f"<user\nq{n}><assistant\n{'r' * (n % 7 + 1)}><user\n?><assistant\n{n}!>", f"{'r' * (n % 7 + 1)}>{n}!>")
        for n in range(20)
    ]
    assert sorted(found) == sorted(expected) and index <= 10
    row, example = data.train[0], ChatData(source="x", sequence_length=128).example
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {k: (v.shape, v.dtype) for k, v in row.items()}
    assert list(data.stop_ids) == [257] and "chat_template" in data.identity
    with pytest.raises(ConfigError, match="are chats, and no text documents"):
        data.documents()


def test_overlong_and_bad_chats_are_counted_or_refused(tmp_path, caplog):
    records = [{"messages": said(*"ab")}, {"messages": said("a" * 80, "b")}, {"messages": said("a", "")}]
    file = write(tmp_path / "a.jsonl", records)
    with pytest.raises(DataError, match=r"a.jsonl line 3: message 1, the assistant's, is empty; .*data.bad_chats=skip"):
        opened(file, tmp_path / "cache")
    for _ in ("built", "from the cache"):
        caplog.clear()
        data = opened(file, tmp_path / "cache", bad_chats="skip")
        assert [text for text, _ in chats_in(data, data.train[0])] == ["<user\na><assistant\nb>"]
        assert caplog.text.count("1 of 3 chats are left out, the first for this: ") == 1
        assert "a.jsonl line 3: message 1, the assistant's, is empty" in caplog.text
    assert "1 of 2 train chats are left out: they are longer than a row of data.sequence_length = 64" in caplog.text
    with pytest.raises(DataError, match="1 of 2 train chats are longer.*chat 1 of its split, has 99.*overlong=drop"):
        opened(file, tmp_path / "cache", bad_chats="skip", overlong="error")
    with pytest.raises(DataError, match="no chat fits into a row of data.sequence_length = 8"):
        opened(file, tmp_path / "cache", bad_chats="skip", sequence_length=8)


@pytest.mark.parametrize("mark", ["\ufdd0", "\ufdd1", "\ufdd2"])
def test_what_would_falsify_the_places_of_replies_is_refused(tmp_path, mark):
    template = "{% for m in messages %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endfor %}"
    for tokenizer in (with_template(TURNS), with_template(template)):
        with pytest.raises(InputError, match=rf"message 1 has U\+{ord(mark):04X}, which is no character"):
            encode_replies(tokenizer, said("a", f"b{mark}c"))
    with pytest.raises(InputError, match="such as tools, has U"):
        encode_replies(with_template(TURNS), said("a", "b"), tools=[{"name": f"f{mark}"}])
    file = write(tmp_path / "a.jsonl", [{"messages": said(*"ab")}, {"messages": said(f"a{mark}", "b")}])
    with pytest.raises(DataError, match=r"a.jsonl line 2: message 0 has U\+FDD"):
        opened(file, tmp_path / "cache")


def thoughts():
    return [{"messages": said("1", "one", "2", "two")}]


def test_each_reply_in_a_chat_of_its_own_and_files_by_split(tmp_path):
    data = opened("tests.data.test_chats:thoughts", tmp_path / "cache", replies="each")
    found = chats_in(data, data.train[0]) + chats_in(data, data.train[1])
    first = "<user\n1><assistant\none>"
    assert {(first, "one>"), (f"{first}<user\n2><assistant\ntwo>", "two>")} == set(found)
    (tmp_path / "chats").mkdir()
    for name in ("train", "test"):
        write(tmp_path / "chats" / f"{name}.jsonl", [{"prompt": name, "completion": "x"}] * 3)
    data = opened(tmp_path / "chats", tmp_path / "cache", heldout_fraction=None)
    heldout = chats_in(data, data.evaluation["heldout"][0])
    assert {text for text, _ in heldout} == {"<user\ntest><assistant\nx>"}
    assert data.evaluation["heldout"][0]["loss_weights"].sum() == 2 * len(heldout)


def test_sources_are_mixed_and_a_trained_tokenizer_takes_the_template(tmp_path):
    for name in "ab":
        asked = [f"What does {name}{n} say of the red and the green house?" for n in range(50)]
        write(tmp_path / f"{name}.jsonl", [{"prompt": text, "completion": "x"} for text in asked])
    mixture = {name: {"source": str(tmp_path / f"{name}.jsonl"), "heldout_fraction": 0.0} for name in "ab"}
    fields = {"sequence_length": 128, "tokenizer": "train:300", "chat_template": "turns"}
    data = ChatData(mixture=mixture, **fields).open(seed=0, cache_dir=tmp_path / "cache")
    texts = [data.tokenizer.decode(data.train[index]["tokens"].tolist()) for index in range(8)]
    assert any("does a" in text for text in texts) and any("does b" in text for text in texts)
    assert list(data.stop_ids) == [data.tokenizer.eos_id] and data.train[0]["loss_weights"].sum() >= 2


def test_what_does_not_fit_is_said(tmp_path):
    for fields, error, message in [
        ({"chat_template": None}, ConfigError, "'bytes' has no chat template: set data.chat_template to 'turns'"),
        ({"chat_template": "no.jinja"}, ConfigError, "'no.jinja': expected 'turns' or a file"),
        ({"text_field": "a"}, ConfigError, "data.text_field is never read"),
        ({"source": "tfds:x"}, DataError, "chats are read from files and objects"),
        ({"source": "README.md"}, DataError, "README.md: chats are records, in .jsonl"),
    ]:
        with pytest.raises(error, match=message):
            opened(**{"source": "builtin", "cache": tmp_path, **fields})
    with pytest.raises(ConfigError, match="data.replies"):
        ChatData(replies="some")


def test_sums_of_the_built_in_chats_are_right():
    for record in chats(50):
        read_chat(record, "here")
        total = 0
        for message in record["messages"]:
            numbers = [int(n) for n in re.findall(r"\d+", message["content"])]
            if message["role"] == "user":
                total = sum(numbers) + (total if "more" in message["content"] else 0)
            elif message["role"] == "assistant":
                assert numbers[-1] == total
    assert chats(3) == chats(50)[:3]
