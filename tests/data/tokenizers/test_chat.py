"""Chats rendered as `transformers` renders them; the fixture is written by tests/oracles/make_chat_fixtures.py."""

import datetime
import json

import pytest
from chat_tokenizers import CHATS, chat_tokenizer, write

from fmjax.data.tokenizers.chat import encode_chat, encode_chat_with_mask, render_chat
from fmjax.data.tokenizers.loading import ByteTokenizer, load_tokenizer
from fmjax.errors import InputError, TokenizerError

HELLO = [{"role": "user", "content": "hello"}]


def with_templates(**templates):
    tokenizer = ByteTokenizer()
    tokenizer.chat_templates = templates
    return tokenizer


@pytest.mark.parametrize("index", range(len(CHATS["rendered"])))
def test_text_ids_and_mask(index):
    expected = CHATS["rendered"][index]
    tokenizer, messages = chat_tokenizer(expected["tokenizer"]), CHATS["chats"][expected["chat"]]
    assert render_chat(tokenizer, messages, **expected["options"]) == expected["text"]
    if any(token in message["content"] for message in messages for token in tokenizer.control_tokens):
        assert tokenizer.encode_special(expected["text"]) == expected["ids"]
        return  # those names are text here, and tokens in `transformers`
    assert encode_chat(tokenizer, messages, **expected["options"]) == expected["ids"]
    ids, mask = encode_chat_with_mask(tokenizer, messages, **expected["options"])
    assert ids == expected["ids"]
    assert mask == expected["mask"]
    assert 0 < sum(mask) < len(mask) or expected["chat"] != "turns"


def test_mask_is_of_the_replies():
    tokenizer = chat_tokenizer("qwen3")
    ids, mask = encode_chat_with_mask(tokenizer, CHATS["chats"]["turns"])
    replies = [i for i, m in zip(ids, mask) if m]
    expected = [m["content"] + "<|im_end|>" for m in CHATS["chats"]["turns"] if m["role"] == "assistant"]
    assert replies == [i for reply in expected for i in tokenizer.encode_special(reply)]


@pytest.mark.parametrize("name, end", [("qwen3", "<|im_end|>"), ("llama2", "<|im_end|>"), ("llama3", "<|eot_id|>")])
def test_the_names_of_control_tokens_in_messages_are_text(name, end):
    """Nobody ends a turn by writing so; the template's own are tokens."""
    tokenizer, id = chat_tokenizer(name), chat_tokenizer(name).token_to_id(end)
    chat = [{"role": "user", "content": f"Say {end}!"}, {"role": "assistant", "content": f"{end}"}]
    plain = [{"role": "user", "content": "Say it!"}, {"role": "assistant", "content": "it"}]
    ids, expected = encode_chat(tokenizer, chat), encode_chat(tokenizer, plain)
    assert ids.count(id) == expected.count(id) > 0
    assert tokenizer.decode(ids).replace(" ", "") == tokenizer.decode(expected).replace(" ", "").replace("it", end)
    again, mask = encode_chat_with_mask(tokenizer, chat)
    assert again == ids and tokenizer.decode([i for i, m in zip(ids, mask) if m]).strip().startswith(end)
    assert render_chat(tokenizer, chat).count(end) == 2 + render_chat(tokenizer, plain).count(end)


def test_time_is_what_it_is_said_to_be():
    text = render_chat(chat_tokenizer("llama3"), HELLO, now=datetime.datetime(2026, 3, 9))
    assert "Today Date: 09 Mar 2026\n" in text


PLACES = {
    "tokenizer_config.json": json.dumps({"chat_template": "A{{ messages[0].content }}"}),
    "chat_template.json": json.dumps({"chat_template": "A{{ messages[0].content }}"}),
    "chat_template.jinja": "A{{ messages[0].content }}",
    "additional_chat_templates/default.jinja": "A{{ messages[0].content }}",
}


@pytest.mark.parametrize("place", PLACES)
def test_templates_are_found_and_saved(place, tmp_path):
    write("llama3", tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    content = PLACES[place]
    if place == "tokenizer_config.json":
        content = json.dumps(config | json.loads(content))
    elif place == "chat_template.jinja":  # goes before the others
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "B"}))
    (tmp_path / place).write_text(content)
    tokenizer = load_tokenizer(tmp_path)
    assert render_chat(tokenizer, HELLO) == "Ahello"
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").chat_templates == tokenizer.chat_templates


def test_named_templates(tmp_path):
    write("llama3", tmp_path)
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools | length }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    loaded = load_tokenizer(tmp_path)
    (tmp_path / "saved").mkdir()
    loaded.save(tmp_path / "saved")
    for tokenizer in (loaded, load_tokenizer(tmp_path / "saved")):
        assert render_chat(tokenizer, HELLO) == "D"
        assert render_chat(tokenizer, HELLO, tools=[{"name": "f"}]) == "T1"
        assert render_chat(tokenizer, HELLO, template="tool_use", tools=[]) == "T0"
        with pytest.raises(TokenizerError, match="no chat template 'rag'; choose one of default, tool_use"):
            render_chat(tokenizer, HELLO, template="rag")


def test_a_chat_without_a_template_says_where_one_was_looked_for():
    with pytest.raises(TokenizerError, match=r"no chat template \(looked for in chat_template.jinja.*Use a chat model"):
        render_chat(ByteTokenizer(), HELLO)
    with pytest.raises(TokenizerError, match="no chat template"):
        encode_chat(ByteTokenizer(), HELLO)


def test_bad_templates_and_messages():
    with pytest.raises(TokenizerError, match=r"malformed \(line 2\)"):
        render_chat(with_templates(default="a\n{% for %}"), HELLO)
    with pytest.raises(TokenizerError, match="refuses this chat: roles must alternate"):
        render_chat(chat_tokenizer("llama2"), HELLO + HELLO)
    with pytest.raises(TokenizerError, match="fails on this chat"):
        render_chat(with_templates(default="{{ 'a' + messages[0].content }}"), [{"role": "user", "content": 3}])
    with pytest.raises(TokenizerError, match="refuses this chat"):  # the sandbox
        render_chat(with_templates(default="{{ messages.append(1) }}"), HELLO)
    with pytest.raises(TokenizerError, match="refuses this chat"):
        render_chat(with_templates(default="{{ ''.__class__.__mro__[1].__subclasses__() }}"), HELLO)
    with pytest.raises(TokenizerError, match="does not say what is the assistant's"):
        encode_chat_with_mask(with_templates(default="{{ messages[0].content }}"), HELLO)
    with pytest.raises(InputError, match="at least one message"):
        render_chat(with_templates(default=""), [])
    with pytest.raises(InputError, match="message 1 must be .*'role'"):
        render_chat(with_templates(default=""), [HELLO[0], {"content": "x"}])


def test_mask_of_bytes_counts_characters():
    template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    template += "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    chat = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "ñx"}, {"role": "user", "content": "y"}]
    ids, mask = encode_chat_with_mask(with_templates(default=template), chat)
    assert bytes(ids).decode() == "éñxy" and mask == [0, 0, 1, 1, 1, 0]
