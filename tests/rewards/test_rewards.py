"""Rewards: verifiers, lexicons, models and their weighted sum."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError, DataError
from fmjax.rewards.base import Samples
from fmjax.rewards.lexicon import open_lexicon
from fmjax.rewards.maths import final_answer, same, verify
from fmjax.rewards.models import combined
from fmjax.rewards.several import Several
from fmjax.tasks.program_rewards import program_in, verify as run_tests


@pytest.mark.parametrize(
    "text, answer",
    [
        ("3 + 4 = 7.", "7"), ("So x is 1,250.50 in all", "1,250.50"), ("a\n#### 42\nb", "42"), ("nothing", ""),
        (r"thus \boxed{\frac{3}{4}} and 5", r"\frac{3}{4}"), ("The answer is 12, since 3 * 4 = 12 and 5", "12"),
        ("from -3 to -8", "-8"), (r"\boxed{unclosed 3", "3"),
    ],
)  # fmt: skip
def test_the_final_answer_of_a_solution(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "found, wanted, equal",
    [
        ("1,000", "1000.0", True), (r"\frac{3}{4}", "0.75", True), ("50%", "0.5", True), ("$5", "5", True),
        ("x + 1", "x+1", True), ("7", "8", False), ("", "", False), ("1/0", "1/0", True), ("0.3", "1/3", False),
    ],
)  # fmt: skip
def test_answers_are_compared_as_numbers_where_they_are(found, wanted, equal):
    assert same(found, wanted) is equal
    assert verify([f"#### {found}"], [f"#### {wanted}"]) == [float(equal)]


def test_programs_are_run_with_their_tests():
    reply = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
    assert program_in(reply) == "def double(x):\n    return 2 * x\n" and program_in("x = 1") == "x = 1"
    tests = "assert double(4) == 8"
    assert run_tests([reply, "def double(x): return x", "def double("], [tests] * 3) == [1.0, 0.0, 0.0]


def test_a_lexicon_adds_up_words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("good\t2.0\t0.5\nbad\t-2.5\n:)\t1\n")
    score = open_lexicon(str(path), "here")
    assert score("Good, GOOD! not so bad") == pytest.approx(1.5 / np.sqrt(1.5**2 + 15))
    assert score("") == 0.0 and score("fine :)") == pytest.approx(0.25)
    path.write_text("good 2.0\n")
    with pytest.raises(DataError, match="line 1: expected a word, a tab and its value"):
        open_lexicon(str(path), "here")


class Sums:
    """A reward model that scores a text by its ids' mean, as `other.apply` of one."""

    module = None

    def __init__(self, factor):
        self.factor = factor

    def apply(self, tokens, segment_ids):
        return self.factor * jnp.sum(tokens * segment_ids, axis=1).astype(jnp.float32)


def test_rewards_are_added_with_their_weights(monkeypatch):
    from fmjax.rewards import models

    monkeypatch.setattr(models, "_scores", lambda other, tokens, segments: other.apply(tokens, segments))
    rewards = Several("", {
        "right": {"verifier": "maths", "weight": 2.0}, "taste": {"models": ("a", "b"), "combine": "worst"},
    })  # fmt: skip
    assert rewards.models() == {"rewards.taste.models[0]": "a", "rewards.taste.models[1]": "b"}
    assert rewards.needs_answers and rewards.names == ("right", "taste")
    samples = Samples(["?", "?", "?"], ["= 7", "= 8", "= 7"], {}, ["7", "7", "7"])
    made = {"rewards.taste.models[0]": Sums(1.0), "rewards.taste.models[1]": Sums(-1.0)}
    model = types.SimpleNamespace(opened=made.get)
    found = rewards.grade(samples, [[1, 2], [3], [4, 4, 4]], model, 4, 2)
    np.testing.assert_allclose(found.parts, [[1, -3], [0, -3], [1, -12]])
    np.testing.assert_allclose(found.total, [-1, -3, -10])
    assert not found.wrong
    np.testing.assert_allclose(combined(np.array([[1.0, 2], [3, 0]]), "mean"), [2, 1])
    made["rewards.taste.models[0]"] = Sums(float("nan"))
    assert "reward 'taste' gave nan, which is not finite, for the reply '= 7'" in rewards.grade(
        samples, [[1], [2], [3]], model, 4, 2
    ).wrong[0]


@pytest.mark.parametrize(
    "rewards, message",
    [
        ({"a": {}}, "objective.rewards.a has none of function, verifier, lexicon, models"),
        ({"a": {"verifier": "maths", "lexicon": "x"}}, "verifier and lexicon"),
        ({"a": {"verifier": "math"}}, "did you mean 'maths'"),
        ({"a": {"models": ("x",), "combine": "best"}}, "combine"),
        ({"a": {"verifier": "maths", "weight": float("nan")}}, "must be finite"),
        (None, "set one of them"),
    ],
)
def test_what_is_no_reward_is_refused(rewards, message):
    with pytest.raises(ConfigError, match=message):
        Several("", rewards)
