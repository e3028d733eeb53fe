"""The command and the function `fmjax.evaluate`: what they write and when, and what they refuse before computing."""

import dataclasses
import importlib.metadata
import json
import logging
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import fmjax
from fmjax import evaluate
from fmjax.commands import cli
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.load import Model
from fmjax.models.gpt import GPT
from fmjax.tasks import answers, report
from fmjax.tasks.capabilities import capabilities
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.code import HumanEval
from fmjax.tasks.perturbation import Perturbed
from fmjax.tasks.protocol import Apply, Rolling, Rollout, Task
from fmjax.tasks.runner import run_tasks
from fmjax.tasks.sample_log import samples_file, write_samples
from tests.quick_keys import quick_key

MODULE = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=64, vocab_size=258)
PARAMS = nn.unbox(jax.jit(MODULE.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
MODEL = Model(MODULE, PARAMS, {}, ByteTokenizer())


class Words(Task):
    name, metrics, uses = "words", ("tokens",), ("rolling",)

    def __init__(self, name="words", request=Rolling, dies=False):
        self.name, self.request, self.dies = name, request, dies

    def documents(self, context):
        return ["a", "bc"]

    def requests(self, document):
        return [self.request(document)]

    def statistics(self, document, answers):
        if self.dies:
            raise KeyboardInterrupt
        return {"tokens": float(answers[0].num_tokens)}


def written(folder):
    return json.loads((folder / "results.json").read_text()), sorted(p.name for p in (folder / "samples").iterdir())


def test_results_are_written_after_each_task(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fmjax.evaluate(MODEL, [Words("one"), Words("two"), Words("three", dies=True)], output=tmp_path)
    found, samples = written(tmp_path)
    assert list(found["results"]) == ["one", "two"] and found["complete"] is False
    assert found["results"]["two"]["tokens"] == 1.5 and samples == ["one.jsonl", "two.jsonl"]
    fmjax.evaluate(MODEL, [Words("one"), Words("two"), Words("three")], output=tmp_path)
    found, samples = written(tmp_path)
    assert found["complete"] is True and samples == ["one.jsonl", "three.jsonl", "two.jsonl"]


def test_a_second_evaluation_in_a_folder_leaves_no_logs_of_the_first_and_says_so(tmp_path, caplog):
    fmjax.evaluate(MODEL, [Words("one"), Words("two")], output=tmp_path)
    (tmp_path / "samples" / "of_mine.jsonl").write_text("{}\n")
    with caplog.at_level(logging.WARNING, "fmjax"):
        fmjax.evaluate(MODEL, [Words("two")], output=tmp_path)
    found, samples = written(tmp_path)
    assert list(found["results"]) == ["two"] and samples == ["of_mine.jsonl", "two.jsonl"]
    assert "held results of one, which these replace" in caplog.text and "--tasks=one,two" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fmjax"):
        fmjax.evaluate(MODEL, [Words("two"), Words("one")], output=tmp_path)
    assert not caplog.text


def test_sample_logs_of_similar_names_are_apart_and_whole(tmp_path, monkeypatch):
    names = ["text:/tmp/ab/x/y.txt", "text:/tmp/ab/x_y.txt", "text:/tmp/ab:x_y.txt", "plain_name", "a" * 300]
    files = [samples_file(name) for name in names]
    assert len(set(files)) == len(files) and files[3] == "plain_name.jsonl" and max(map(len, files)) < 200
    fmjax.evaluate(MODEL, [Words(name) for name in names], output=tmp_path)
    assert written(tmp_path)[1] == sorted(files)
    # A disk that is full in the middle of a log leaves the one before.
    before = (tmp_path / "samples" / "plain_name.jsonl").read_text()
    replace = pathlib.Path.replace

    def full(self, target):
        raise OSError("disk full") if "plain_name" in str(target) else replace(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_samples(run_tasks(MODEL, [Words("plain_name")], limit=1), tmp_path / "samples")
    assert (tmp_path / "samples" / "plain_name.jsonl").read_text() == before


def test_results_say_which_model_data_and_code(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    found = fmjax.evaluate(MODEL, [Words()], data_dir=tmp_path / "data", output=tmp_path / "out")
    assert found == written(tmp_path / "out")[0]
    assert found["model"]["fingerprint"] == model_fingerprint(MODEL) and found["data_dir"] == str(tmp_path / "data")
    # The commit of a checkout, and that something has changed since; nothing where fmjax lies in another's.
    root = tmp_path / "checkout"
    (root / "fmjax" / "tasks").mkdir(parents=True)
    (root / "fmjax" / "tasks" / "report.py").write_text("1")

    def git(*words):
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", "-C", str(root), *name, *words], capture_output=True, text=True, check=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD").stdout.strip()
    monkeypatch.setattr(report, "__file__", str(root / "fmjax" / "tasks" / "report.py"))
    assert report.commit.__wrapped__() == head
    (root / "fmjax" / "tasks" / "report.py").write_text("2")
    assert report.commit.__wrapped__() == f"{head}+"
    monkeypatch.setattr(report, "__file__", str(root / "venv" / "fmjax" / "tasks" / "report.py"))
    (root / "venv").mkdir()
    assert report.commit.__wrapped__() is None


class Nameless(Task):
    pass


class NeedsPackage(Words):
    def check(self):
        raise InputError("needs the package nosuch: pip install nosuch")

    def documents(self, context):
        raise AssertionError("the documents were read first")


def test_what_is_missing_is_said_before_anything_is_computed(monkeypatch, tmp_path):
    def computes(*_, **__):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(answers, "ANSWERERS", dict.fromkeys(answers.ANSWERERS, computes))

    def refused(task, model=MODEL):
        with pytest.raises(InputError) as error:
            run_tasks(model, [Words("first"), task], data_dir=tmp_path)
        return str(error.value)

    assert refused(NeedsPackage("judged")) == "task judged: needs the package nosuch: pip install nosuch"
    assert "task p+typos: needs the package" in refused(Perturbed(NeedsPackage("p"), "typos"))
    said = refused(Words("applied", lambda document: Apply("nosuchpkg.x:f", document)))
    assert said.startswith("task applied: function 'nosuchpkg.x:f': no module named 'nosuchpkg'")
    assert "is <module 'posixpath'" in refused(Words("applied", lambda document: Apply("os:path", document)))
    said = refused(Words("rolled", lambda document: Rollout("gridd", 0)))
    assert said.startswith("task rolled: unknown environment 'gridd'; did you mean 'grid'?")
    # An encoder-decoder writes texts, but has no likelihood of a text's continuation to act by.
    class Translates(nn.Module):
        CAUSAL = False

        def __call__(self, tokens, source_tokens):
            pass

        init_cache = prefill = None

    translator = dataclasses.replace(MODEL, module=Translates(), params={})
    assert capabilities(translator) == {"generate", "complete"}
    assert "grid needs rollout" in refused("grid", translator)


@pytest.mark.parametrize(
    "name, package",
    [
        ("dialogsum", "rouge_score"),
        ("multi30k", "sacrebleu"),
        ("truthfulqa_gen", "rouge_score"),
        ("wnut17", "seqeval"),
        ("wnut17_probe", "seqeval"),
    ],
)
def test_tasks_say_first_which_package_they_lack(name, package, monkeypatch, tmp_path):
    for module in [one for one in sys.modules if one.partition(".")[0] == package] or [package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"task {name}: .*(pip install|install it with).*fmjax\[eval\]"):
        run_tasks(MODEL, [name], data_dir=tmp_path)


@pytest.mark.parametrize(
    "tasks, options, message",
    [
        ("words,", {"limit": 2.5}, "limit = 2.5: expected an integer"),
        ("words", {"seed": -1}, "seed = -1: expected an integer of at least 0"),
        ("words", {"num_shots": "2"}, "num_shots = '2': expected an integer"),
        ("words, nosuch", {}, "unknown task 'nosuch'"),
        ([], {}, "no task is given"),
        (",", {}, "no task is given"),
        ([5], {}, "a task is given as 5"),
        ([HumanEval], {}, "expected its name, or an instance"),
        ("os:path", {}, "task 'os:path' is <module 'posixpath'"),
        ("json:JSONDecoder", {}, "expected a subclass of fmjax.tasks.protocol.Task with a name"),
        ("fmjax.tasks.protocol:Task", {}, "expected a subclass of fmjax.tasks.protocol.Task with a name"),
        ("tests.tasks.test_evaluate:Nameless", {}, "Nameless has no name; give its class one"),
        ("sst2_prob:64", {}, "unknown task 'sst2_prob:64'; did you mean 'sst2_probe'?"),
    ],
)
def test_odd_arguments_are_refused_by_name(tasks, options, message, tmp_path):
    text = "from tests.tasks.test_evaluate import Words as W\nclass Words(W): name = 'words'\n"
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError) as error:
        fmjax.evaluate(MODEL, tasks, task_path=str(tmp_path / "mine.py"), **options)
    assert message in str(error.value) and len(str(error.value)) < 400
    if "unknown" in message:
        assert "--list" in str(error.value) and "copa" not in str(error.value)


def test_texts_stand_for_lists_of_one(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from tests.tasks.test_evaluate import Words as W\nclass Words(W):\n    name = 'words'\n"
        "    def __init__(self): super().__init__('words')\n"
        "class Others(W):\n    name = 'others'\n    def __init__(self): super().__init__('others')\n"
    )
    found = fmjax.evaluate(MODEL, "words, others", task_path=str(path))
    assert list(found["results"]) == ["words", "others"] and HumanEval(5).name == HumanEval("5").name == "humaneval_5"


def test_a_metric_without_its_statistic_is_said():
    class Lacks(Words):
        metrics = ("tokens", "acc")

    with pytest.raises(InputError, match="task lacks: no statistic is called 'acc'.* gives 'tokens', 'documents'"):
        run_tasks(MODEL, [Lacks("lacks")])

    class Asks(Words):
        def reduce(self, totals):
            return {"tokens": totals["token"]}

    with pytest.raises(InputError, match="task asks: its metrics take a statistic 'token' that its statistics"):
        run_tasks(MODEL, [Asks("asks")])


def test_the_command_refuses_before_it_loads(monkeypatch, tmp_path, capsys):
    def loads(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("fmjax.load.load", loads)
    (tmp_path / "file").write_text("")
    for flags, message in [
        (["--tasks=,"], "no task is given"),
        (["--tasks=nosuch"], "unknown task 'nosuch'"),
        (["--output=/proc/x"], "--output='/proc/x' cannot be made a folder"),
        ([f"--output={tmp_path / 'file'}"], "cannot be made a folder: it is a file"),
        (["--answers=/etc/passwd"], "--answers='/etc/passwd' cannot be made a folder: it is a file"),
    ]:
        names = {flag.partition("=")[0] for flag in flags}
        usual = [f"--model={tmp_path}", "--tasks=grid", f"--output={tmp_path / 'out'}"]
        argv = [*flags, *(flag for flag in usual if flag.partition("=")[0] not in names)]
        assert cli.run(evaluate.main, argv) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_tasks_of_installed_packages_and_those_that_are_broken(monkeypatch, tmp_path, capsys):
    """A package with its metadata, as pip installs it: entry points are read from there."""
    (tmp_path / "lab_tasks.py").write_text(
        "from tests.tasks.test_evaluate import Words\nclass Mine(Words):\n    name = 'lab'\n"
        "    description = 'words of a lab'\n    def __init__(self): super().__init__('lab')\n"
    )
    info = tmp_path / "lab_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-tasks\nVersion: 1.0\n")
    points = ["lab = lab_tasks:Mine", "lab_broken = nosuch_lab.tasks:Mine", "lab_other = os:path"]
    (info / "entry_points.txt").write_text("[fmjax.tasks]\n" + "\n".join(points) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert {"lab", "lab_broken"} <= importlib.metadata.entry_points(group="fmjax.tasks").names
    assert list(fmjax.evaluate(MODEL, "lab")["results"]) == ["lab"]
    with pytest.raises(InputError, match="'lab_broken' of .* 'nosuch_lab.tasks:Mine' cannot be loaded: ModuleNotFound"):
        get_task("lab_broken")
    with pytest.raises(InputError, match="unknown task 'lab_broken_subset'"):
        get_task("lab_broken_subset")
    assert cli.run(evaluate.main, ["--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "words of a lab" in lines["lab"] and "copa" in lines
    assert "not to be used" in lines["lab_broken"] and "No module named 'nosuch_lab'" in lines["lab_broken"]
    assert "expected a subclass" in lines["lab_other"]


def test_a_folder_that_may_not_be_written_to_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="is not a folder that you may write to"):
        fmjax.evaluate(MODEL, [Words()], output=tmp_path)
