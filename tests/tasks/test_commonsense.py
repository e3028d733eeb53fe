"""Commonsense tasks: what they ask of files in their own schemas and of TFDS."""

import json

import pytest

from fmjax.errors import DataError, InputError
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.multiple_choice import Choices
from fmjax.tasks.protocol import Score, ScoreAnswer, TaskContext


def written(folder, name, *rows):
    """A data folder with one file of JSON lines."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return TaskContext(folder)


def asked(task, document):
    """Contexts and continuations as joined texts, and the solved document."""
    return [r.context + "|" + r.continuation for r in task.requests(document)], task.example(document)


FILES = {
    "arc_easy": ("arc_easy.jsonl", {"query": "Question: Why?", "choices": ["x", "y"], "gold": 1},
                 ["Question: Why?\nAnswer:| x", "Question: Why?\nAnswer:| y"], "Question: Why?\nAnswer: y"),
    "arc_challenge": ("arc_challenge.jsonl", {"query": "Question: Why?", "choices": ["x"], "gold": 0},
                      ["Question: Why?\nAnswer:| x"], "Question: Why?\nAnswer: x"),
    "boolq": ("boolq.jsonl", {"query": "Passage: P.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 0},
              [f"P.\nQuestion: is it?\nAnswer:| {w}" for w in ("no", "yes")], "P.\nQuestion: is it?\nAnswer: no"),
    "openbookqa": ("openbook_qa.jsonl", {"query": "Predators eat", "choices": ["bunnies", "grass"], "gold": 0},
                   ["Predators eat| bunnies", "Predators eat| grass"], "Predators eat bunnies"),
    "copa": ("copa.jsonl", {"query": "It rained, therefore", "choices": ["we left.", "we sang."], "gold": 1},
             ["It rained therefore|  we left.", "It rained therefore|  we sang."], "It rained therefore  we sang."),
    "winogrande": ("winogrande.jsonl",
                   {"context_options": ["So Ann", "So Eve"], "continuation": "left.", "gold": 1},
                   ["So Ann| left.", "So Eve| left."], "So Eve left."),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_prompts_of_files(name, tmp_path):
    file, row, requests, example = FILES[name]
    context = written(tmp_path, f"eval_commonsense_mc/{file}", row, row | {"gold": 0})
    task = get_task(name)
    first, _ = task.documents(context)
    assert asked(task, first) == (requests, example) and first.gold == row["gold"]
    answers = [ScoreAnswer(-2.0, False, 1)] * len(requests)  # the first of equal ones counts as the highest
    found = task.statistics(first, answers)
    assert found["acc"] == float(row["gold"] == 0) and set(task.metrics) <= set(found)
    written(tmp_path, f"eval_commonsense_mc/{file}", row, {"query": "no options"})
    with pytest.raises(DataError, match=f"{file}, line 2: expected an object with"):
        task.documents(context)


RECORDS = {
    "piqa": ({"goal": "Dry", "sol1": "Sun.", "sol2": "Rain.", "label": 0}, "Question: Dry\nAnswer:| Sun."),
    "arc_easy": ({"question": "Why?", "choices": {"text": ["x", "y"], "label": [0, 1]}, "answerKey": 1},
                 "Question: Why?\nAnswer:| y"),
    "boolq": ({"title": "T", "passage": "P.", "question": "is it", "answer": True},
              "T -- P.\nQuestion: is it?\nAnswer:| yes"),
    "openbookqa": ({"question": {"stem": "S"} | {f"choice_{c}": c.lower() for c in "ABCD"}, "answerKey": 2}, "S| c"),
    "copa": ({"premise": "It rained. ", "question": "effect", "choice1": "We left.", "choice2": "X", "label": 0},
             "It rained therefore|  we left."),
    "winogrande": ({"sentence": "So _ left.", "option1": "Ann", "option2": "Eve", "label": 1}, "So Eve| left."),
    "hellaswag": ({"activity_label": "Judo", "context": "A man bows. he", "endings": ["a", "b [step] c"], "label": 1,
                   "source_id": "activitynet~v_1"},
                  "Judo: A man bows. he| b c"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_prompts_of_tfds_records(name):
    record, right = RECORDS[name]
    task = get_task(name)
    document = task.from_tfds(record)
    assert asked(task, document)[0][document.gold] == right
    with pytest.raises((KeyError, ValueError)):
        task.from_tfds({})


def test_hellaswag_joins_and_cleans_its_contexts(tmp_path):
    row = {
        "activity_label": "Cooking",
        "ctx_a": "[header] How to cook [title] Wash.",
        "ctx_b": "then YOU",
        "endings": [" [step] Peel  it.", "Eat [substeps] it."],
        "label": "1",
        "source_id": "wikihow~7",
    }
    context = written(tmp_path, "eval_hellaswag/hellaswag_val_1000.jsonl", row)
    (document,) = get_task("hellaswag").documents(context)
    # Another clip of the video may show what this one is to end with, so it is no example for it.
    assert get_task("hellaswag").asks(document) == document.group
    # lm-evaluation-harness's own result for this row, the odd space in front of an ending included.
    assert document == Choices("Cooking: How to cook. Wash. Then you", (" Peel it.", "Eat it."), 1, group="wikihow~7")
    more = written(tmp_path, "eval_hellaswag/hellaswag_val.jsonl", row, row)
    assert len(get_task("hellaswag").documents(more)) == 2  # all of it, where it is there


def clusters(task, documents):
    return [[task.cluster(one) for one in documents].index(task.cluster(two)) for two in documents]


def test_twins_of_winogrande_are_one_cluster_and_no_examples_of_each_other(tmp_path):
    def row(before, first, second, after, gold=0):
        return {"context_options": [f"{before} {first}", f"{before} {second}"], "continuation": after, "gold": gold}

    rows = [
        row("The cup fell off the shelf because the", "cup", "shelf", "was round."),
        row("Ann ran faster than Eve because", "Ann", "Eve", "had slept well."),
        row("The cup fell off the shelf because the", "shelf", "cup", "was crooked."),  # another ending
        row("Ann ran slower than Eve because", "Ann", "Eve", "had slept well.", 1),  # another word before the gap
        row("Eve sold the red car that she had from Ann, so", "Ann", "Eve", "was without one."),  # the names alone
        row("Bob lost", "it", "her", "."),
    ]
    context = written(tmp_path, "eval_commonsense_mc/winogrande.jsonl", *rows)
    task = get_task("winogrande")
    documents = task.documents(context)
    assert clusters(task, documents) == [0, 1, 0, 1, 4, 5]
    for order in (documents, documents[::-1]):
        groups = {one.contexts: one.group for one in order}
        assert groups == {one.contexts: one.group for one in documents}
    few = FewShot.make(task, 4, 0, context)
    for document in documents[:4]:
        assert task.cluster(document) not in {task.cluster(one) for one in few.examples(document)}


def test_questions_about_one_passage_goal_or_video_are_one_cluster(tmp_path):
    queries = ["Passage: P.\nQuestion: is it?", "Passage: Q.\nQuestion: is it?", "Passage: P.\nQuestion: was it?"]
    rows = [{"query": query, "choices": ["no", "yes"], "gold": 0} for query in queries]
    context = written(tmp_path, "eval_commonsense_mc/boolq.jsonl", *rows)
    task = get_task("boolq")
    assert clusters(task, task.documents(context)) == [0, 1, 0]
    record = {"title": "T", "passage": "P.", "answer": True}
    documents = [task.from_tfds(record | {"question": question}) for question in ("is it", "was it")]
    assert clusters(task, documents) == [0, 0]
    row = {"activity_label": "Judo", "ctx_a": "He bows.", "ctx_b": "he", "endings": ["a", "b"], "label": 1}
    goals = [{"goal": goal, "sol1": f"{i}", "sol2": "x", "label": 0} for i, goal in enumerate(("a", "b", "a"))]
    assert clusters(get_task("piqa"), [get_task("piqa").from_tfds(one) for one in goals]) == [0, 1, 0]
    rows = [row | {"source_id": source} for source in ("v_1", "v_2", "v_1")]
    task = get_task("hellaswag")
    found = task.documents(written(tmp_path, "eval_hellaswag/hellaswag_val.jsonl", *rows))
    assert clusters(task, found) == [0, 1, 0]


def test_clips_of_one_video_are_no_examples_of_each_other(tmp_path):
    """The second begins with the ending that the first asks for."""
    row = {"activity_label": "Judo", "ctx_b": "he", "label": 0}
    rows = [
        row | {"ctx_a": "He enters.", "endings": ["bows.", "sings."], "source_id": "activitynet~v_1"},
        row | {"ctx_a": "He bows.", "endings": ["throws.", "eats."], "source_id": "activitynet~v_1"},
        row | {"ctx_a": "He sits.", "endings": ["rests.", "flies."], "source_id": "activitynet~v_2"},
    ]
    context = written(tmp_path, "eval_hellaswag/hellaswag_val.jsonl", *rows)
    task = get_task("hellaswag")
    first, second, other = task.documents(context)
    for seed in range(5):
        few = FewShot.make(task, 1, seed, context)
        assert few.examples(first) == few.examples(second) == [other] and few.examples(other)[0] in (first, second)
    with pytest.raises(InputError, match="num_shots=2 .* ask something else than their document, and there are 1"):
        FewShot.make(task, 2, 0, context).examples(first)


def test_piqa_has_its_labels_in_a_file_of_their_own(tmp_path):
    row = {"goal": "Dry", "sol1": "Sun ", "sol2": "Rain"}
    context = written(tmp_path, "eval_piqa/valid.jsonl", row, row | {"goal": "Wet"})
    task, labels = get_task("piqa"), tmp_path / "eval_piqa" / "valid-labels.lst"
    labels.write_text("0\n1\n")
    first, second = task.documents(context)
    assert (first.gold, second.gold) == (0, 1)
    assert task.requests(first)[0] == Score("Question: Dry\nAnswer:", " Sun ")
    # Examples are the file's other documents.
    assert FewShot.make(task, 1, 0, context).prefix(first) == "Question: Wet\nAnswer: Rain\n\n"
    for wrong in ("0\n", "0\n1\n1\n"):
        labels.write_text(wrong)
        with pytest.raises(DataError, match="valid-labels.lst beside it has another number of lines than its 2"):
            task.documents(context)


def test_without_a_file_a_task_reads_tfds(tmp_path):
    import tensorflow_datasets as tfds

    class Piqa(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        SKIP_REGISTERING = True

        def _info(self):
            text = tfds.features.Text()
            features = {"goal": text, "sol1": text, "sol2": text, "label": tfds.features.ClassLabel(num_classes=2)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "validation")}

        def _generate_examples(self, split):
            for i in range(3):
                yield i, {"goal": f"{split} \u00e9 {i}", "sol1": "this", "sol2": "that", "label": i % 2}

    Piqa(data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
    task, context = get_task("piqa"), TaskContext(tmp_path)
    documents = task.documents(context)
    assert sorted(document.context for document in documents) == [
        f"Question: validation \u00e9 {i}\nAnswer:" for i in range(3)
    ]
    assert sorted(document.gold for document in documents) == [0, 0, 1]
    assert FewShot.make(task, 1, 0, context).prefix(documents[0]).startswith("Question: train")
    assert [context.read[f"tfds:piqa:{split}"]["records"] for split in ("validation", "train")] == [3, 3]
    assert len({one["sha256"] for one in context.read.values()}) == 2
    with pytest.raises(DataError, match="needs eval_commonsense_mc/winogrande.jsonl .* TFDS dataset"):
        get_task("winogrande").documents(context)
