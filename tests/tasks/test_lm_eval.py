"""lm-evaluation-harness on fmjax models: the same scores through the adapter as through fmjax's own tasks."""

import dataclasses
import json
import types

import numpy as np
import pytest

from fmjax.commands import cli
from fmjax.commands import lm_eval as command
from fmjax.errors import InputError
from fmjax.tasks import lm_eval as adapter
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.lm_eval import ControlTokens, HarnessModel, generate_request
from fmjax.tasks.protocol import Generate
from fmjax.tasks.runner import run_tasks
from tests.tasks.harness_tasks import HARNESS, Documents
from tests.tasks.quiz import MODEL

GENERATED = ("gsm8k",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents of registered tasks, as data of fmjax and as tasks of the harness."""
    pytest.importorskip("lm_eval")
    made = Documents(tmp_path_factory.mktemp("harness"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmjax.tasks.reading.read_tfds", lambda words, instead, data_dir: made.tfds[words])
        yield made.folder


def harness(folder, tasks, model=MODEL, cache=None, **options):
    lm_eval = pytest.importorskip("lm_eval")
    manager = adapter.task_manager(tasks, [str(folder / "tasks")])
    options |= dict(bootstrap_iters=0, task_manager=manager, use_cache=cache)
    return lm_eval.simple_evaluate(model=HarnessModel(model), tasks=list(tasks), **options)


def by_document(report, name):
    """The harness's samples in the order of the documents, one each where several filters read the same answer."""
    return [sample for _, sample in sorted({sample["doc_id"]: sample for sample in report["samples"][name]}.items())]


def native(folder, names, shots):
    """What fmjax's own tasks give, their examples the first ones."""
    tasks = [get_task(name) for name in names]
    for task in tasks:
        task.examples_in_order = True
    return run_tasks(MODEL, tasks, data_dir=folder, num_shots=shots)


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.mark.parametrize("shots", [0, 2])
def test_registered_tasks_score_as_the_harness_s_own(folder, shots):
    """The same prompts, log-likelihoods document by document, and metrics as the tasks that the harness ships."""
    names = [name for name in HARNESS if name not in GENERATED and (not shots or HARNESS[name][2])]
    want = native(folder, names, shots)
    report = harness(folder, names, num_fewshot=shots)
    for name in names:
        shared = [metric for metric in get_task(name).metrics if f"{metric},none" in report["results"][name]]
        assert shared[0] in ("acc", "word_perplexity")
        for metric in shared:
            assert report["results"][name][f"{metric},none"] == pytest.approx(want[name].metrics[metric], rel=1e-4), (
                name
            )
        samples = by_document(report, name)
        assert len(samples) == len(want[name].samples) == 5
        for mine, theirs in zip(want[name].samples, samples):
            answers = [answer for (answer,) in theirs["resps"]]
            if name == "wikitext":
                np.testing.assert_allclose([a.loglikelihood for a in mine["answers"]], np.float64(answers), atol=1e-3)
                continue
            asked = [(request["context"], request["continuation"]) for request in mine["requests"]]
            assert asked == [tuple(arguments) for arguments in theirs["arguments"]]
            np.testing.assert_allclose(
                [a.loglikelihood for a in mine["answers"]], [float(ll) for ll, _ in answers], atol=1e-4
            )
            assert [a.is_greedy for a in mine["answers"]] == [greedy in (True, "True") for _, greedy in answers]
    assert report["config"]["model_sha"] == HarnessModel(MODEL).fingerprint


def test_registered_tasks_ask_for_texts_as_the_harness_s_own(folder):
    report = harness(folder, GENERATED, num_fewshot=1)
    for name, result in native(folder, GENERATED, 1).items():
        for mine, theirs in zip(result.samples, by_document(report, name), strict=True):
            (asked,) = mine["requests"]
            del asked["kind"]
            (arguments,) = theirs["arguments"]
            assert Generate(**asked) == generate_request(*arguments)
            assert mine["answers"] == theirs["resps"][0]


def requests(*arguments):
    return [types.SimpleNamespace(args=one) for one in arguments]


def test_texts_and_continuations():
    pytest.importorskip("lm_eval")
    model = HarnessModel(MODEL)
    (whole,) = model.loglikelihood_rolling(requests(("abc" * 60,)))
    assert whole == pytest.approx(MODEL.loglikelihood_rolling(["abc" * 60])[0][0], abs=1e-4)
    (plain,) = model.generate_until(requests(("ab", {"until": ["\n\n"], "max_gen_toks": 8})))
    assert plain == MODEL.generate(["ab"], max_new_tokens=8, temperature=0, stop=["\n\n"])[0] and len(plain) > 4
    # A stop string of several tokens, from the middle of what would come.
    stop = plain[2:4]
    (cut,) = model.generate_until(requests(("ab", {"until": stop, "max_gen_toks": 8})))
    assert cut == plain[: plain.index(stop)]
    drawn = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    texts = model.generate_until(requests(*[("ab", drawn)] * 3))
    assert len(set(texts)) == 3 and model.generate_until(requests(*[("ab", drawn)] * 3)) == texts


def test_a_model_on_a_mesh_scores_as_on_one_device():
    pytest.importorskip("lm_eval")
    import jax

    from fmjax.interop.loading import placed
    from fmjax.parallel.placement import Placement

    placement = Placement.make({"fsdp": 4, "tensor": 2})
    spread = jax.device_put(MODEL.params, placed(MODEL.module, placement)[1])
    split = HarnessModel(dataclasses.replace(MODEL, params=spread, placement=placement, kept={}))
    pairs = requests(("ab", " c"), ("", "def"), ("abc ", "x"))
    want = HarnessModel(MODEL).loglikelihood(pairs)
    assert split.loglikelihood(pairs) == [(pytest.approx(ll, abs=1e-4), greedy) for ll, greedy in want]
    assert (split.rank, split.world_size) == (0, 1) and split.fingerprint == HarnessModel(MODEL).fingerprint


def test_generation_options():
    assert generate_request("a", {}) == Generate("a", 256)
    assert generate_request("a", {"until": "x", "temperature": 0.7, "do_sample": False}) == Generate("a", 256, ("x",))
    assert generate_request("a", {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 3}) == Generate(
        "a", 3, (), 0.7, 0.9
    )
    assert generate_request("a", {"do_sample": True}).temperature == 1.0
    # Temperature 0 is greedy, whatever else is asked for; transformers, which would divide by it, refuses it.
    assert generate_request("a", {"do_sample": True, "temperature": 0.0}) == Generate("a", 256)
    assert generate_request("a", {"num_beams": 1, "until": ["", "b"]}) == Generate("a", 256, ("b",))
    with pytest.raises(InputError, match="generation options {'num_beams': 4}"):
        generate_request("a", {"num_beams": 4})


def test_no_model_meets_anothers_answers(folder, tmp_path):
    tasks, cache = ["piqa"], str(tmp_path / "cache")
    first = harness(folder, tasks, cache=cache)["results"]
    assert harness(folder, tasks, cache=cache)["results"] == first
    import jax

    other = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x * 1.5, MODEL.params))
    with pytest.raises(InputError, match="use_cache: the file holds answers of another model"):
        harness(folder, tasks, other, cache=cache)
    kept = tmp_path / "answers"
    one = requests(("ab", " c"))
    want = HarnessModel(MODEL, answers=kept).loglikelihood(one)
    assert HarnessModel(MODEL, answers=kept).loglikelihood(one) == want
    assert HarnessModel(other, answers=kept).loglikelihood(one) != want and len(list(kept.iterdir())) == 2


