"""Conversations: what the model is asked, what is kept, and what becomes of a reply that is cut short."""

import json
import signal
import sys
import types

import pytest
from small_models import byte_model

from fmjax.commands import chat_session, chat_terminal
from fmjax.commands.chat_session import ChatSession, check_messages
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import DataError, InputError, TokenizerError
from fmjax.inference.continuations import Continuation, Piece
from fmjax.inference.engine_programs import TRACES
from fmjax.load import Model


@pytest.fixture(scope="module")
def model():
    return byte_model()


def user(text):
    return {"role": "user", "content": text}


def said(session, text):
    return "".join(session.say(text))


def test_a_turn_is_the_model_s_continuation_of_all_turns_before(model):
    system = {"role": "system", "content": "S"}
    session = ChatSession(model, [system], max_new_tokens=4, temperature=0.7, seed=3)
    first = said(session, "ab")
    second = said(session, "c")
    options = dict(max_new_tokens=4, temperature=0.7, seed=3)
    assert model.generate([list(b"s:S\nu:ab\na:")], **options) == [first]
    written = f"s:S\nu:ab\na:{first}\nu:c\na:"
    assert model.generate([list(written.encode())], **options) == [second]
    messages = [system, user("ab"), {"role": "assistant", "content": first}, user("c")]
    assert model.chat(messages, **options) == second
    assert session.messages == [*messages, {"role": "assistant", "content": second}]
    assert session.finish == "length" and session.left_out == 0
    # The template's own options.
    assert model.encode_chat([user("x")], add_generation_prompt=False) == list(b"u:x\n")


def test_another_reply_undo_reset_and_system(model):
    session = ChatSession(model, max_new_tokens=8)
    first = said(session, "ab")
    replies = {first, "".join(session.retry()), "".join(session.retry())}
    assert len(replies) == 3 and len(session.messages) == 2
    session.set_system("S")
    assert session.system == "S" and [m["role"] for m in session.messages] == ["system", "user", "assistant"]
    session.set_system("T")
    assert session.undo() == "ab" and session.messages == [{"role": "system", "content": "T"}]
    with pytest.raises(InputError, match="no message"):
        session.retry()
    said(session, "ab")
    session.reset()
    assert session.messages == [{"role": "system", "content": "T"}]
    assert said(ChatSession(model, max_new_tokens=8), "ab") == first  # nothing but the messages counts


def test_old_turns_make_room_but_the_system_prompt_stays(model, monkeypatch):
    prompts = []
    encode_chat = type(model).encode_chat
    monkeypatch.setattr(type(model), "encode_chat", lambda *a, **o: prompts.append(encode_chat(*a, **o)) or prompts[-1])
    session = ChatSession(model, [{"role": "system", "content": "S"}], max_new_tokens=8, temperature=0)
    for turn in range(5):
        said(session, f"{turn}" * 10)
    sent = bytes(prompts[-1])
    assert sent.startswith(b"s:S\nu:") and sent.endswith(b"u:4444444444\na:")
    assert session.left_out > 0 and session.left_out % 2 == 0 and len(session.messages) == 11
    one_more = session.messages[:1] + session.messages[session.left_out - 1 : -1]
    assert len(sent) + 8 <= 64 < len(encode_chat(model, one_more)) + 8
    with pytest.raises(InputError, match="the system prompt and the message alone make 79 tokens.*64"):
        said(session, "x" * 70)
    assert len(session.messages) == 11 and session.messages[-1]["role"] == "assistant"


def test_a_reply_closed_early_is_kept_as_far_as_it_came(model):
    session = ChatSession(model, max_new_tokens=30, temperature=0)
    reply = session.say("ab")
    piece = next(reply)
    reply.close()
    assert session.messages == [user("ab"), {"role": "assistant", "content": piece}] and session.finish == ""
    session.say("never asked for").close()
    assert len(session.messages) == 2


