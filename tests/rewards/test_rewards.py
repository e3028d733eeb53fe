"""Rewards: verifiers, lexicons, models and their weighted sum."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import CheckpointError, ConfigError, DataError, InputError
from fmjax.objectives.reinforce import Reinforce
from fmjax.objectives.step_rewards import StepRewards
from fmjax.rewards.base import Samples
from fmjax.rewards.lexicon import open_lexicon
from fmjax.rewards.maths import final_answer, same, verify
from fmjax.rewards.models import check_trained, combined
from fmjax.rewards.several import Several
from fmjax.tasks.program_rewards import program_in, verify as run_tests
from fmjax.training.resume import check_content


@pytest.mark.parametrize(
    "text, answer",
    [
        ("3 + 4 = 7.", "7"), ("So x is 1,250.50 in all", "1,250.50"), ("a\n#### 42\nb", "42"), ("nothing", ""),
        (r"thus \boxed{\frac{3}{4}} and 5", r"\frac{3}{4}"), ("The answer is 12, since 3 * 4 = 12 and 5", "12"),
        ("from -3 to -8", "-8"), (r"\boxed{unclosed 3", "3"), ("The answer is 3/4", "3/4"), ("x = 10-3", "3"),
        (r"so it is -\frac{3}{4}", r"-\frac{3}{4}"), ("it is 1.5e-3", "1.5e-3"), ("up by 50%.", "50%"),
    ],
)  # fmt: skip
def test_the_final_answer_of_a_solution(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "found, wanted, equal",
    [
        ("1,000", "1000.0", True), (r"\frac{3}{4}", "0.75", True), ("50%", "0.5", True), ("$5", "5", True),
        ("x + 1", "x+1", True), ("7", "8", False), ("", "", False), ("1/0", "1/0", True), ("0.3", "1/3", False),
        (r"2\frac{1}{2}", "2.5", True), ("2 1/2", "21/2", False), ("1,2", "12", False), ("50%", "50", True),
        ("1e999999999", "7", False), ("9" * 5000, "7", False), ("50%", "51", False),
    ],
)  # fmt: skip
def test_answers_are_compared_as_numbers_where_they_are(found, wanted, equal):
    assert same(found, wanted) is equal
    assert verify([f"#### {found}"], [f"#### {wanted}"]) == [float(equal)]


@pytest.mark.parametrize(
    "reply, answer, right",
    [
        ("The answer is 3/4", "3/4", 1), ("so 4", "3/4", 0), (r"\boxed{0.75}", r"\frac{3}{4}", 1),
        ("4", r"\frac{3}{4}", 0),
        ("It is -1/2.", "-1/2", 1), ("2", "-1/2", 0), (r"\boxed{x + 1}", "x+1", 1), ("1", "x+1", 0),
        ("100000000000000000000", str(1e20), 1), ("20", str(1e20), 0), (r"\boxed{50\%}", "50%", 1),
        ("The answer is Paris.", "Paris", 1), ("Is it Rome?\nparis", "Paris", 1),
        ("Rome", "Paris", 0), ("", "Paris", 0),
        ("= 7", "3 + 4 = 7.", 1), ("4", "3 + 4 = 7.", 0), ("7", "So 3 + 4.\n#### 7", 1), ("10-3 = 7", "7.0", 1),
        ("4", "x^2 + y^2 = 4", 0), ("12", "1,2", 0),
    ],
)  # fmt: skip
def test_a_known_answer_is_taken_whole(reply, answer, right):
    assert verify([reply], [answer]) == [right]


def test_programs_are_run_with_their_tests():
    reply = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
    assert program_in(reply) == "def double(x):\n    return 2 * x\n" and program_in("x = 1") == "x = 1"
    tests = "assert double(4) == 8"
    assert run_tests([reply, "def double(x): return x", "def double("], [tests] * 3) == [1.0, 0.0, 0.0]


def test_a_lexicon_adds_up_words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("good\t2.0\t0.5\nbad\t-2.5\n:)\t1\n")
    score = open_lexicon(str(path), "here").score
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


def mixed(prompts, replies):
    return [float("nan") if reply == "bad" else "no number" if reply == "text" else 2 for reply in replies]


def refusing(prompts, replies):
    if "bad" in replies:
        raise InputError("no")
    return [1.0] * len(replies)


def test_what_fails_takes_nothing_with_it():
    """Neither the other replies, nor, without weight, its own."""
    here = lambda name, **more: {"function": f"{__name__}:{name}", **more}
    samples = Samples(["?"] * 3, ["good", "bad", "text"], {})
    grade = lambda rewards: Several("", rewards).grade(samples, [[1]] * 3, None, 2, 2)
    found = grade({"a": here("mixed"), "b": here("refusing")})
    np.testing.assert_array_equal(found.parts, [[2, 1], [np.nan, np.nan], [np.nan, 1]])
    assert [line.split(";")[0].split(" for ")[0] for line in found.wrong] == [
        "reward 'a' gave nan, which is not finite,", "reward 'a' gave 'no number', which is no number,",
        "reward 'b' raised InputError: no",
    ]  # fmt: skip
    found = grade({"a": here("mixed", weight=0.0), "b": here("refusing")})
    np.testing.assert_array_equal(found.total, [1, np.nan, 1])


def test_a_model_of_steps_or_of_too_short_texts_is_no_reward():
    rewards = Several("", {"a": {"models": ("x",)}})
    with pytest.raises(ConfigError, match="trained with objective.name = 'step_rewards'"):
        check_trained("objective.rewards.a.models[0]", StepRewards())
    check_trained("here", None)
    model = types.SimpleNamespace(opened=lambda name: types.SimpleNamespace(module=types.SimpleNamespace(max_length=8)))
    rewards.check_context(model, 8)
    with pytest.raises(ConfigError, match=r"rewards.a.models\[0\], a reward model, reads 8 tokens"):
        rewards.check_context(model, 9)


def test_a_lexicon_is_opened_once_and_known_by_its_content(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("good\t2.0\n")
    make = lambda: Reinforce(rewards={"words": {"lexicon": str(path)}})
    objective = make()
    before = objective.contents()
    path.write_text("good\t1.0\n")
    assert before.keys() == {"objective.rewards.words.lexicon"} and objective.contents() == before != make().contents()
    assert objective._graders is objective._graders
    check_content(tmp_path, {"file": before}, {"file": before})
    with pytest.raises(CheckpointError, match="the file 'objective.rewards.words.lexicon' is not the one"):
        check_content(tmp_path, {"file": before}, {"file": make().contents()})
