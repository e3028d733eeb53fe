"""`python -m fmjax.generate`: what is printed, and which flags are refused."""

import io
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import sentencepiece
from small_models import TEMPLATE, byte_model

import fmjax
from fmjax import generate
from fmjax.commands import cli
from fmjax.data.tokenizers.loading import ByteTokenizer, SentencePieceTokenizer
from fmjax.errors import InputError
from fmjax.inference.continuations import Continuation, Piece
from fmjax.load import Model
from fmjax.models.bert import Bert
from fmjax.models.transformer import EncoderDecoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "saved"
    byte_model(ByteTokenizer()).save(folder)  # without a template
    return folder


@pytest.fixture(scope="module")
def pieces_model(tmp_path_factory):
    """A model with control tokens and a chat template beside it."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text.txt").write_text("\n".join(["the cat sat on the mat", "a dog and a cat", "u:a:s:"] * 30))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=300, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2, control_symbols=["<turn>"],
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer((folder / "m.model").read_bytes())
    model = byte_model(tokenizer)
    model.save(folder / "saved")
    (folder / "saved" / "chat_template.jinja").write_text(TEMPLATE)
    return folder / "saved"


def run(capsys, *argv, code=0):
    assert cli.run(generate.main, list(argv)) == code
    return capsys.readouterr()


def test_a_prompt_and_its_continuation(saved, capsys, tmp_path, monkeypatch):
    argv = [f"--model={saved}", "--max_new_tokens=12", "--temperature=0"]
    shown = run(capsys, *argv, "--prompt=def ").out
    model = fmjax.load(saved)
    assert shown == "def " + model.generate(["def "], max_new_tokens=12, temperature=0)[0] + "\n"
    (tmp_path / "p.txt").write_text("def \n")
    assert run(capsys, *argv, f"--prompt_file={tmp_path / 'p.txt'}").out == shown
    monkeypatch.setattr(sys, "stdin", io.StringIO("def \n"))
    assert run(capsys, *argv, "--prompt_file=-").out == shown
    for bad, message in [
        ("--temperature=-1", "temperature"),
        ("--top_p=0", "top_p"),
        ("--max_new_token=3", "max_new_tokens"),
        ("--model=/nowhere", "does not exist"),
        ("--prompt=" + "x" * 70, "context of 64"),
        ("--mesh=fsdp", "fsdp:2,tensor:2"),
        ("--mesh=fdsp:2", "did you mean 'fsdp'"),
        ("--dtype=float8", "float8"),
        ("--stop=", "not empty"),
    ]:
        captured = run(capsys, *argv, "--prompt=def ", bad, code=2)
        assert message in captured.err and not captured.out


def test_what_is_asked_for_comes_out(saved, capsys, tmp_path):
    argv = [f"--model={saved}", "--prompt=ab", "--max_new_tokens=24"]
    assert run(capsys, *argv, "--choices=yes, no,maybe").out in ("abyes\n", "ab no\n", "abmaybe\n")
    (tmp_path / "schema.json").write_text('{"type": "object", "properties": {}, "additionalProperties": false}')
    assert run(capsys, *argv, f"--json_schema={tmp_path / 'schema.json'}").out == "ab{}\n"
    (tmp_path / "p.jsonl").write_text('"a"\n"b"\n')
    files = [f"--prompts={tmp_path / 'p.jsonl'}", f"--output={tmp_path / 'o.jsonl'}"]
    run(capsys, argv[0], *files, "--regex=[0-9]{3}")
    assert all(json.loads(line)["text"].isdigit() for line in (tmp_path / "o.jsonl").read_text().splitlines())
    assert "begun with other settings" in run(capsys, argv[0], *files, "--regex=[0-9]{4}", code=2).err
    for flags, message in [
        (["--regex=a", "--choices=b"], "give one of --regex and --choices"),
        (["--regex=a", "--num_beams=2"], "--regex cannot be kept by beam search"),
        (["--choices=a", "--stop=b"], "--stop would cut off what --choices asks for"),
        (["--grammar=/nowhere"], "--grammar=/nowhere cannot be read"),
        (["--regex=("], "the regex '(' is not understood"),
    ]:
        assert message in run(capsys, *argv, *flags, code=2).err


def test_a_draft_changes_nothing_but_what_is_told(saved, capsys, tmp_path):
    argv = [f"--model={saved}", "--max_new_tokens=16", "--temperature=0"]
    plain = run(capsys, *argv, "--prompt=abab").out
    found = run(capsys, *argv, "--prompt=abab", "--draft=lookup", "--draft_tokens=3")
    assert found.out == plain and "tokens a pass of the model" in found.err
    (tmp_path / "p.jsonl").write_text('"abab"\n')
    files = [f"--prompts={tmp_path / 'p.jsonl'}", f"--output={tmp_path / 'o.jsonl'}", f"--draft={saved}"]
    assert "draft: 3.75 tokens a pass of the model, 100% of" in run(capsys, *argv, *files).err
    assert f"abab{json.loads((tmp_path / 'o.jsonl').read_text())['text']}\n" == plain
    assert f"from {saved}" in json.loads((tmp_path / "o.jsonl.settings.json").read_text())["draft"]
    for flags, message in [
        (["--draft=lookup", "--num_beams=2"], "--draft has no meaning with --num_beams"),
        (["--draft_tokens=2"], "give a --draft"),
        (["--draft=layers:2"], "the model has 2 layers"),
        (["--draft=/nowhere"], "does not exist"),
    ]:
        assert message in run(capsys, *argv, "--prompt=a", *flags, code=2).err


def test_every_flag_of_the_sampler_reaches_it(saved, capsys):
    options = dict(
        max_new_tokens=12, temperature=0.7, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=4,
        num_samples=3,
    )  # fmt: skip
    model = fmjax.load(saved, mesh={"fsdp": 2, "tensor": 2})
    drawn = model.generate(["ab"], **options)
    stop = drawn[0][2:4]
    texts = model.generate(["ab"], **options, stop=[stop, "no such text"])
    flags = [f"--{name}={value}" for name, value in options.items()]
    flags += ["--mesh=fsdp:2,tensor:2", f"--stop={stop}", "--stop=no such text", "--prompt=ab", f"--model={saved}"]
    shown = run(capsys, *flags).out
    assert shown.removesuffix("\n").split(f"\n{generate.SEPARATOR}\n") == [f"ab{text}" for text in texts]
    assert texts[0] == drawn[0][:2] and len(set(texts)) == 3
    assert run(capsys, *[flag for flag in flags if "stop" not in flag]).out != shown


def test_samples_that_end_out_of_turn_are_printed_in_turn():
    whole = Continuation("", [], [], "stop")
    order = [(1, "c", None), (0, "a", None), (2, "e", whole), (0, "b", whole), (1, "d", whole)]
    pieces = (Piece(*each) for each in order)
    found = generate._in_turn(pieces)
    assert next(found) == (0, "a") and next(pieces).index == 2  # as soon as it is there, not more
    pieces = (Piece(*each) for each in order)
    assert list(generate._in_turn(pieces)) == [(0, "a"), (0, "b"), (1, "c"), (1, "d"), (2, "e")]


def test_beams(saved, capsys):
    model = fmjax.load(saved)
    options = dict(num_beams=3, length_penalty=1.5, max_new_tokens=6)
    ((best,),) = model.beam_search(["ab"], **options)
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert run(capsys, f"--model={saved}", "--prompt=ab", *flags).out == f"ab{best.text}\n"
    assert best.score < 0 and not best.logprobs


def test_names_of_control_tokens_stand_for_them_when_asked(pieces_model, capsys):
    model = fmjax.load(pieces_model)
    turn = model.tokenizer.token_to_id("<turn>")
    (special,), (plain,) = model.encode_prompts(["<turn>the"], special=True), model.encode_prompts(["<turn>the"])
    bos = model.tokenizer.bos_id
    assert special[:2] == [bos, turn] and turn not in plain
    assert model.encode_prompts(["<s>the"], special=True)[0].count(bos) == 1
    argv = [f"--model={pieces_model}", "--prompt=<turn>the", "--temperature=0", "--max_new_tokens=9"]
    options = dict(temperature=0, max_new_tokens=9)
    assert run(capsys, *argv, "--special").out == "<turn>the" + model.generate([special], **options)[0] + "\n"
    assert run(capsys, *argv).out == "<turn>the" + model.generate([plain], **options)[0] + "\n"


def save(module, name, folder, **inputs):
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), tokens, **{k: tokens for k in inputs})["params"])
    section = {k: v for k, v in vars(module).items() if k in SIZES or k == "start_id"}
    Model(module, params, {"model": {"name": name, **section}}, byte_model().tokenizer).save(folder)


SIZES = dict(num_layers=1, hidden_size=16, intermediate_size=16, num_heads=2, max_length=32, vocab_size=258)


def test_a_translation_is_printed_without_its_source(tmp_path, capsys):
    save(EncoderDecoder(**SIZES, start_id=256), "transformer", tmp_path / "m", source_tokens=None)
    text = fmjax.load(tmp_path / "m").generate(["source"], max_new_tokens=5, temperature=0)[0]
    argv = [f"--model={tmp_path / 'm'}", "--prompt=source", "--max_new_tokens=5", "--temperature=0"]
    assert run(capsys, *argv).out == f"{text}\n" and text


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_the_weights_lie_in_memory_once(kind, saved, tmp_path, monkeypatch, capsys):
    folder, loaded, used = saved, [], []
    if kind == "encoder-decoder":
        folder = tmp_path / "m"
        save(EncoderDecoder(**SIZES, start_id=256), "transformer", folder, source_tokens=None)
    load, load_once = fmjax.load.load, generate._load
    monkeypatch.setattr("fmjax.load.load", lambda *a, **o: loaded.append(load(*a, **o)) or loaded[-1])
    monkeypatch.setattr(generate, "_load", lambda flags: used.append(load_once(flags)) or used[-1])
    (tmp_path / "p.jsonl").write_text('"ab"\n')
    file = [f"--prompts={tmp_path / 'p.jsonl'}", f"--output={tmp_path / 'o.jsonl'}"]
    for flags in (["--prompt=ab"], ["--prompt=ab", "--num_beams=2"], file):
        run(capsys, f"--model={folder}", "--max_new_tokens=3", *flags)
        kept = {id(x) for x in jax.tree.leaves(used[-1].params)}
        assert {id(x) for x in jax.tree.leaves(used[-1].engine.weights.params)} == kept
        assert all(x.is_deleted() for x in jax.tree.leaves(loaded[-1].params) if id(x) not in kept)


def test_an_encoder_points_to_what_it_can_do(tmp_path, capsys):
    save(Bert(**SIZES), "bert", tmp_path / "m")
    (tmp_path / "p.jsonl").write_text('"ab"\n')
    for flags in (["--prompt=x"], [f"--prompts={tmp_path / 'p.jsonl'}", f"--output={tmp_path / 'o.jsonl'}"]):
        captured = run(capsys, f"--model={tmp_path / 'm'}", *flags, code=2)
        told = "cannot generate: it is an encoder, which reads whole texts (what it can do: embed)"
        assert told in captured.err and not captured.out


def test_chat(pieces_model, saved, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n/quit\n"))
    argv = [f"--model={pieces_model}", "--chat", "--max_new_tokens=6", "--temperature=0", "--system=S"]
    shown = run(capsys, *argv, f"--chat_file={tmp_path / 'chat.json'}")
    assert "replies are greedy: --temperature=0; flags that you give" in shown.err
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "the cat"}]
    reply = fmjax.load(pieces_model).chat(messages, max_new_tokens=6, temperature=0)
    assert shown.out == reply + "\n"
    kept = json.loads((tmp_path / "chat.json").read_text())
    assert kept == [*messages, {"role": "assistant", "content": reply}]
    # It goes on with that file, and refuses a second system prompt.
    monkeypatch.setattr(sys, "stdin", io.StringIO("a dog\n"))
    run(capsys, *argv[:-1], f"--chat_file={tmp_path / 'chat.json'}")
    assert json.loads((tmp_path / "chat.json").read_text())[:3] == kept
    assert "/system" in run(capsys, *argv, f"--chat_file={tmp_path / 'chat.json'}", code=2).err

    # Without a template the weights are not even looked at.
    monkeypatch.setattr("fmjax.load.load", lambda *arguments, **options: pytest.fail("loaded"))
    assert "no chat template" in run(capsys, f"--model={saved}", "--chat", code=2).err
    chats = tmp_path / "p.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    argv = [f"--model={saved}", f"--prompts={chats}", f"--output={tmp_path / 'o.jsonl'}"]
    assert "no chat template" in run(capsys, *argv, code=2).err
    chats.write_text("{\n")
    assert "line 1" in run(capsys, *argv, code=2).err and not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "exactly one of --prompt.*none"),
        (["--prompt=x", "--chat"], "exactly one of.*--prompt and --chat"),
        (["--prompt=x", "--prompts=y"], "exactly one of"),
        (["--prompt=x", "--system=y"], "--system has no meaning with --prompt"),
        (["--chat", "--num_samples=2"], "--num_samples has no meaning with --chat"),
        (["--chat", "--num_beams=2"], "--num_beams has no meaning"),
        (["--prompt=x", "--with_tokens"], "--with_tokens has no meaning"),
        (["--prompts=x"], "--output"),
        (["--prompt=x", "--num_beams=2", "--seed=0"], "--seed has no meaning with --num_beams"),
        (["--prompt=x", "--length_penalty=2"], "--num_beams"),
        (["--chat", "--template=a"], "NAME=JSON"),
    ],
)
def test_flags_that_do_not_go_together(argv, message):
    with pytest.raises(InputError, match=message):
        generate.parse(["--model=m", *argv])


def test_the_readme_s_promise_of_flags():
    flags = generate.parse(
        "--model=m --prompt=x --max_new_tokens=64 --temperature=1.0 --top_k=0 --top_p=1.0 --seed=0".split()
    )
    assert (flags.mode, flags.prompt, flags.top_k) == ("prompt", "x", 0)
    flags = generate.parse(["--model=m", "--chat", "--template=enable_thinking=false", "--template=a=[1]"])
    assert dict(flags.template) == {"enable_thinking": False, "a": [1]}
