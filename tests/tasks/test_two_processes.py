"""Two processes, as on two hosts: one evaluation, with the scores, texts and files of one process."""

import dataclasses
import json

import pytest

from fmjax import evaluate
from fmjax.commands import cli
from tests import processes
from tests.tasks.quiz import MODEL

TASKS = '''
from fmjax.tasks.multiple_choice import Choices, MultipleChoice
from fmjax.tasks.protocol import Generate, Task


class Quiz(MultipleChoice):
    name = "quiz"
    num_shots = 1

    def documents(self, context):
        return [Choices(f"Is {word} {word * 2}", (word, "yes", "no"), 1) for word in ("a", "bc", "def", "g", "hi")]

    examples = documents


class Continued(Task):
    name = "continued"
    metrics = ("length",)
    uses = ("generate",)

    def documents(self, context):
        return ["a", "bc", "def"]

    def requests(self, document):
        return [Generate(document, max_new_tokens=6), Generate(document, max_new_tokens=6, temperature=1.0)]

    def statistics(self, document, answers):
        return {"length": sum(map(len, answers))}
'''


@pytest.fixture
def flags(tmp_path):
    """Flags of the command but its output, for a saved model and three tasks."""
    fields = dict(num_layers=1, hidden_size=16, num_heads=2, max_length=128, vocab_size=258, init_std=0.3)
    config = {"model": {"name": "gpt", **fields}, "data": {"tokenizer": "bytes"}}
    dataclasses.replace(MODEL, config=config).save(tmp_path / "model")
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "story.txt").write_text("once upon a time " * 10)
    tasks = f"--tasks=quiz,text:{tmp_path / 'story.txt'},continued,quiz+typos"
    return [f"--model={tmp_path / 'model'}", tasks, f"--task_path={tmp_path / 'tasks.py'}", "--mesh=fsdp:2,tensor:2"]


def read(folder):
    report = json.loads((folder / "results.json").read_text())
    samples = {path.name: path.read_text().splitlines() for path in (folder / "samples").iterdir()}
    return report, {name: [json.loads(line) for line in lines] for name, lines in samples.items()}


def close(found, wanted):
    """Asserts that nested data are equal, floats to 1e-4."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        wanted, found = list(wanted.values()), list(found.values())
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted):
            close(one, other)
    else:
        assert found == (pytest.approx(wanted, abs=1e-4) if isinstance(wanted, float) else wanted)


def test_two_processes_evaluate_as_one(flags, tmp_path):
    """Each has a disk of its own here; of the answers that process 0 finds on its disk, the other makes use as well."""
    assert cli.run(evaluate.main, [*flags, f"--output={tmp_path / 'one'}"]) == 0
    report, samples = read(tmp_path / "one")
    (answers,) = (tmp_path / "one" / "answers").iterdir()
    half = answers.read_text().splitlines(keepends=True)[::2]
    (tmp_path / "first" / "answers").mkdir(parents=True)
    (tmp_path / "first" / "answers" / answers.name).write_text("".join(half))
    outputs = [tmp_path / "first", tmp_path / "second"]
    printed = processes.run(
        "fmjax.evaluate", [[*flags, f"--output={path}"] for path in outputs], devices=4, cache=tmp_path / "cache"
    )
    found = read(tmp_path / "first")
    close(found[0]["results"], report["results"])
    close(found[1], samples)
    assert sum(cost["stored_requests"] for cost in found[0]["cost"].values()) >= len(half)
    assert not (tmp_path / "second").exists()
    assert "quiz" in printed[0] and "quiz" not in printed[1]
    # All connections are made before anything slow, as Gloo gives up after 30 s.
    assert "[Gloo]" not in printed[0].partition("quiz:")[2]
