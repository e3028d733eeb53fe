"""Named entities: F1 as seqeval has it, and the files, prompts and generated entities of WNUT-17."""

import pytest

from fmjax.errors import DataError
from fmjax.tasks.entities import WNUT17, WNUT17Probe, entity_counts, read_entities, written
from fmjax.tasks.protocol import TaskContext
from fmjax.tasks.runner import run_tasks
from tests.tasks.short_texts import MODEL

GOLD = [["B-person", "I-person", "O"], ["O", "B-group", "O"], ["O"], ["B-person", "I-person", "O"]]
FOUND = [["I-person", "I-person", "O"], ["B-group", "B-group", "O"], ["O"], ["B-person", "O", "O"]]


def test_entity_f1_is_seqevals_by_either_scheme():
    from seqeval.metrics import f1_score, precision_score
    from seqeval.scheme import IOB2

    task = WNUT17Probe()
    rows = [task.counted({"tags": gold}, found) for gold, found in zip(GOLD, FOUND)]
    metrics = task.reduce({name: sum(row[name] for row in rows) for name in rows[0]})
    assert metrics["f1"] == pytest.approx(f1_score(GOLD, FOUND)) == pytest.approx(4 / 7)
    assert metrics["precision"] == pytest.approx(precision_score(GOLD, FOUND))
    assert metrics["f1_strict"] == pytest.approx(f1_score(GOLD, FOUND, mode="strict", scheme=IOB2)) != metrics["f1"]
    assert task.reduce(task.counted({"tags": ["O"]}, ["O"]))["f1"] == 0.0  # nothing there, nothing found: as seqeval
    assert entity_counts([], [], strict=True) == {"correct": 0, "predicted": 0, "gold": 0}


def test_wnut17_files_prompt_and_generated_entities(data):
    task, context = WNUT17(), TaskContext(data)
    first, second = task.documents(context)  # parted by a lone tab
    assert second == {"words": ["no"], "tags": ["O"]} and len(task.training(context)) == 10
    assert task.example(first) == "Sentence: Ann Lee in Rome\nEntities: person: Ann Lee; location: Rome"
    assert written(**second) == "none"
    assert read_entities(" person: Ann Lee; location: Rome", first["words"]) == (first["tags"], 0)
    assert read_entities("person: Bob; animal: Rome; person; :", first["words"]) == (["O"] * 4, 2)
    assert read_entities("person: a; person: a; person: a", ["a", "b", "a"]) == (["B-person", "O", "B-person"], 1)
    assert read_entities(" none", ["a"]) == (["O"], 0) and read_entities("", []) == ([], 0)
    found = task.statistics(first, ["person: Ann Lee; person: Bob"])
    assert (found["correct"], found["predicted"], found["gold"]) == (1.0, 2.0, 2.0)
    result = run_tasks(MODEL, ["wnut17_probe"], data_dir=data)["wnut17_probe"]
    assert result.metrics["recall"] == 1.0  # the training sentences are those of the test
    (data / "eval_wnut17_ner" / "emerging.test.annotated").write_text("a\tO\nb\tB-animal\n")
    with pytest.raises(DataError, match="line 2: expected a word, a tab and a tag"):
        task.documents(context)