def test_a_turn_that_is_tried_again_is_lost_only_to_a_new_reply(model, monkeypatch):
    session = ChatSession(model, max_new_tokens=30, temperature=0.7)
    said(session, "ab")
    turn = list(session.messages)
    session.retry().close()
    assert session.messages == turn
    pieces = type(model).pieces

    def failing(count):
        def fail(*arguments, **options):
            for number, piece in enumerate(pieces(*arguments, **options)):
                if number == count:
                    raise RuntimeError("the device is lost")
                yield piece

        return fail

    for count in (0, 2):
        monkeypatch.setattr(type(model), "pieces", failing(count))
        with pytest.raises(RuntimeError):
            list(session.retry())
        with pytest.raises(RuntimeError):
            said(session, "c")
        assert session.messages == turn and session.finish == ""
    monkeypatch.setattr(type(model), "pieces", pieces)
    session.set_system("x" * 70)
    with pytest.raises(InputError, match="context of 64"):
        list(session.retry())
    assert session.messages[1:] == turn
    session.set_system("S")
    reply = session.retry()
    piece = next(reply)
    reply.close()
    assert session.messages[1:] == [user("ab"), {"role": "assistant", "content": piece}]


def test_turns_of_a_conversation_share_their_programs():
    model = byte_model(max_length=256)
    session = ChatSession(model, max_new_tokens=8, temperature=0)
    said(session, "ab")
    before = dict(TRACES)
    for turn in range(3):
        said(session, f"{turn}" * 12)
    assert len(model.encode_chat(session.messages)) > 64 and not session.left_out
    assert [TRACES[name] - before[name] for name in ("start", "decode")] == [0, 0]


def test_a_long_context_is_not_taken_whole_at_once(monkeypatch):
    monkeypatch.setattr(chat_session, "CACHE", 64)
    lengths, whole = [], Continuation("x" * 20, [120] * 20, [], "length")

    def pieces(model, prompts, **options):
        lengths.append((len(prompts[0]), options["cache_length"]))
        yield Piece(0, whole.text, whole)

    monkeypatch.setattr(Model, "pieces", pieces)
    session = ChatSession(byte_model(max_length=300), max_new_tokens=20)
    for turn in range(12):
        said(session, f"{turn}" * 12)
    assert [size for _, size in lengths] == sorted(size for _, size in lengths)
    assert {size for _, size in lengths} == {64, 128, 256, 300}
    assert all(min(length + 20 - 1, 300) <= size for length, size in lengths)


def test_a_message_needs_content_unless_it_calls_tools():
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    check_messages([user("a"), call, {"role": "tool", "content": ""}], "x.json")
    for messages, message in [
        ([], "x.json: the list of messages is empty"),
        ([user("a"), {"role": "user"}], "message 1 has no content"),
        ([{"role": "user", "content": None}], "message 0 has no content"),
        ([{"role": "assistant"}], "message 0 has no content"),
        ([{"role": "user", "tool_calls": [1]}], "message 0 has no content"),
        ([{"role": 1, "content": "a"}], "message 0 must be"),
    ]:
        with pytest.raises(DataError, match=message):
            check_messages(messages, "x.json")


def test_files(model, tmp_path):
    session = ChatSession(model, max_new_tokens=3)
    said(session, "gr\u00fcn")
    path = tmp_path / "chat.json"
    session.save(path)
    session.save(path)
    other = ChatSession(model)
    other.load(path)
    assert other.messages == session.messages == json.loads(path.read_text("utf-8"))
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]
    session.reset()
    session.save(path)
    session.save(path)
    said(session, "a")
    other.load(path)
    assert other.messages == []
    other.messages = list(session.messages)
    (tmp_path / "notes.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="no saved chat"):
        session.save(tmp_path / "notes.json")
    for content, message in [('{"a": 1}', "list of messages"), ("[1]", "message 0"), ("[", "no saved chat")]:
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=message):
            other.load(tmp_path / "bad.json")
    with pytest.raises(DataError, match="No such file"):
        other.load(tmp_path / "nowhere")
    assert other.messages == session.messages


