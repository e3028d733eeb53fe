"""Answers on disk are those of this model, this code and these options, in every process that computes the same.

An interrupted evaluation goes on from them.
"""

import dataclasses
import importlib
import importlib.metadata
import pathlib
import subprocess
import sys
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax import code_digest as sources
from fmjax.code_digest import code_digest, describe
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import DataError, InputError
from fmjax.inference import fingerprint
from fmjax.inference.fingerprint import array_fingerprints, model_fingerprint
from fmjax.load import Model
from fmjax.models.gpt import GPT
from fmjax.tasks import store
from fmjax.tasks.answers import answer
from fmjax.tasks.protocol import Apply, Rolling, Rollout, Task
from fmjax.tasks.runner import run_tasks
from fmjax.tasks.store import AnswerStore
from tests.quick_keys import quick_key
from tests.tasks.quiz import Quiz

MODULE = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=64, vocab_size=258)
PARAMS = nn.unbox(jax.jit(MODULE.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
MODEL = Model(MODULE, PARAMS, {}, ByteTokenizer())


class Lengths(Task):
    name, metrics, uses = "lengths", ("length",), ()
    asks: Callable = Rolling

    def documents(self, context):
        return ["a", "bc"]

    def requests(self, document):
        return [self.asks(document)]

    def statistics(self, document, answers):
        return {"length": float(answers[0][0] if isinstance(answers[0], tuple) else answers[0])}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Writes modules of a package outside fmjax and imports them anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name, text):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        for known in [one for one in sys.modules if one.partition(".")[0] == name.partition(".")[0]]:
            del sys.modules[known]

    return write


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    want = run_tasks(MODEL, [Quiz()])["quiz"]
    original = Model.iter_scores

    def dies(self, *arguments):
        for number, found in enumerate(original(self, *arguments)):
            if number == 30:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Model, "iter_scores", dies)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(MODEL, [Quiz()], answers_dir=tmp_path)
    monkeypatch.setattr(Model, "iter_scores", original)
    (file,) = tmp_path.iterdir()
    with file.open("ab") as cut:
        cut.write(b'{"key": "torn')
    again = run_tasks(MODEL, [Quiz()], answers_dir=tmp_path)["quiz"]
    assert again.work.stored == 30 and again.work.requests == 42 and again.metrics == want.metrics
    third = run_tasks(MODEL, [Quiz()], answers_dir=tmp_path)["quiz"]
    assert third.work.requests == 0 and third.work.num_tokens == 0 and third.samples == again.samples
    # Another model, or the same with other options, never meets these answers.
    other = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x * 1.5, MODEL.params))
    assert run_tasks(other, [Quiz()], answers_dir=tmp_path)["quiz"].work.stored == 0
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], b"nonsense", *lines[1:], b""]))
    with pytest.raises(DataError, match="line 2, is not an answer"):
        AnswerStore(tmp_path, MODEL)


def test_an_edited_function_does_not_find_the_answers_of_its_former_self(lab, tmp_path):
    task = Lengths()
    task.asks = lambda document: Apply("their_lab.judge:count", document)
    lab("their_lab.scale", "FACTOR = 1\ndef scale(x): return x * FACTOR\n")
    judge = "from their_lab.scale import scale\ndef count(m, texts): return [{} * scale(len(t)) for t in texts]"
    lab("their_lab.judge", judge.format(1))

    def runs():
        found = run_tasks(MODEL, [task], answers_dir=tmp_path / "answers")["lengths"]
        return found.metrics["length"], found.work.stored

    assert [runs(), runs()] == [(1.5, 0), (1.5, 2)]
    # In the file that is named, and in one that it takes a name from.
    lab("their_lab.judge", judge.format(2))
    assert [runs(), runs()] == [(3.0, 0), (3.0, 2)]
    lab("their_lab.scale", "FACTOR = 5\ndef scale(x): return x * FACTOR\n")
    assert [runs(), runs()] == [(15.0, 0), (15.0, 2)]


def test_an_edited_task_file_does_not_find_the_answers_of_what_it_added_to_the_model(tmp_path):
    text = """import dataclasses
from jax.tree_util import Partial
from fmjax.tasks.protocol import Apply, Task

def helper(text):
    return FACTOR * len(text)

def value(model, texts):
    return [helper(text) for text in texts]

class Added(Task):
    name, metrics, uses, needs, description = "added", ("value",), ("adapt",), "nothing", "values"

    def documents(self, context):
        return ["a", "abc"]

    def adapt(self, model, context):
        return dataclasses.replace(model, functions={"value": Partial(value)})

    def requests(self, document):
        return [Apply("value", document)]

    def statistics(self, document, answers):
        return {"value": float(answers[0])}
"""
    found = []
    for factor in (1, 1, 100):
        (tmp_path / "added.py").write_text(text.replace("FACTOR", str(factor)))
        options = dict(task_path=[tmp_path / "added.py"], answers_dir=tmp_path / "answers")
        result = run_tasks(MODEL, ["added"], **options)["added"]
        found.append((result.metrics["value"], result.work.stored))
    assert found == [(2.0, 0), (2.0, 2), (200.0, 0)]


