"""Tasks beside their perturbed selves: what each perturbation changes, what it leaves, and the drop."""

import dataclasses

import numpy as np
import pytest

from fmjax.errors import InputError
from fmjax.tasks import statistics
from fmjax.tasks.calibration import Calibrated
from fmjax.tasks.commonsense import PIQA
from fmjax.tasks.multiple_choice import Choices, LetteredChoice
from fmjax.tasks.perturbation import Perturbed
from fmjax.tasks.protocol import TaskContext
from fmjax.tasks.runner import run_tasks
from fmjax.tasks.text_changes import around_gap, distractor, paraphrase, typos, words_changed
from tests.tasks.quiz import MODEL, Quiz, questions


class Lettered(LetteredChoice):
    """Every third question has options that are all the same, so that their order changes nothing."""

    name = "lettered"

    def documents(self, context):
        found = questions()
        return [
            dataclasses.replace(one, options=(one.options[0],) * 3) if i % 3 == 0 else one
            for i, one in enumerate(found)
        ]


def test_reordered_options_move_their_right_answer():
    task = Perturbed(Lettered(), "options")
    for both in task.documents(TaskContext()):
        old, new = both.plain, both.perturbed
        assert old.options[old.gold] == new.options[new.gold] and sorted(old.options) == sorted(new.options)
        assert old.options != new.options or len(set(old.options)) < 3
    result = run_tasks(MODEL, [task])["lettered+options"]
    assert result.metrics["changed"] == pytest.approx(2 / 3)
    for sample in result.samples:
        old, new = sample["requests"][0]["context"], sample["requests"][3]["context"]
        assert (old != new) == sample["statistics"]["changed"]
        assert sorted(old.split("\n")) != sorted(new.split("\n")) or old == new  # the letters stay where they are


def test_perturbations_that_cannot_change_a_task_are_refused():
    # Log-likelihoods of separate options do not depend on their order.
    with pytest.raises(InputError, match="task quiz.options: quiz has no options in its prompt"):
        Perturbed(Quiz(), "options")
    with pytest.raises(InputError, match="task lettered.typos.options: perturbations do not stack"):
        Perturbed(Perturbed(Lettered(), "typos"), "options")
    with pytest.raises(InputError, match="task copa.typos.options: perturbations do not stack"):
        run_tasks(MODEL, ["copa+typos+options"])


def test_a_perturbation_that_changes_no_document_is_refused():
    bare = [dataclasses.replace(one, context="") for one in questions()]  # as the whole sentences of CrowS-Pairs
    with pytest.raises(InputError, match="task quiz.typos: typos changes none of the 24 documents"):
        run_tasks(MODEL, [Perturbed(Quiz(bare), "typos")])
    some = run_tasks(MODEL, [Perturbed(Quiz([*bare, *questions(1)]), "typos")])["quiz+typos"]
    assert some.metrics["changed"] == pytest.approx(1 / 25)


def test_contexts_with_a_gap_are_perturbed_alike():
    head, names = "Yesterday because of something ", ("Christopher", "Christina", "the gardener")
    tails = [f"{name} wanted several sandwiches, which surprised {name}" for name in names]
    task = Perturbed(Quiz([Choices("", ("nobody",) * 3, 0, tuple(head + tail for tail in tails))]), "typos")
    (both,) = task.documents(TaskContext())
    after = [request.context for request in both.requests[1]]
    assert [text[len(head) :] for text in after] == tails  # from name to name
    (start,) = {text[: len(head)] for text in after}
    assert start != head and sorted(start) == sorted(head)
    found = around_gap(["He said no, Ann", "He said no, Anna"], str.upper)
    assert found == {"He said no, Ann": "HE SAID NO, Ann", "He said no, Anna": "HE SAID NO, Anna"}
    assert around_gap(["a x c", "a yy c"], str.upper) == {"a x c": "A x C", "a yy c": "A yy C"}
    assert around_gap(["to be", "to be to be"], str.upper)["to be to be"].lower() == "to be to be"