def test_a_model_without_template_or_tokenizer(model):
    with pytest.raises(TokenizerError, match="no chat template"):
        byte_model(ByteTokenizer()).chat([user("x")])
    without = type(model)(model.module, model.params)
    with pytest.raises(InputError, match="no tokenizer"):
        without.chat([user("x")])


def test_a_reply_ends_at_each_of_the_published_end_tokens(model):
    whole = model.complete([list(b"u:ab\na:")], max_new_tokens=12, temperature=0)[0]
    ends = [token for token in whole.tokens if whole.tokens.count(token) == 1][1:3]
    for place, published in enumerate([{"generation": {"eos_token_id": [257, *ends]}}, {"eos_token_id": ends[1]}]):
        chat = byte_model(published=published)
        assert set(ends[place:]) <= set(chat.eos_ids) and 257 in chat.eos_ids
        one = chat.complete([list(b"u:ab\na:")], max_new_tokens=12, temperature=0)[0]
        assert one.finish == "stop" and one.tokens == whole.tokens[: whole.tokens.index(ends[place]) + 1]
        assert chat.chat([user("ab")], max_new_tokens=12, temperature=0) == one.text


def converse(session, lines, monkeypatch, capsys, **options):
    text = "".join(f"{line}\n" for line in lines)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False, readline=iter_lines(text)))
    chat_terminal.converse(session, **options)
    return capsys.readouterr()


def iter_lines(text):
    lines = iter(text.splitlines(keepends=True))
    return lambda: next(lines, "")


def test_commands(model, monkeypatch, capsys, tmp_path):
    saved, auto = tmp_path / "saved.json", tmp_path / "auto.json"
    session = ChatSession(model, max_new_tokens=4)
    lines = ["/system Be brief.", "/system", "two\\", "lines", "", "/retry", f"/save {saved}", "//x", "/undo", "/help"]
    shown = converse(session, [*lines, "/quit", "never read"], monkeypatch, capsys, autosave=auto)
    assert [m["content"] for m in session.messages[:2]] == ["Be brief.", "two\nlines"]
    assert shown.out.endswith("\n") and "taken back: /x" in shown.err and "/retry   " in shown.err
    assert shown.err.count("system prompt: Be brief.") == 2
    assert json.loads(saved.read_text()) == json.loads(auto.read_text()) == session.messages
    assert session.messages[2]["content"] in shown.out

    converse(session, ["/reset", f"/load {saved}", "no end of line\\"], monkeypatch, capsys)
    assert len(session.messages) == 5 and session.messages[3]["content"] == "no end of line"
    for line, message in [("/qiut", "did you mean '/quit'"), ("/save", "/save FILE"), ("x" * 90, "context of 64")]:
        with pytest.raises(InputError, match=message):
            converse(session, [line], monkeypatch, capsys)
    assert len(session.messages) == 5


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_stops_the_reply_and_keeps_the_conversation(presses, model, monkeypatch, capsys):
    session = ChatSession(model, max_new_tokens=30, temperature=0)
    whole = said(session, "ab")
    session.undo()
    pieces = type(model).pieces

    def interrupted(*arguments, **options):
        for number, piece in enumerate(pieces(*arguments, **options)):
            if number == 3:
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
            yield piece

    monkeypatch.setattr(type(model), "pieces", interrupted)
    before = signal.getsignal(signal.SIGINT)
    shown = converse(session, ["ab"], monkeypatch, capsys)
    kept = session.messages[-1]["content"]
    assert shown.out == kept + "\n" and whole.startswith(kept) and 0 < len(kept) < len(whole)
    assert "(stopped)" in shown.err and signal.getsignal(signal.SIGINT) is before
