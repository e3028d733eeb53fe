"""Tasks, their runner and the evaluate command, on models whose answers are known in closed form."""

import dataclasses
import gzip
import hashlib
import json
import lzma
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import evaluate
from fmjax.commands import cli
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.load import Model
from fmjax.models.gpt import GPT
from fmjax.tasks import TASKS
from fmjax.tasks.answers import answer
from fmjax.tasks.perplexity import detokenize_wikitext, split_articles
from fmjax.tasks.protocol import Generate, Rolling, Score, Task
from fmjax.tasks.runner import run_tasks
from fmjax.tasks.statistics import bootstrap
from tests.quick_keys import quick_key

MODULE = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=64, vocab_size=258, init_std=0.3)
TEXTS = ["def f(x):\n    return x\n" * 9, "\u00e9t\u00e9 \u20ac5", "one two  three"]


def make(scale, **config):
    """Scale 0 gives every token the same probability, 1/258."""
    params = nn.unbox(jax.jit(MODULE.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    return Model(MODULE, jax.tree.map(lambda x: x * scale, params), config, ByteTokenizer())


class Half(Task):
    name = "half"

    def documents(self, context):
        return ["a"]

    def statistics(self, document, answers):
        return {}


class FakeData:
    def documents(self, split):
        assert split == "heldout"
        return [*TEXTS, ""]


def test_a_perplexity_that_spreads_down_to_zero_has_no_standard_error():
    """Words of three lengths under a uniform model: e**(many nats a word), of which a resample says little."""
    metrics = run_tasks(make(0), ["heldout"], data=FakeData())["heldout"].metrics
    assert metrics["word_perplexity"] > 1e6 and metrics["word_perplexity_stderr"] is None
    assert metrics["bits_per_byte_stderr"] is not None  # the same, on a scale where it says something
    assert 0 <= metrics["byte_perplexity_stderr"] < 0.01

    class Steady(FakeData):
        def documents(self, split):
            return ["aa bb cc dd", "aa bb cc d", "aa bb c dd", "a bb cc dd"] * 30

    metrics = run_tasks(make(0), ["heldout"], data=Steady())["heldout"].metrics
    assert 0 < 2 * metrics["word_perplexity_stderr"] < metrics["word_perplexity"]


def test_the_bar_of_whole_texts_counts_windows(capsys):
    run_tasks(make(0), ["heldout"], data=FakeData(), progress=True)
    shown = capsys.readouterr().err
    assert "heldout, 3 texts in " in shown and "windows/s]" in shown and "it/s]" not in shown


def test_heldout_of_a_uniform_model_is_the_logarithm_of_its_vocabulary():
    result = run_tasks(make(0), ["heldout"], data=FakeData())["heldout"]
    num_bytes = [len(text.encode()) for text in TEXTS]
    words = [len(re.split(r"\s+", text)) for text in TEXTS]
    metrics = result.metrics
    assert result.num_documents == 3  # the empty document says nothing
    assert metrics["bits_per_byte"] == pytest.approx(math.log2(258), rel=1e-6)
    assert metrics["byte_perplexity"] == pytest.approx(258, rel=1e-5)
    assert math.log(metrics["word_perplexity"]) == pytest.approx(math.log(258) * sum(num_bytes) / sum(words), rel=1e-6)
    gzip_bits = sum(8 * len(gzip.compress(text.encode(), 9)) for text in TEXTS)
    assert metrics["gzip_bits_per_byte"] == pytest.approx(gzip_bits / sum(num_bytes))
    xz_bits = sum(8 * len(lzma.compress(text.encode())) for text in TEXTS)
    assert metrics["xz_bits_per_byte"] == pytest.approx(xz_bits / sum(num_bytes))
    assert result.headline == (
        f"held-out bits per byte 8.01 | gzip -9 {gzip_bits / sum(num_bytes):.2f} | xz {xz_bits / sum(num_bytes):.2f}"
    )
    assert metrics["bits_per_byte_stderr"] == pytest.approx(0, abs=1e-6)
    assert [s["statistics"]["bytes"] for s in result.samples] == num_bytes


def test_limit_gives_the_scores_of_the_first_documents():
    model = make(1.0)
    all_of_them = run_tasks(model, ["heldout"], data=FakeData())["heldout"]
    first = run_tasks(model, ["heldout"], data=FakeData(), limit=2)["heldout"]
    assert first.num_documents == 2
    for a, b in zip(first.samples, all_of_them.samples):
        assert a["statistics"]["loglikelihood"] == pytest.approx(b["statistics"]["loglikelihood"], abs=1e-3)
    totals = [sum(s["statistics"][k] for s in first.samples) for k in ("loglikelihood", "bytes")]
    assert first.metrics["bits_per_byte"] == pytest.approx(-totals[0] / totals[1] / math.log(2))


def test_bootstrap_error_of_a_mean_is_the_closed_form():
    values = np.random.default_rng(0).normal(size=400)
    columns = {"x": values, "documents": np.ones(400)}

    def mean(table):
        return {"mean": table["x"].sum() / table["documents"].sum()}

    errors = bootstrap(columns, mean, seed=0)
    assert errors["mean"] == pytest.approx(values.std() / math.sqrt(400), rel=0.1)
    assert errors == bootstrap(columns, mean, seed=0)
    assert bootstrap({name: column[:1] for name, column in columns.items()}, mean, seed=0) == {"mean": None}


def test_answers_come_in_the_order_of_the_requests():
    model = make(1.0)
    requests = [Rolling("ab"), Score("a", "b"), Generate("a", 6), Score("", "ab"), Generate("b", 3), Rolling("")]
    rolling, score, text, from_bos, short, empty = answer(requests, model)
    assert rolling.loglikelihood == pytest.approx(from_bos.loglikelihood, abs=1e-5) and rolling.num_tokens == 2
    assert score.loglikelihood > rolling.loglikelihood and score.num_tokens == 1
    assert text == model.generate(["a"], max_new_tokens=6, temperature=0)[0]
    assert short == model.generate(["b"], max_new_tokens=3, temperature=0)[0] and empty.num_tokens == 0
    (cut,) = answer([Generate("a", 6, stop=("never", text[2]))], model)
    assert cut == text[: text.index(text[2])]


def test_results_are_valid_json_even_where_a_perplexity_overflows(tmp_path):
    (tmp_path / "words.txt").write_text("x" * 500)  # one word: exp(500 ln 258) is beyond a float
    report = fmjax.evaluate(make(0), [f"text:{tmp_path / 'words.txt'}"], output=tmp_path / "out")
    assert report["results"][f"text:{tmp_path / 'words.txt'}"]["word_perplexity"] == math.inf
    text = (tmp_path / "out" / "results.json").read_text()
    metrics = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["results"]
    assert metrics[f"text:{tmp_path / 'words.txt'}"]["word_perplexity"] is None


def test_a_text_file_is_scored_byte_for_byte(tmp_path):
    content = "one\r\ntwo\rthree\u2028".encode()
    (tmp_path / "dos.txt").write_bytes(content)
    (result,) = run_tasks(make(0), [f"text:{tmp_path / 'dos.txt'}"]).values()
    (sample,) = result.samples
    assert sample["statistics"]["bytes"] == len(content)
    assert sample["document"]["sha256"] == hashlib.sha256(content).hexdigest()
    (tmp_path / "latin.txt").write_bytes("a\u00f1o".encode("latin-1"))
    with pytest.raises(InputError, match="latin.txt' is not UTF-8: byte 0xf1 at offset 1"):
        run_tasks(make(0), [f"text:{tmp_path / 'latin.txt'}"])


def test_a_jsonl_file_is_scored_by_its_documents(tmp_path):
    lines = [json.dumps({"text": text, "source": "a b"}) for text in ("one", "", "two")]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    (result,) = run_tasks(make(0), [f"text:{tmp_path / 'docs.jsonl'}"]).values()
    assert [sample["document"]["beginning"] for sample in result.samples] == ["one", "two"]
    (tmp_path / "other.jsonl").write_text('{"words": "one"}\n')
    with pytest.raises(InputError, match="other.jsonl line 1: no field 'text'.* Found: words. Name .*text:PATH:FIELD"):
        run_tasks(make(0), [f"text:{tmp_path / 'other.jsonl'}"])
    (result,) = run_tasks(make(0), [f"text:{tmp_path / 'other.jsonl'}:words"]).values()
    assert [sample["document"]["beginning"] for sample in result.samples] == ["one"]
    (tmp_path / "none.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="none.jsonl' has no document with text"):
        run_tasks(make(0), [f"text:{tmp_path / 'none.jsonl'}"])


def test_lambada_lines_end_at_newlines_alone(tmp_path):
    (tmp_path / "eval_lambada").mkdir()
    passages = ["one\u2028two\x85 three", "four five"]
    lines = [json.dumps({"text": p}, ensure_ascii=False) for p in passages]
    (tmp_path / "eval_lambada" / "lambada_test.jsonl").write_text("\r\n".join([*lines, ""]), encoding="utf-8")
    (result,) = run_tasks(make(0), ["lambada"], data_dir=tmp_path).values()
    assert [sample["document"]["text"] for sample in result.samples] == passages


def test_lambada_is_accuracy_and_perplexity_of_the_last_word(tmp_path):
    model = make(1.0)
    (tmp_path / "eval_lambada").mkdir()
    greedy = model.generate(["in the"], max_new_tokens=1, temperature=0)[0]
    passages = ["in the end", "a stone, and\n\ninside it is"]
    (tmp_path / "eval_lambada" / "lambada_test.jsonl").write_text("\n".join(json.dumps({"text": p}) for p in passages))
    results = fmjax.evaluate(model, tasks=["lambada_openai", "lambada"], data_dir=tmp_path)
    scores = model.score([("in the", " end"), ("a stone, and\n\ninside it", " is")])
    metrics = results["results"]["lambada_openai"]
    assert metrics == results["results"]["lambada"] and greedy != " "
    assert metrics["perplexity"] == pytest.approx(math.exp(-sum(s[0] for s in scores) / 2))
    assert metrics["acc"] == sum(s[1] for s in scores) / 2


WIKITEXT = (
    ' \n = Robert Boulter = \n \n Robert said , " I am here " . He had 3 @,@ 000 ( three ) books .\n'
    " = = Career = = \n \n It 's 2 @.@ 5 and well @-@ known ; the boys ' club .\n = Du Fu = \n \n A poet .\n "
)


def test_wikitext_articles_and_detokenisation():
    articles = split_articles(WIKITEXT)
    assert [a.strip().split("\n")[0].strip() for a in articles] == ["= Robert Boulter =", "= Du Fu ="]
    assert "\n".join(["", *articles]).strip() == WIKITEXT.strip()
    text = detokenize_wikitext(articles[0])
    assert 'said, "I am here". He had 3,000 (three) books .' in text
    assert "== Career ==" in text and "It's 2.5 and well-known; the boys' club" in text


def test_wikitext_scores_the_detokenised_text_and_counts_the_original(tmp_path):
    (tmp_path / "text_wikitext2").mkdir()
    (tmp_path / "text_wikitext2" / "wiki.test.raw").write_text(WIKITEXT)
    result = run_tasks(make(0), ["wikitext"], data_dir=tmp_path)["wikitext"]
    digest = hashlib.sha256(WIKITEXT.encode()).hexdigest()
    read = {"text_wikitext2/wiki.test.raw": {"bytes": len(WIKITEXT.encode()), "sha256": digest}}
    assert result.details == {"read": read, "documents": 2}
    articles = split_articles(WIKITEXT)
    bits = sum(len(detokenize_wikitext(a).encode()) for a in articles) * math.log2(258)
    assert result.metrics["bits_per_byte"] == pytest.approx(bits / sum(len(a.encode()) for a in articles), rel=1e-5)
    assert result.metrics["bits_per_byte"] < math.log2(258)
    # The text with <unk> is another task.
    (tmp_path / "text_wikitext2" / "wiki.test.raw").rename(tmp_path / "text_wikitext2" / "test.txt")
    with pytest.raises(InputError, match="task wikitext: needs the raw text.* or evaluate wikitext_tokenized"):
        run_tasks(make(0), ["wikitext"], data_dir=tmp_path)
    other = run_tasks(make(0), ["wikitext_tokenized"], data_dir=tmp_path)["wikitext_tokenized"]
    assert other.metrics == result.metrics and list(other.details["read"]) == ["text_wikitext2/test.txt"]


@pytest.mark.parametrize(
    "tasks, options, message",
    [
        (["helout"], {}, "unknown task 'helout'; did you mean 'heldout'"),
        (["mmlu_anatomi"], {}, "unknown task 'mmlu_anatomi'; did you mean 'mmlu_anatomy'"),
        (["heldout", "heldout"], {}, "twice"),
        (["wikitext"], {}, "FMJAX_DATA"),
        (["lambada"], {"data_dir": "/nowhere"}, "data_dir '/nowhere' is not a folder"),
        (["lambada"], {"data_dir": "."}, "task lambada: needs eval_lambada/lambada_test.jsonl, which does not exist"),
        (["lambada+typo"], {}, "no perturbation 'typo'; did you mean 'typos'"),
        (["mmlu_anatomy+typo"], {}, "no perturbation 'typo'; did you mean 'typos'"),
        (["text:/nowhere.txt"], {}, "'/nowhere.txt' cannot be read"),
        (["text"], {}, "needs an argument"),
        (["heldout:x"], {}, "takes no argument"),
        (["heldout"], {"num_shots": 3}, "task heldout: takes no examples in the prompt, got num_shots=3"),
        (
            ["icl_linear", "text:README.md", "tests.tasks.quiz:Quiz"],
            {"num_shots": 3},
            "num_shots=3: icl_linear, text:README.md take no examples in the prompt; evaluate them without num_shots, "
            "and with it tasks=quiz",
        ),
        (["icl_linear", "text:README.md"], {"num_shots": 3}, "examples in the prompt; evaluate them without num_shots"),
        (["heldout"], {}, "does not say what data"),
        (
            ["tests.tasks.test_tasks:Half"],
            {},
            "task half: Half has no method requests(document): What a document asks of "
            "the model; fmjax/tasks/README.md has a complete task",
        ),
        (["no_such_package.tasks:Mine"], {}, "no_such_package"),
        (["heldout"], {"task_path": ["/nowhere.py"]}, "'/nowhere.py' does not exist"),
        (["heldout"], {"task_path": ["README.md"]}, "'README.md' is not a Python file (.py)"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tasks, options, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no task")
    monkeypatch.delenv("FMJAX_DATA", raising=False)
    with pytest.raises(InputError) as error:
        fmjax.evaluate(make(0), tasks, **options)
    assert message in str(error.value)


TASK_FILE = """
from fmjax.tasks.protocol import Score, Task


class Capitals(Task):
    name = "capitals"
    version = "2"
    metrics = ("acc",)
    description = "capitals of countries"
    needs = "nothing"

    def documents(self, context):
        return [("France", "Paris"), ("Italy", "Rome")]

    def requests(self, document):
        country, _ = document
        return [Score(f"The capital of {country} is", f" {capital}") for capital in ("Paris", "Rome")]

    def statistics(self, document, answers):
        best = max(range(2), key=lambda i: answers[i].loglikelihood)
        return {"acc": float(("Paris", "Rome")[best] == document[1])}
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A saved model whose config says what data it was trained on."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "texts").mkdir()
    for i in range(30):
        (folder / "texts" / f"{i}.txt").write_text(f"document number {i} says " + "word " * i)
    fields = dict(num_layers=1, hidden_size=16, num_heads=2, max_length=64, vocab_size=None, init_std=0.3)
    data = dict(name="text", source=str(folder / "texts"), sequence_length=48, tokenizer="bytes", heldout_fraction=0.3)
    make(1.0, seed=0, model={"name": "gpt", **fields}, data=data).save(folder / "run")
    return folder / "run"


def test_evaluate_command_writes_what_it_promises(workdir, tmp_path, capsys):
    (tmp_path / "capitals.py").write_text(TASK_FILE)
    (tmp_path / "story.txt").write_text("once upon a time " * 20)
    out = tmp_path / "out"
    tasks = f"heldout,capitals,text:{tmp_path / 'story.txt'}"
    argv = [f"--model={workdir}", f"--tasks={tasks}", f"--task_path={tmp_path / 'capitals.py'}", f"--output={out}"]
    assert cli.run(evaluate.main, argv) == 0
    report = json.loads((out / "results.json").read_text())
    assert list(report["results"]) == tasks.split(",")
    assert report["results"]["capitals"]["acc"] == 0.5 and report["task_versions"]["capitals"] == "2"
    heldout = report["results"]["heldout"]
    assert heldout["bits_per_byte"] > 4 and heldout["bits_per_byte_stderr"] > 0
    assert report["model"]["context_length"] == 64 and report["model"]["tokenizer"] == "bytes"
    assert report["config"]["model"]["vocab_size"] == 258 and report["versions"]["jax"] == jax.__version__
    samples = [json.loads(line) for line in (out / "samples" / "heldout.jsonl").read_text().splitlines()]
    assert len(samples) == report["num_documents"]["heldout"] > 1
    total = {k: sum(s["statistics"][k] for s in samples) for k in ("loglikelihood", "bytes")}
    assert heldout["bits_per_byte"] == pytest.approx(-total["loglikelihood"] / total["bytes"] / math.log(2))
    assert len(list((out / "samples").iterdir())) == 3
    printed = capsys.readouterr().out
    assert f"{heldout['bits_per_byte']:.4f}" in printed and "capitals" in printed
    # The same from Python, for the loaded model.
    again = fmjax.evaluate(fmjax.load(workdir), tasks=["heldout"])
    assert again["results"]["heldout"] == pytest.approx(heldout)


def test_held_out_documents_of_changed_data_are_refused(workdir):
    model = fmjax.load(workdir)
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir

    identity = dict(open_data(model.config, cache_dir()).identity)
    known = dataclasses.replace(model, identity=identity | {"tokenizer": "another"})
    assert fmjax.evaluate(known, ["heldout"], limit=1)["num_documents"] == {"heldout": 1}
    with pytest.raises(InputError, match="may have been trained on: data was 'older'"):
        fmjax.evaluate(dataclasses.replace(model, identity=identity | {"data": "older"}), ["heldout"], limit=1)


def test_parameters_on_a_mesh_give_the_scores_of_one_device():
    model = make(1.0)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def shard(x):
        axis = next((i for i, n in enumerate(x.shape) if n % 8 == 0), None)
        spec = [None] * x.ndim if axis is None else [*[None] * axis, "fsdp"]
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P(*spec)))

    spread = dataclasses.replace(model, params=jax.tree.map(shard, model.params))
    assert any(len(x.sharding.device_set) == 8 and not x.is_fully_replicated for x in jax.tree.leaves(spread.params))
    pairs = [("a b", " c"), ("", "def f")]
    with jax.set_mesh(mesh):
        scores = spread.score(pairs)
        texts = spread.generate(["ab", ""], max_new_tokens=5, temperature=0)
    np.testing.assert_allclose([s[0] for s in scores], [s[0] for s in model.score(pairs)], atol=1e-4)
    assert texts == model.generate(["ab", ""], max_new_tokens=5, temperature=0)


def test_evaluate_command_refuses_with_one_message(workdir, tmp_path, capsys):
    for argv, message in [
        ([f"--model={workdir}", "--tasks=heldout"], "--output"),
        (["--task=heldout"], "did you mean '--tasks'"),
        ([f"--model={workdir}", "--tasks=heldot", f"--output={tmp_path}"], "did you mean 'heldout'"),
        ([f"--model={tmp_path}", "--tasks=heldout", f"--output={tmp_path}"], "is not a model"),
        ([f"--model={workdir}", "--tasks=heldout", f"--output={tmp_path}", "--limit=0"], "at least 1"),
    ]:
        assert cli.run(evaluate.main, argv) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_list_prints_a_line_a_task_with_its_name_first(tmp_path, capsys):
    (tmp_path / "capitals.py").write_text(TASK_FILE)
    assert cli.run(evaluate.main, ["--list", f"--task_path={tmp_path / 'capitals.py'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted([*TASKS.table, "capitals"])
    (tmp_path / "twice.py").write_text(TASK_FILE.replace('"capitals"', '"heldout"'))
    assert cli.run(evaluate.main, ["--list", f"--task_path={tmp_path / 'twice.py'}"]) == 2
    assert "two tasks are called 'heldout'" in capsys.readouterr().err


def test_a_task_object_needs_no_name_in_a_table():
    class Fixed(Task):
        name = "fixed"
        metrics = ("length",)
        uses = ()

        def documents(self, context):
            return ["a", "bcd"]

        def requests(self, document):
            return []

        def statistics(self, document, answers):
            return {"length": len(document)}

    assert run_tasks(make(0), [Fixed()])["fixed"].metrics["length"] == 2
