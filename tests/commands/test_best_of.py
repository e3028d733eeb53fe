"""The best of n replies, and those that are right, as chats."""

import contextlib
import json
import types

import numpy as np
import pytest
from small_models import byte_model

from fmjax.commands import best_of
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.data.tokenizers.templates import TURNS
from fmjax.errors import ConfigError, DataError, InputError
from fmjax.rewards.base import RewardError
from fmjax.rewards.several import Several


def letters(prompts, replies):
    """How many different characters a reply has; one with a 'q' fails."""
    return [float("nan") if "q" in reply else float(len(set(reply))) for reply in replies]


def answers_of_rows(prompts, replies, rows):
    assert rows["tokens"].tolist() == [[1, 2]] * len(replies)
    return [float(bytes(one).rstrip(b"\0")) for one in rows["answers"]]


def never(prompts, replies):
    raise ValueError("never")


def test_the_best_replies_are_written_as_chats(tmp_path, capsys):
    model = byte_model(ByteTokenizer({"default": TURNS}))
    model.save(tmp_path / "model")
    (tmp_path / "a.jsonl").write_text('{"prompt": "Who?", "answer": "I"}\n{"prompt": "What?"}\n')
    rewards = json.dumps({"letters": {"function": f"{__name__}:letters"}})
    output = tmp_path / "b.jsonl"
    flags = [f"--model={tmp_path / 'model'}", f"--source={tmp_path / 'a.jsonl'}", f"--output={output}"]
    flags += [f"--rewards={rewards}", "--num_samples=6", "--keep=2", "--max_new_tokens=8", "--batch_size=16"]
    flags += ["--keep_cut_off"]
    best_of.main(flags)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    asked = [[{"role": "user", "content": text}] for text in ("Who?", "What?")]
    ids = [model.encode_chat(one) for one in asked]
    replies = [one.text for one in model.complete(ids, num_samples=6, max_new_tokens=8, batch_size=16)]
    for index, prompt in enumerate(asked):
        pairs = {r: letters([], [r])[0] for r in replies[index * 6 : index * 6 + 6] if r.strip() and "q" not in r}
        wanted = sorted(pairs.values(), reverse=True)[:2]
        mine = [one for one in found if one["messages"][:1] == prompt]
        assert [one["reward"] for one in mine] == wanted
        assert all(pairs[one["messages"][1]["content"]] == one["reward"] for one in mine)
        assert [one.get("answer") for one in mine] == (["I"] * 2 if index == 0 else [None] * 2)
    assert "of the best of 6" in capsys.readouterr().out
    with pytest.raises(DataError, match="b.jsonl is there already"):
        best_of.main(flags)
    with pytest.raises(InputError, match="letters.wieght is no key of a reward"):
        best_of.parse([*flags[:3], '--rewards={"letters": {"wieght": 1}}'])
    with pytest.raises(InputError, match="--least=1 is of rewards"):
        best_of.parse([*flags[:3], "--least=1"])
    # Without rewards, what a student is to learn from.
    plain = [one for one in flags if "--rewards" not in one and "--output" not in one]
    best_of.main([*plain, f"--output={tmp_path / 'c.jsonl'}", "--keep=1"])
    found = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [one["messages"][1]["content"] for one in found] == [replies[0], replies[6]]
    assert not any("reward" in one for one in found)


def test_what_is_kept_and_told_by_hand():
    asked = best_of.read_prompts("builtin", None, limit=2)
    replies = [type("Reply", (), {"text": text}) for text in ("a", "b", "a", "c", " ", "d")]
    rewards = np.array([1.0, 2.0, 1.0, 0.5, 3.0, -np.inf])
    one = best_of.kept(asked, replies, rewards, 2, 0.6)
    assert [(r["messages"][-1]["content"], r["reward"]) for r in one] == [("b", 2.0), ("a", 1.0)]
    rewards, ended = np.array([[1.0, 2.0, 1.0], [0.5, 3.0, 2.5]]), np.ones((2, 3), bool)
    line = best_of.told(rewards, ended, True)
    assert "mean reward 1.667, of the best of 3 2.5;" in line and "0.432 nats" in line
    assert "nats" not in best_of.told(rewards, ended, False)
    ended[1, 1:] = False
    line = best_of.told(rewards, ended, True)
    assert "of the best of 3 1.25; 2 of 6 replies did not end within" in line and "nats" not in line


def test_rewards_get_rows_and_one_for_none_is_an_error():
    """Of a model that replies with nothing, that is."""
    reply = types.SimpleNamespace(text="", tokens=[7], finish="stop")
    model = types.SimpleNamespace(
        encode_chat=lambda messages: [1, 2],
        complete=lambda prompts, num_samples, **_: [reply] * len(prompts) * num_samples,
        tokenizer=types.SimpleNamespace(decode=str), inference=contextlib.nullcontext,
    )  # fmt: skip
    asked = best_of.read_prompts("builtin", None, limit=2)
    drawn = lambda name: best_of.drawn(
        model, asked, Several("", {"a": {"function": f"{__name__}:{name}"}}), {}, 2, max_new_tokens=1, batch_size=2
    )
    answers = [float(one.answer) for one in asked]
    np.testing.assert_array_equal(drawn("answers_of_rows")[1], np.repeat(answers, 2))
    with pytest.raises(RewardError, match="ValueError: never; for the reply ''"):
        drawn("never")


def test_a_reward_model_of_other_tokens_is_refused():
    one, other = (types.SimpleNamespace(fingerprint=name) for name in "ab")
    best_of.check_tokenizers("here", one, one)
    with pytest.raises(ConfigError, match="here reads the tokens of another tokenizer"):
        best_of.check_tokenizers("here", other, one)
