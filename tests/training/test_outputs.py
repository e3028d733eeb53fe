"""Evaluation, samples and final tasks: refused at the start where they cannot work, written once, on the run's mesh."""

import contextlib
import json
import logging
import re
import shutil
import signal
import time
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

import fmjax
from fmjax import config as configs
from fmjax.checkpoint_files import complete_steps
from fmjax.data.digits import Digits
from fmjax.data.loader import Loader
from fmjax.data.shapes.data import Shapes
from fmjax.errors import ConfigError, InputError
from fmjax.inference import scoring
from fmjax.models.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.parallel import watch
from fmjax.tasks.protocol import Rolling, Task
from fmjax.tasks.runner import run_tasks
from fmjax.training import final_tasks, loop
from fmjax.training.checks import check_outputs
from fmjax.training.metrics import read_metrics
from fmjax.training.sampling import read_blocks
from fmjax.training.settings import TrainConfig
from fmjax.training.start import Setup
from fmjax.training.stopping import Stop, stop_signals
from tests.classifier import MODEL as CLASSIFIER

TEXT = "the cat sees the dog and the dog sees a bird " * 20


class Words:
    """A tokenizer without BOS and EOS."""

    bos_id = prefix_id = None

    def encode(self, text):
        return text.split()


def data(tokenizer=None, heldout=None):
    def documents(split="heldout"):
        return heldout

    return types.SimpleNamespace(tokenizer=tokenizer, codecs={}, evaluation={}, documents=documents)


DECODER = types.SimpleNamespace(
    init_cache=None,
    features=None,
    max_length=8,
    CAUSAL=True,
    example=lambda: {"tokens": jax.ShapeDtypeStruct((1, 1), np.int32)},
)
ENDLESS = types.SimpleNamespace(init_cache=None, features=None)


