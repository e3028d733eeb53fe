"""`python -m fmjax.agent`: what is printed and written, what is refused, and that a transcript can be replayed."""

import json
import types

import pytest
from small_models import byte_model

from fmjax import agent
from fmjax.agents.actions import Answer
from fmjax.commands import cli
from fmjax.data.tokenizers.loading import ByteTokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent") / "saved"
    byte_model(ByteTokenizer(), max_length=256).save(folder)
    return folder


def run(capsys, *argv, code=0):
    assert cli.run(agent.main, list(argv)) == code
    return capsys.readouterr()


def test_a_transcript_comes_out_again(saved, capsys, tmp_path):
    written = tmp_path / "t.jsonl"
    argv = [f"--model={saved}", "--goal=What is 3 + 4?", "--tools=calculator", "--steps=3", "--max_new_tokens=10"]
    argv += ["--temperature=1", "--seed=5", f"--transcript={written}"]
    shown = run(capsys, *argv, code=1)
    assert "no answer: the budget of steps (--steps) ended" in shown.err and "[3] malformed" in shown.err
    start, *steps, end = map(json.loads, written.read_text().splitlines())
    assert (start["goal"], start["format"], start["drawing"]["seed"]) == ("What is 3 + 4?", "lines", 5)
    assert [step["kind"] for step in steps] == ["step"] * 3 and all(len(step["tokens"]) <= 10 for step in steps)
    assert (end["ended"], end["answer"], end["steps"]) == ("steps", None, 3)
    again = [f"--model={saved}", f"--replay={written}"]
    assert "3 steps, each with the same ids" in run(capsys, *again).out
    assert "is there already" in run(capsys, *argv, code=2).err

    lines = written.read_text().splitlines()
    changed = json.loads(lines[2])
    changed["tokens"][0] ^= 1
    written.write_text("\n".join([*lines[:2], json.dumps(changed), *lines[3:]]))
    assert "step 1 is not as it was, from its token 0 on" in run(capsys, *again, code=1).err
    changed = json.loads(lines[0]) | {"fingerprint": "0"}
    written.write_text("\n".join([json.dumps(changed), *lines[1:]]))
    assert "is of another model or of other code" in run(capsys, *again, code=2).err
    written.write_text("{}\n")
    assert "is no transcript of version 2" in run(capsys, *again, code=2).err


def test_control_characters_do_not_steer_the_terminal(capsys):
    step = types.SimpleNamespace(action=Answer("a\x1b[2Jb"), result="\x9b31m\ttwo\nlines \u202e\x07 één")
    agent._show(1, step)
    shown = capsys.readouterr().err
    assert shown == "[1] answer: a\\x1b[2Jb\n    \\x9b31m\ttwo\n    lines \\u202e\\x07 één\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --goal=TEXT or --replay=FILE"), (["--goal= "], "--goal is empty"),
        (["--goal=x", "--tools=calculater"], "did you mean 'calculator'"),
        (["--goal=x", "--tools=search"], "the tool search needs --documents=DIR"),
        (["--goal=x", "--tools=calculator", "--files=."], "--files is for the tool files"),
        (["--goal=x", "--tools=files", "--files=.", "--notes=./n.txt"], "--notes is for the tool notes"),
        (["--goal=x", "--files=.", "--notes=./n.txt"], "--notes=./n.txt lies in --files=."),
        (["--goal=x", "--files=.", "--transcript=sub/../t.jsonl"], "lies in --files=."),
        (["--goal=x", "--files=/nowhere"], "'/nowhere' is not a folder"),
        (["--goal=x", "--documents=/nowhere"], "--documents=/nowhere is not a folder"),
        (["--goal=x", "--transcript=/nowhere/t.jsonl"], "there is no folder '/nowhere'"),
        (["--goal=x", "--notes=/"], "the notes / cannot be read: Is a directory"),
        (["--goal=x", "--embedder=m"], "--embedder is for the tool search"),
        (["--goal=x", "--step=3"], "did you mean '--steps'"), (["--replay=/nowhere"], "cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_model_is_loaded(flags, message, capsys):
    assert message in run(capsys, "--model=/nowhere", *flags, code=2).err
