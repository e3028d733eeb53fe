"""Subsets' metrics beside the whole's, examples of a subset alone, and details in results.json."""

import json
import math

import pytest

import fmjax
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.load import Model
from fmjax.models.gpt import GPT
from fmjax.tasks.by_subset import BySubset
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.perturbation import Perturbed
from fmjax.tasks.protocol import Task, TaskContext


class _Fixed(Task):
    """Documents (subset, number), whose `value` is the number."""

    metrics = ("value",)
    uses = ()

    def documents(self, context):
        return [("a", 1), ("a", 2), ("a", 6), ("b", 5)]

    def examples(self, context):
        return self.documents(context)

    def example(self, document):
        return f"{document[0]}{document[1]}"

    def requests(self, document):
        return []

    def statistics(self, document, answers):
        return {"value": float(document[1])}

    def details(self):
        return {"signature": "v1"}


class Numbers(BySubset, _Fixed):
    name = "numbers"

    def subset_of(self, document):
        return document[0]

    def preamble_of(self, document):
        return f"About {document[0]}: "


def test_metrics_of_subsets_and_details_are_in_the_results(tmp_path):
    module = GPT(num_layers=1, hidden_size=8, num_heads=1, max_length=16, vocab_size=258)
    model = Model(module, {}, {}, ByteTokenizer())  # nothing is asked of it
    fmjax.evaluate(model, [Numbers()], num_shots=0, output=tmp_path)
    report = json.loads((tmp_path / "results.json").read_text())
    metrics = report["results"]["numbers"]
    assert {name: metrics[name] for name in metrics if not name.endswith("_stderr")} == {
        "value": 3.5, "value/a": 3, "value/b": 5
    }  # fmt: skip
    # Some resamples hold no document of b, and the mean of none has no spread.
    assert metrics["value_stderr"] > 0 and metrics["value/b_stderr"] is None
    assert report["details"] == {"numbers": {"signature": "v1"}}


def test_one_subset_alone_and_an_empty_resample():
    task = Numbers()
    assert task.reduce({"value": 9.0, "value/a": 9.0, "documents": 3.0, "documents/a": 3.0}) == {"value": 3}
    totals = {"value": 9.0, "value/a": 9.0, "value/b": 0.0, "documents": 3.0, "documents/a": 3.0, "documents/b": 0.0}
    assert math.isnan(task.reduce(totals)["value/b"])


def test_examples_are_of_the_document_s_subset_and_may_keep_their_order():
    task, context = Numbers(), TaskContext()
    documents = task.documents(context)
    drawn = FewShot.make(task, 2, 0, context)
    assert sorted(drawn.examples(documents[0])) == [("a", 2), ("a", 6)]
    assert drawn.prefix(documents[0]).startswith("About a: a")
    with pytest.raises(InputError, match="num_shots=2 takes .*, for 'b', and there are 0"):
        drawn.examples(documents[3])
    task.examples_in_order = True
    ordered = FewShot.make(task, 2, 0, context)
    assert ordered.examples(documents[0]) == [("a", 2), ("a", 6)]  # never itself
    assert ordered.examples(("a", 9)) == [("a", 1), ("a", 2)] == FewShot.make(task, 2, 5, context).examples(("a", 9))
    assert FewShot.make(task, 3, 0, context).examples(("a", 9)) == documents[:3]  # all there are
    with pytest.raises(InputError, match="num_shots=3 takes .*, and there are 2"):
        FewShot.make(task, 3, 0, context).examples(documents[0])


def test_a_perturbed_task_keeps_subset_preamble_order_and_details():
    task = Numbers()
    task.examples_in_order = True
    perturbed, context = Perturbed(task, "typos"), TaskContext()
    document = perturbed.documents(context)[2]
    assert FewShot.make(perturbed, 2, 0, context).prefix(document) == "About a: a1\n\na2\n\n"
    assert perturbed.details() == {"signature": "v1"}