def test_chats_are_written_by_the_models_template():
    pytest.importorskip("lm_eval")

    class Chatty:
        chat_templates = {"default": "{% for m in messages %}<s>[{{ m.role }}]{{ m.content }}{% endfor %}"}
        special_tokens, source, fingerprint = {}, "test", "chatty"

        def __getattr__(self, name):
            return getattr(MODEL.tokenizer, name)

        def encode_special(self, text):
            first, *rest = text.split("<s>")
            return MODEL.tokenizer.encode(first) + [
                t for part in rest for t in [MODEL.tokenizer.bos_id, *MODEL.tokenizer.encode(part)]
            ]

    model = HarnessModel(dataclasses.replace(MODEL, tokenizer=Chatty(), kept={}))
    before = model.tokenizer_name
    assert model.chat_template(True) == Chatty.chat_templates["default"] and model.chat_template(False) is None
    text = model.apply_chat_template([{"role": "user", "content": "hi"}])
    assert text == "<s>[user]hi" and isinstance(model.model.tokenizer, ControlTokens)
    # One BOS, as a token.
    assert model.model.encode(text) == [MODEL.tokenizer.bos_id, *MODEL.tokenizer.encode("[user]hi")]
    assert model.loglikelihood(requests((text, "a")))[0][0] == pytest.approx(
        MODEL.score([("[user]hi", "a")])[0][0], abs=1e-4
    )
    assert before.startswith("fmjax-") and HarnessModel(MODEL).tokenizer_name != before


def test_the_command(folder, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    fields = dict(num_layers=1, hidden_size=16, num_heads=2, max_length=128, vocab_size=258, init_std=0.3)
    config = {"model": {"name": "gpt", **fields}, "data": {"tokenizer": "bytes"}}
    dataclasses.replace(MODEL, config=config).save(tmp_path / "model")
    argv = [f"--model={tmp_path / 'model'}", f"--include_path={folder / 'tasks'}", f"--output={tmp_path / 'out.json'}"]
    assert cli.run(command.main, [*argv, "--tasks=copa,piqa", "--num_fewshot=1", "--limit=4"]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    want = native(folder, ["copa"], 1)["copa"].samples[:4]
    assert report["results"]["copa"]["acc,none"] == np.mean([sample["statistics"]["acc"] for sample in want])
    assert len(report["samples"]["piqa"]) == 4 and "copa" in capsys.readouterr().out
    for wrong, message in [
        ([*argv, "--tasks=a", "--limt=2"], "did you mean '--limit'"),
        (["--model=nowhere", "--tasks=a"], "--output"),
        (["--model=nowhere", "--tasks=a", "--output=b"], "nowhere"),
    ]:
        assert cli.run(command.main, wrong) == 2
        assert message in capsys.readouterr().err


def test_documents_that_cannot_be_fetched_are_said_in_one_message(folder, tmp_path, monkeypatch, capsys):
    lm_eval = pytest.importorskip("lm_eval")

    def unreachable(**options):
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub")

    monkeypatch.setattr(lm_eval, "simple_evaluate", unreachable)
    monkeypatch.setattr(adapter, "HarnessModel", lambda *arguments, **options: None)
    argv = ["--model=m", "--tasks=piqa", f"--include_path={folder / 'tasks'}", f"--output={tmp_path / 'out.json'}"]
    assert cli.run(command.main, argv) == 2
    message = capsys.readouterr().err
    assert "'baber/piqa' on the Hub; it needs the network" in message and message.count("\n") == 1


def test_without_the_harness_the_message_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(adapter, "LM", object)
    with pytest.raises(InputError, match=r"pip install -e '.\[lm-eval\]'"):
        HarnessModel(MODEL)
    assert cli.run(command.main, ["--model=x", "--tasks=a", "--output=b"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