def test_kinds_of_models_and_versions_of_libraries_change_the_fingerprint(lab, monkeypatch):
    found = []
    for factor in (1, 2):
        lab(
            "their_lab.policy",
            f"from fmjax.load import Model\nclass Policy(Model):\n    def act(self): return {factor}\n",
        )
        kind = importlib.import_module("their_lab.policy").Policy
        found.append(model_fingerprint(kind(MODEL.module, MODEL.params, {}, MODEL.tokenizer)))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    found.append(model_fingerprint(MODEL))
    monkeypatch.undo()
    found.append(model_fingerprint(MODEL))
    assert len(set(found)) == 4


def test_an_edited_environment_does_not_find_its_former_episodes(lab, tmp_path):
    text = "from fmjax.tasks.environments import Grid\nclass Small(Grid):\n    max_steps = {}\n"
    request = Rollout("their_world:Small", 0)

    def steps(count):
        lab("their_world", text.format(count))
        with AnswerStore(tmp_path, MODEL) as kept:
            return answer([request], MODEL, store=kept)[0]["steps"]

    assert steps(1) == 1 and steps(2) == 2


def test_code_outside_and_inside_fmjax_changes_the_fingerprint(lab, monkeypatch, tmp_path):
    text = "import flax.linen as nn\nclass Theirs(nn.Module):\n    def __call__(self, x): return {}\n"
    prints = []
    for body in ("x", "2 * x", "x"):
        lab("their_models", text.format(body))
        made = importlib.import_module("their_models").Theirs()
        prints.append(model_fingerprint(Model(made, {"w": np.ones(2)}, {}, None)))
    assert prints[0] == prints[2] != prints[1]
    own = model_fingerprint(MODEL)
    (tmp_path / "layers").mkdir()
    for content in ("a", "b"):
        (tmp_path / "layers" / "norm.py").write_text(content)
        monkeypatch.setattr(sources, "PACKAGE", tmp_path)
        sources.own_digest.cache_clear()
        assert model_fingerprint(MODEL) != own
        own = model_fingerprint(MODEL)
    sources.own_digest.cache_clear()


def test_options_of_the_arithmetic_change_the_fingerprint():
    own = model_fingerprint(MODEL)
    with jax.default_matmul_precision("highest"):
        assert model_fingerprint(MODEL) != own
    assert model_fingerprint(MODEL) == own


class Activated(nn.Module):
    activation: Callable = jax.nn.gelu
    options: dict = dataclasses.field(default_factory=dict)

    def __call__(self, x):
        return self.activation(x)


def twice(x):
    return 2 * x


def test_fields_that_are_functions_are_written_by_name_in_every_process():
    """By address, a second process never found the answers of the first."""

    def fingerprints():
        first, second = [lambda x: x, lambda x: 2 * x]
        fields = [jax.nn.gelu, jax.nn.relu, twice, first, second, jax.tree_util.Partial(twice, np.ones(2))]
        modules = [Activated(one, {"inner": one, "outer": [one]}) for one in fields]
        return [model_fingerprint(Model(one, {}, {}, None)) for one in modules]

    own = fingerprints()
    assert len(set(own)) == len(own) and own == fingerprints()
    script = (
        f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
        f"import {__name__} as t; print(t.describe(t.Activated(t.twice, {{'x': t.Activated()}})))"
    )
    root = pathlib.Path(__file__).parents[2]
    other = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    here = describe(Activated(twice, {"x": Activated()}))
    assert other.stdout.strip() == here and "test_store:twice" in here and " at 0x" not in here

    class Plain:
        def __init__(self):
            self.value, self.me = 3, self

    assert describe(Plain()) == describe(Plain()) and " at 0x" not in describe(Plain())
    assert code_digest([twice]) != code_digest([]) == code_digest([GPT, jax.nn.gelu])


def test_every_bit_of_a_number_of_eight_bytes_counts():
    with jax.enable_x64(True):
        x = jnp.arange(6, dtype=jnp.int64).reshape(2, 3)
        prints = [array_fingerprints(one)[0] for one in (x, x + 2**40, x + 2**33, x.at[1, 2].add(2**62))]
        assert len(set(prints)) == 4
        y = x.astype(jnp.float64)
        assert array_fingerprints(y) != array_fingerprints(y + 1e-14)


def test_the_weights_and_the_file_are_read_once_for_all_tasks(tmp_path, monkeypatch):
    read = []
    original = fingerprint.array_fingerprints
    monkeypatch.setattr(fingerprint, "array_fingerprints", lambda tree: read.append(0) or original(tree))
    opened = []
    take = AnswerStore._take
    monkeypatch.setattr(AnswerStore, "_take", lambda self, data: opened.append(self.path) or take(self, data))
    tasks = [Lengths() for _ in range(3)]
    for number, task in enumerate(tasks):
        task.name = f"lengths{number}"
    found = run_tasks(MODEL, tasks, answers_dir=tmp_path)
    assert len(read) == len(opened) == 1
    assert [result.work.stored for result in found.values()] == [0, 2, 2]


def test_two_evaluations_do_not_write_to_one_file(tmp_path):
    other = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x * 2, MODEL.params))
    with AnswerStore(tmp_path, MODEL) as first:
        with pytest.raises(InputError, match="in use by another evaluation of the same model"):
            store.AnswerStore(tmp_path, MODEL)
        AnswerStore(tmp_path, other).close()
        first.put(Rolling("a"), 0, (1.0, 2))
    with AnswerStore(tmp_path, MODEL) as second:
        assert second.get(Rolling("a"), 0) == (1.0, 2)