@pytest.mark.parametrize(
    "prompts, module, tokenizer, reason",
    [
        (("a b",), DECODER, None, "the data have no tokenizer"),
        (("a b", ""), DECODER, Words(), "'' has no tokens, and the tokenizer neither BOS nor EOS"),
        (("a " * 8,), DECODER, Words(), "has 8 tokens, which fill model.max_length = 8"),
        (("a b",), types.SimpleNamespace(features=None), Words(), "cannot generate"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused_at_the_start(prompts, module, tokenizer, reason, caplog):
    with pytest.raises(InputError, match=f"objective.sample_prompts: .*{reason}"):
        check_outputs(TrainConfig(1, 1), CausalLM(sample_prompts=prompts), module, data(tokenizer))


def test_prompts_that_nobody_asked_for_are_left_out_with_a_line(caplog):
    with caplog.at_level(logging.INFO, "fmjax"):
        assert not check_outputs(TrainConfig(1, 1), CausalLM(), DECODER, data(Words()))
    assert "no samples: '' has no tokens" in caplog.text
    assert not check_outputs(TrainConfig(1, 1), CausalLM(sample_prompts=()), DECODER, data())
    assert check_outputs(TrainConfig(1, 1), CausalLM(sample_prompts=("a b",)), ENDLESS, data(Words()))
    with pytest.raises(InputError, match="train.sample_every = 5, but objective CausalLM cannot sample"):
        check_outputs(TrainConfig(9, 1, sample_every=5), CausalLM(), DECODER, data(Words()))
    with pytest.raises(InputError, match="train.eval_every = 5, but these data have nothing to evaluate on"):
        check_outputs(TrainConfig(9, 1, eval_every=5), CausalLM(), DECODER, data(Words()))


def test_values_that_no_codec_writes_are_refused_at_the_start():
    sounds = types.SimpleNamespace(makes="audio", generator="denoising")
    with pytest.raises(ConfigError, match="makes values of modality 'audio', and these data have no codec .*have none"):
        check_outputs(TrainConfig(1, 1), sounds, None, data())
    check_outputs(TrainConfig(1, 1), types.SimpleNamespace(makes="audio"), None, data())  # it makes none on the way


def test_final_tasks_that_cannot_be_run_are_refused_at_the_start(tmp_path):
    bos = Words()
    bos.bos_id = bos.prefix_id = 1
    with pytest.raises(InputError, match="task text:typo.txt: 'typo.txt' cannot be read"):
        final_tasks.check(["text:typo.txt"], data(bos), DECODER, {})
    with pytest.raises(InputError, match="task heldout: there are no documents"):
        final_tasks.check(["heldout"], data(bos, []), DECODER, {})
    with pytest.raises(
        InputError, match="task heldout: scores whole texts from BOS or EOS, and the tokenizer has neither"
    ):
        final_tasks.check(["heldout"], data(Words(), ["a b"]), DECODER, {})
    with pytest.raises(InputError, match="cannot answer: heldout needs rolling .it has no tokenizer"):
        final_tasks.check(["heldout"], data(None, ["a b"]), DECODER, {})
    with pytest.raises(InputError, match="'heldout' is given twice"):
        final_tasks.check_names(["heldout", "heldout"])
    final_tasks.check(["heldout"], data(bos, ["a b"]), DECODER, {})


def test_final_tasks_are_of_any_modality(tmp_path):
    digits = Digits().open(seed=0, cache_dir=tmp_path)
    module = ViT(num_layers=1, hidden_size=8, num_heads=2, patch_size=4, **digits.model_fields)
    config = {"objective": {"name": "classification"}}
    final_tasks.check(["digits_test"], digits, module, config)
    with pytest.raises(InputError, match="train.final_tasks: .*ViT.* cannot answer: lambada_like needs rolling"):
        final_tasks.check(["tests.training.test_outputs:LambadaLike"], digits, module, config)


def test_made_images_that_cannot_be_judged_at_the_end_are_refused_at_the_start(tmp_path):
    fields = {"rows": "colour", "kinds": ("one", "many"), "image_size": 32, "eval_examples": 8}
    shapes = Shapes(**fields).open(seed=0, cache_dir=tmp_path)
    module = ViT(num_layers=1, hidden_size=8, num_heads=2, patch_size=4, **shapes.model_fields)
    config = {"objective": {"name": "diffusion"}, "data": {"name": "shapes"} | fields}
    with pytest.raises(InputError, match="train.final_tasks: .*trained with data.rows = 'colour'"):
        final_tasks.check(["made_captions"], shapes, module, config)
    # Rows of latents need their first stage for images alone.
    kept = {"name": "latent_diffusion", "input_name": "latents", "first_stage": str(tmp_path / "none"),
            "latent_shape": (4, 4, 4), "condition": "label"}  # fmt: skip
    with pytest.raises(InputError, match="objective.first_stage, which values are made with: .*none"):
        final_tasks.check(["made_nearest:digits"], shapes, module, {"objective": kept})
    CLASSIFIER.save(tmp_path / "none")
    final_tasks.check(["made_nearest:digits"], shapes, module, {"objective": kept})


def test_a_model_on_the_way_opens_what_its_values_are_made_with(tmp_path):
    CLASSIFIER.save(tmp_path / "stage")
    path, there = str(tmp_path / "stage"), object()
    config = FrozenConfigDict({"objective": {"name": "latent_diffusion", "first_stage": path}})
    data = types.SimpleNamespace(tokenizer=None, codecs={})
    state = types.SimpleNamespace(step=3, carry={})

    def model(models):
        program = types.SimpleNamespace(module=None, average=lambda state: {}, placement=None, models=models)
        return Setup(config, None, tmp_path, data, program, [], {}, False, False, 0.0, {}).model(state)

    assert model({"first_stage": there}).opened("first_stage") is there
    stage = model(None).opened("first_stage")
    assert stage.module == CLASSIFIER.module
    jax.tree.map(np.testing.assert_array_equal, stage.params, CLASSIFIER.params)
    assert model(None).open_path(path).module == CLASSIFIER.module


class LambadaLike(Task):
    name, uses = "lambada_like", ("rolling",)

    def documents(self, context):
        return ["a"]

    def requests(self, document):
        return [Rolling(document)]


def config(folder, **train):
    (folder / "text").mkdir(exist_ok=True)
    for name in ("train", "validation"):
        (folder / "text" / f"{name}.txt").write_text(f"{name} {TEXT}")
    (folder / "other.txt").write_text(f"other {TEXT}")
    return configs.resolve({
        "train": {"steps": 4, "batch_size": 8, "log_every": 1, "eval_every": 2, "sample_every": 2,
                  "checkpoint_every": 2,
                  "tensorboard": False, "final_tasks": (f"text:{folder}/other.txt",), "tasks_every": 2} | train,
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "model": {"name": "llama", "num_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
                  "max_length": 32, "vocab_size": 264},
        "objective": {"name": "causal_lm", "sample_prompts": ("", "the cat"), "sample_tokens": 8},
        "data": {"source": str(folder / "text"), "sequence_length": 16, "tokenizer": "bytes"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip


def test_every_rate_counts_its_own_steps_and_their_own_waiting(tmp_path, monkeypatch):
    """Where each step waits 50 ms for its batch, on eight devices: at every row, the last one too."""
    give = Loader.__next__

    def late(self):
        time.sleep(0.05)
        before, batch = self.wait_seconds, give(self)
        self.wait_seconds = before + 0.05  # whatever else a busy machine makes it wait
        return batch

    monkeypatch.setattr(Loader, "__next__", late)
    silent = dict(sample_every=0, checkpoint_every=0, final_tasks=(), tasks_every=0)
    run = config(tmp_path, steps=7, log_every=2, eval_every=4, **silent).to_dict()
    run["objective"]["sample_prompts"] = ()
    loop.train(configs.resolve(run), tmp_path / "run", cache_dir=tmp_path, progress=False)
    seconds = rows_with(tmp_path / "run", "perf/seconds_per_step")
    assert [step for step, _ in seconds] == [2, 4, 6, 7]
    shares = dict(rows_with(tmp_path / "run", "perf/input_wait_share"))
    for step, value in seconds:
        assert value > 0.02 and (shares[step] == 1.0 or shares[step] * value == pytest.approx(0.05, rel=0.02))


def rows_with(workdir, name):
    return [(row["step"], row[name]) for row in read_metrics(workdir / "metrics.jsonl") if name in row]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run on a mesh of eight devices, where its samples were drawn, and how its tasks' rows lay."""
    folder, places, split = tmp_path_factory.mktemp("outputs"), [], []
    sample, call = CausalLM.sample, scoring._call

    def watched(self, *arguments):
        places.append((dict(jax.sharding.get_abstract_mesh().shape), dict(nn.get_logical_axis_rules())))
        return sample(self, *arguments)

    def scored(module, params, batch):
        split.append((len(batch.tokens), dict(nn.get_logical_axis_rules())["batch"]))
        return call(module, params, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLM, "sample", watched)
        patch.setattr(scoring, "_call", scored)
        loop.train(config(folder), folder / "run", cache_dir=folder, progress=False)
    return folder, places, split


def test_samples_and_tasks_are_computed_on_the_runs_mesh_as_one_device_computes_them(finished):
    folder, places, split = finished
    assert len(places) == 2
    for mesh, rules in places:
        assert {a: n for a, n in mesh.items() if n > 1} == {"data": 2, "fsdp": 2, "tensor": 2}
        assert rules["act_mlp"] == ("tensor",) and rules["batch"] == ()
    assert split and all(rows % 4 == 0 and axes == ("data", "fsdp") for rows, axes in split)
    name = f"text:{folder}/other.txt"
    (first, _), (step, logged) = rows_with(folder / "run", f"{name}/bits_per_byte")
    model = fmjax.load(folder / "run")  # on one device

    again = run_tasks(model, [name])[name].metrics["bits_per_byte"]
    assert (first, step) == (2, 4) and logged == pytest.approx(again, rel=1e-4)


def test_the_tasks_of_a_run_are_reported_as_an_evaluation_is(finished):
    folder, *_ = finished
    name = f"text:{folder}/other.txt"
    report = json.loads((folder / "run" / "results.json").read_text())
    assert report["results"][name]["bits_per_byte"] == rows_with(folder / "run", f"{name}/bits_per_byte")[-1][1]
    assert (report["model"]["step"], report["model"]["source"]) == (4, str(folder / "run"))
    assert report["cost"][name]["joules"] > 0 and report["cost"][name]["flops"] > 0
    assert report["config"]["train"]["steps"] == 4 and report["complete"]


def test_a_finished_run_started_again_writes_nothing_twice(finished):
    folder, *_ = finished
    workdir = folder / "run"
    before = (workdir / "metrics.jsonl").read_text(), (workdir / "samples.txt").read_text()
    end = loop.train(config(folder), workdir, cache_dir=folder, progress=False)
    assert (
        [step for step, _ in rows_with(workdir, "eval/loss")]
        == [2, 4]
        == [s for s, _ in read_blocks(workdir / "samples.txt")]
    )
    assert ((workdir / "metrics.jsonl").read_text(), (workdir / "samples.txt").read_text()) == before
    assert end["eval/loss"] == rows_with(workdir, "eval/loss")[-1][1]


def test_what_a_run_had_still_to_do_at_its_last_checkpoint_is_done_when_it_resumes(finished, monkeypatch):
    """And before all that the processes of a run compute together they tell each other where they are."""
    folder, *_ = finished
    places = []
    limits = {True: "", False: ", at leisure"}
    monkeypatch.setattr(watch, "at", lambda what, limited=True: places.append(what + limits[limited]))
    workdir = folder / "run"
    expected = rows_with(workdir, "eval/loss"), read_blocks(workdir / "samples.txt")
    # As if killed at step 2, between the save and the evaluation.

    shutil.copytree(workdir, folder / "cut")
    shutil.rmtree(folder / "cut" / "checkpoints" / "4")
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if not any(k.startswith("eval/") for k in row)]
    (folder / "cut" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "cut" / "samples.txt").write_text("===== step 2 =====\ntorn")
    loop.train(config(folder), folder / "cut", cache_dir=folder, progress=False)
    assert (rows_with(folder / "cut", "eval/loss"), read_blocks(folder / "cut" / "samples.txt")) == expected
    within = [place for place in places if re.search("generation|scores|requests of a task|the answers", place)]
    assert within[0] == "part 1 of the generation" and "batch 1 of scores" in within
    places = [place for place in places if place not in within]
    batches = [place for place in places if place.startswith("batch")]
    each = len(batches) // 2
    assert batches == [f"batch {n} of the evaluation set 'heldout'" for n in range(1, each + 1)] * 2 and each > 1
    assert places == [
        "the restoring of step 2, at leisure", "the compilation of the train step, at leisure",
        *batches[:each], "the samples of step 2", "the tasks of step 2, at leisure", "step 3", "step 4",
        "the writing of what was saved, at leisure", "the checkpoint of step 4", *batches[:each],
        "the samples of step 4", "the writing of what was saved, at leisure", "the tasks of step 4, at leisure",
    ]  # fmt: skip


@pytest.fixture
def stopped(monkeypatch):
    """A signal that has come before training began."""
    event = Stop()
    event.set()
    monkeypatch.setattr(loop, "stop_signals", lambda: contextlib.nullcontext(event))
    return event


def test_a_signal_before_the_first_step_claims_no_checkpoint(stopped, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fmjax"):
        end = loop.train(config(tmp_path), tmp_path / "run", cache_dir=tmp_path, progress=False)
    assert end["stopped"] == 1.0 and complete_steps(tmp_path / "run" / "checkpoints") == []
    assert "nothing was saved" in caplog.text and "saved at step" not in caplog.text


def test_a_signal_ends_an_evaluation_between_its_batches(stopped, finished):
    folder, *_ = finished

    shutil.copytree(folder / "run", folder / "evaluating")
    rows = [row for row in read_metrics(folder / "run" / "metrics.jsonl") if "eval/loss" not in row]
    (folder / "evaluating" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    end = loop.train(config(folder), folder / "evaluating", cache_dir=folder, progress=False)
    assert end["stopped"] == 1.0 and rows_with(folder / "evaluating", "eval/loss") == []


def test_several_processes_leave_sigterm_to_jax(monkeypatch):

    before = signal.getsignal(signal.SIGTERM)
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) is before
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