def test_a_perturbed_task_adds_up_where_its_task_does_and_makes_its_requests_once(monkeypatch):
    class Uncertain(Calibrated, Lettered):
        name, metrics = "uncertain", ("acc", "ece", "ece_mass")

        def statistics(self, document, answers):
            return super().statistics(document, answers) | {"confidence": 0.5}

    assert Perturbed(Lettered(), "typos").is_summable and not Perturbed(Uncertain(), "typos").is_summable
    task, made = Perturbed(Lettered(), "typos"), []
    original = Lettered.requests
    monkeypatch.setattr(Lettered, "requests", lambda self, document: made.append(document) or original(self, document))
    result = run_tasks(MODEL, [task])["lettered+typos"]
    assert len(made) == 2 * 24
    columns = statistics.table([sample["statistics"] for sample in result.samples])
    quick, slow = (
        statistics.bootstrap(columns, task.reduce_documents, 0, summable=summable) for summable in (True, False)
    )
    assert quick == pytest.approx(slow, rel=1e-9) and quick.keys() == {
        "changed", "words_changed", "acc", "acc_perturbed", "acc_drop"
    }  # fmt: skip
    uncertain = run_tasks(MODEL, [Perturbed(Uncertain(), "typos")])["uncertain+typos"].metrics
    assert {name: uncertain[name] for name in quick} == {name: result.metrics[name] for name in quick}
    assert uncertain["ece"] == pytest.approx(abs(uncertain["acc"] - 0.5))


def test_the_drop_and_what_changes():
    task = Perturbed(Quiz(), "typos")
    result = run_tasks(MODEL, [task], num_shots=1)["quiz+typos"]
    plain = run_tasks(MODEL, [Quiz()], num_shots=1)["quiz"].metrics
    assert {k: result.metrics[k] for k in ("acc", "acc_norm")} == {k: plain[k] for k in ("acc", "acc_norm")}
    assert result.metrics["acc_drop"] == pytest.approx(plain["acc"] - result.metrics["acc_perturbed"])
    assert result.metrics["acc_drop_stderr"] < 2**0.5 * plain["acc_stderr"]
    changed = [s for s in result.samples if s["requests"][0] != s["requests"][3]]
    assert changed and result.metrics["changed"] == pytest.approx(len(changed) / 24)
    for sample in changed:
        before, after = sample["requests"][0]["context"], sample["requests"][3]["context"]
        assert sorted(before) == sorted(after) and before.split("\n\n")[0] == after.split("\n\n")[0]


@pytest.mark.parametrize("name", ["typos", "paraphrase", "distractor"])
def test_the_labels_of_a_template_stay(name):
    """PIQA asks "Question: GOAL\\nAnswer:": the goal is what is perturbed, and the words changed are counted."""
    goals = [f"how do I peel {number} oranges because of something" for number in range(30)]
    piqa = PIQA()
    piqa.documents = lambda context: [
        piqa.from_tfds({"goal": goal, "sol1": "a", "sol2": "b", "label": 0}) for goal in goals
    ]
    task, counts = Perturbed(piqa, name), []
    for both in task.documents(TaskContext()):
        (before, _), (after, _) = both.requests
        goal = after.context.removeprefix("Question: ").removesuffix("\nAnswer:")
        assert after.context == f"Question: {goal}\nAnswer:" and before.context != after.context
        assert name != "distractor" or goal.endswith(before.context[len("Question: ") : -len("\nAnswer:")])
        counts.append(words_changed(before.context, after.context))
    assert min(counts) > 0 and (name != "typos" or set(counts) == {1})
    metrics = run_tasks(MODEL, [task])[f"piqa+{name}"].metrics
    assert metrics["words_changed"] == pytest.approx(np.mean(counts)) and metrics["changed"] == 1


def test_words_changed():
    assert words_changed("a b c d", "a x c d") == 1 and words_changed("a b", "a b") == 0
    assert words_changed("a b", "x y a b") == 2 and words_changed("do not go", "don't go") == 2


def test_perturbed_texts():
    rng = np.random.default_rng
    assert typos("aa bbb 1234 -- aaaa", rng(0), 1.0) == "aa bbb 1234 -- aaaa"
    assert typos("A little dresser", rng(0), 0.0) != "A little dresser"  # one at least
    assert typos("word abcdef", rng(0), 1.0) != "word abcdef"
    assert paraphrase("It is hot. I do not know, for example", rng(0)) == "It is hot. I don't know, for instance"
    assert distractor("Why?", rng(0)).endswith(". Why?")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How many need to go to the bank since Monday? Get help about it, to start.", None),
        ("Don't purchase a home until", "Don't purchase a home till"),
        ("Do not go: Children's TV; her mother-in-law", "Don't go: Kids' TV; her mother-in-law"),
        ("A person begins because of rain, as no one left.", "An individual starts owing to rain, as nobody left."),
        ("a large-scale war in the United States", "a large-scale war in the US"),
        ("Television CANNOT", "TV CAN'T"),
        ("They saw We Bought a Zoo. Begin!", "They saw We Bought a Zoo. Start!"),
    ],
)
def test_paraphrases_go_one_way_and_keep_grammar(text, expected):
    assert paraphrase(text, np.random.default_rng(0)) == (expected or text)
