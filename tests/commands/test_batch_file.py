"""Files of prompts: what is read and written, and that an interrupted run ends as one that was not."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from small_models import byte_model

from fmjax import generate
from fmjax.commands import batch_file, cli
from fmjax.commands.batch_file import complete_file
from fmjax.commands.prompt_file import PromptFile
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import DataError, InputError

OPTIONS = dict(max_new_tokens=6, seed=2, batch_size=2)


@pytest.fixture(scope="module")
def model():
    return byte_model()


def write(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def read(path):
    return sorted((json.loads(line) for line in path.read_text("utf-8").splitlines()), key=lambda r: r["index"])


def test_lines_are_the_model_s_continuations_with_their_fields(model, tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    file = write(tmp_path / "p.jsonl", {"prompt": "ab", "id": 7, "tag": "gr\u00fcn"}, "cd", {"messages": chat}, "ab")
    prompts = PromptFile(file)
    assert complete_file(model, prompts, tmp_path / "o.jsonl", with_tokens=True, with_logprobs=True, **OPTIONS) == 4
    rows = read(tmp_path / "o.jsonl")
    expected = model.complete(["ab", "cd", list(b"u:hi\na:"), "ab"], **OPTIONS)
    for row, one in zip(rows, expected):
        assert (row["text"], row["tokens"], row["finish"]) == (one.text, one.tokens, one.finish)
        assert row["num_tokens"] == len(one.tokens) and row["logprobs"] == pytest.approx(one.logprobs, abs=1e-5)
    assert rows[0]["id"] == 7 and rows[0]["tag"] == "gr\u00fcn" and "prompt" not in rows[0]
    assert rows[0]["text"] != rows[3]["text"] and set(rows[1]) == set(rows[0]) - {"id", "tag"}

    assert complete_file(model, prompts, tmp_path / "p2.jsonl", num_samples=2, **OPTIONS) == 8
    samples = read(tmp_path / "p2.jsonl")
    assert len({(row["index"], row["sample"]) for row in samples}) == 8 and "tokens" not in samples[0]


def test_beams(model, tmp_path):
    prompts = PromptFile(write(tmp_path / "p.jsonl", "ab", "cd", "e"))
    options = dict(num_beams=2, length_penalty=1.0, max_new_tokens=5)
    complete_file(model, prompts, tmp_path / "o.jsonl", use_beams=True, batch_size=4, **options)
    for row, (best,) in zip(read(tmp_path / "o.jsonl"), model.beam_search(["ab", "cd", "e"], **options)):
        assert row["text"] == best.text and row["score"] == pytest.approx(best.score, abs=1e-4)


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "x"', "line 3: not JSON"),
        ('{"text": "x"}', 'line 3: .*"text" of its own|line 3: expected'),
        ('{"prompt": "x", "index": 1}', "'index' of its own"),
        ('{"prompt": "x", "messages": []}', "line 3: expected"),
        ('{"prompt": 5}', "line 3: expected"),
        ('{"messages": ["x"]}', "line 3: messages: message 0"),
        ('"\\ud800"', "line 3: not JSON in UTF-8"),
    ],
)
def test_malformed_lines_are_named(line, message, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(f'"good"\n\n{line}\n')
    with pytest.raises(DataError, match=f"p.jsonl, {message}" if message.startswith("line") else message):
        PromptFile(path)


def test_what_cannot_be_continued_leaves_nothing(model, tmp_path, monkeypatch):
    output = tmp_path / "o.jsonl"
    with pytest.raises(DataError, match=r"p.jsonl, line 2: prompt 1 has 81 tokens, more than the .*context of 64"):
        complete_file(model, PromptFile(write(tmp_path / "p.jsonl", "a", "x" * 80)), output, **OPTIONS)
    with pytest.raises(DataError, match="line 1: .*no chat template"):
        chat = PromptFile(write(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "x"}]}))
        complete_file(byte_model(ByteTokenizer()), chat, output, **OPTIONS)
    good = PromptFile(write(tmp_path / "p.jsonl", "a"))
    with pytest.raises(InputError, match="temperature"):
        complete_file(model, good, output, temperature=-1.0)
    for options, message in [
        (dict(max_new_tokens=0), "max_new_tokens must be"),
        (dict(batch_size=0), "batch_size must be"),
        (dict(num_samples=2.5), "num_samples must be"),
        (dict(num_beams=2), "num_beams is no option of drawing"),
        (dict(copies=[3]), "copies is no option"),
        (dict(use_beams=True, length_penalty=-1), "length_penalty must be"),
        (dict(use_beams=True, max_new_tokens=0), "max_new_tokens must be"),
        (dict(use_beams=True, normalization="x"), "normalization='x'"),
        (dict(use_beams=True, batch_size=0), "batch_size must be"),
        (dict(use_beams=True, num_beams=0), "num_beams must be"),
        (dict(use_beams=True, num_beams=259), "num_beams=259 is more than the vocabulary's 258"),
        (dict(use_beams=True, temperature=0.5), "temperature is no option of beam search"),
        (dict(use_beams=True, stop_ids=5), "stop_ids must be a list"),
        # What would have no effect.
        (dict(use_beams=True, num_samples=2), "num_samples=2 has no meaning with beam search"),
        (dict(use_beams=True, num_results=2), "num_results=2 .*the best beam alone"),
        (dict(use_beams=True, with_logprobs=True), "with_logprobs has no meaning with beam search"),
    ]:
        with pytest.raises(InputError, match=message):
            complete_file(model, good, output, **options)
    with pytest.raises(DataError, match="no prompts"):
        PromptFile(write(tmp_path / "e.jsonl"))
    with pytest.raises(InputError, match="no folder"):
        complete_file(model, good, tmp_path / "nowhere" / "o.jsonl", **OPTIONS)
    with pytest.raises(InputError, match="file with the prompts"):
        complete_file(model, good, good.path, **OPTIONS)
    monkeypatch.setattr(pathlib.Path, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        complete_file(model, good, output, **OPTIONS)
    assert {path.name for path in tmp_path.iterdir()} == {"p.jsonl", "c.jsonl", "e.jsonl"}


def no_space(*arguments):
    raise OSError(28, "No space left on device")


def test_a_run_that_was_cut_goes_on_and_other_settings_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_file, "GROUP", 2)
    prompts = PromptFile(write(tmp_path / "p.jsonl", *["ab", "cd", "ab", "e", "fgh"] * 3))
    options = dict(with_logprobs=True, **OPTIONS)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "o.jsonl"
    complete_file(model, prompts, whole, **options)
    complete_file(model, prompts, output, **options)
    # Copies of a prompt are told apart over all groups.
    drawn = {name: value for name, value in options.items() if name != "with_logprobs"}
    assert [row["text"] for row in read(whole)] == model.generate(prompts.prompts, **drawn)
    lines = output.read_bytes().splitlines(keepends=True)
    # Of the second group the first lines are there, the next was being written.
    output.write_bytes(b"".join(lines[:6]) + lines[6][:20])
    assert complete_file(model, prompts, output, **options) == 9
    assert sorted(output.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    assert complete_file(model, prompts, output, **options) == 0

    before = output.read_bytes()
    with pytest.raises(InputError, match=r"other settings:\n  seed: 2 there, 3 in this call\nGive the same"):
        complete_file(model, prompts, output, **{**options, "seed": 3})
    other = PromptFile(write(tmp_path / "q.jsonl", *["ab"] * 15))
    with pytest.raises(InputError, match="prompts_digest"):
        complete_file(model, other, output, **options)
    (tmp_path / "foreign.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="no run of this command began it"):
        complete_file(model, prompts, tmp_path / "foreign.jsonl", **options)
    output.write_bytes(b'{"index": 99}\n' + before)
    with pytest.raises(DataError, match="line 1 is no line of this output .*99"):
        complete_file(model, prompts, output, **options)
    # A run that wrote nothing yet binds nobody.
    output.write_bytes(b"")
    assert complete_file(model, prompts, output, **{**options, "seed": 3}) == 15


def test_a_chat_that_says_the_day_is_the_same_when_a_run_goes_on_later(model, tmp_path):
    class Dated(ByteTokenizer):
        chat_templates = {"default": "{{ strftime_now('%H:%M:%S') }}{{ messages[0].content }}"}

    prompts = PromptFile(write(tmp_path / "p.jsonl", *[{"messages": [{"role": "user", "content": c}]} for c in "ab"]))
    output, dated = tmp_path / "o.jsonl", byte_model(Dated())
    complete_file(dated, prompts, output, **OPTIONS)
    settings = batch_file.settings_path(output)
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "started": "2001-02-03T04:05:06"}))
    output.write_text(output.read_text().splitlines(keepends=True)[0])
    complete_file(dated, prompts, output, **OPTIONS)
    last = json.loads(output.read_text().splitlines()[1])
    prompt = list(f"04:05:06{'ab'[last['index']]}".encode())
    assert dated.generate([prompt], **OPTIONS) == [last["text"]]


def test_a_run_killed_in_the_middle_ends_as_one_that_was_not(tmp_path, capsys):
    model = byte_model(max_length=512)
    model.save(tmp_path / "model")
    prompts = write(tmp_path / "p.jsonl", *[{"prompt": "ab"[i % 2] * (i % 7), "id": i} for i in range(72)])
    argv = [f"--model={tmp_path / 'model'}", f"--prompts={prompts}", "--max_new_tokens=100", "--batch_size=2"]
    argv += ["--with_logprobs", "--seed=5"]
    cut, whole = tmp_path / "cut.jsonl", tmp_path / "whole.jsonl"
    command = [sys.executable, "-m", "fmjax.generate", *argv, f"--output={cut}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not cut.exists() or cut.read_bytes().count(b"\n") < 33):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert 33 <= cut.read_bytes().count(b"\n") < 72
    assert cli.run(generate.main, [*argv, f"--output={cut}"]) == 0
    assert "complete: " in capsys.readouterr().out
    assert cli.run(generate.main, [*argv, f"--output={whole}"]) == 0
    assert sorted(cut.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    assert [row["id"] for row in read(cut)] == list(range(72))
