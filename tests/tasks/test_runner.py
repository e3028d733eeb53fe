"""The runner's promises: scores that depend on nothing but model, task and seed; examples, answers on disk, costs."""

import dataclasses
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.data.tokenizer import ByteTokenizer
from fmjax.errors import DataError, InputError
from fmjax.inference import scoring
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.load import Model
from fmjax.models.gpt import GPT
from fmjax.parallel.placement import Placement
from fmjax.tasks import statistics
from fmjax.tasks.answers import ANSWERERS, Work, answer
from fmjax.tasks.calibration import softmax
from fmjax.tasks.compare import read_samples
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.multiple_choice import Choices, LetteredChoice, MultipleChoice
from fmjax.tasks.protocol import Apply, Generate, Rolling, Rollout, Score, ScoreAnswer, Task, TaskContext
from fmjax.tasks.report import cost_line, make_report
from fmjax.tasks.runner import run_tasks, write_samples
from fmjax.tasks.store import AnswerStore

MODULE = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=128, vocab_size=258, init_std=0.3)
PARAMS = nn.unbox(MODULE.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
MODEL = Model(MODULE, PARAMS, {}, ByteTokenizer())


def questions(count=24, seed=0):
    rng = np.random.default_rng(seed)

    def word():
        return "".join(rng.choice(list("abcdefgh"), rng.integers(3, 9)))

    return [
        Choices(f"Is {word()} {word()}", tuple(word() for _ in range(3)), int(rng.integers(3)), group=f"page {i // 3}")
        for i in range(count)
    ]


class Quiz(MultipleChoice):
    name = "quiz"

    def __init__(self, documents=None, examples=None):
        self.given = questions() if documents is None else documents
        self.shown = questions() if examples is None else examples

    def documents(self, context):
        return self.given

    def examples(self, context):
        return self.shown


def on_eight_devices():
    """`MODEL` with its parameters spread and its batches split."""
    from fmjax.interop.loading import placed

    placement = Placement.make({"fsdp": 4, "tensor": 2})
    assert placement.num_row_shards == 4
    spread = jax.device_put(PARAMS, placed(MODULE, placement)[1])
    return dataclasses.replace(MODEL, params=spread, placement=placement)


def test_scores_depend_on_model_task_and_seed_alone(monkeypatch):
    """Batch size, devices, order, limit: same per-document log-likelihoods (1e-4), same accuracies."""
    want = run_tasks(MODEL, [Quiz()], num_shots=2, seed=3)["quiz"]
    by_key = {s["key"]: s for s in want.samples}

    def same(result, count=24):
        assert len(result.samples) == count
        for sample in result.samples:
            other = by_key[sample["key"]]
            assert sample["requests"] == other["requests"] and sample["statistics"] == other["statistics"]
            np.testing.assert_allclose(
                [a.loglikelihood for a in sample["answers"]], [a.loglikelihood for a in other["answers"]], atol=1e-4
            )
        return result.metrics

    turned = Quiz(questions()[::-1], questions()[::-1])
    assert same(run_tasks(MODEL, [turned], num_shots=2, seed=3)["quiz"]) == want.metrics
    same(run_tasks(MODEL, [Quiz()], num_shots=2, seed=3, limit=7)["quiz"], 7)
    assert same(run_tasks(on_eight_devices(), [Quiz()], num_shots=2, seed=3)["quiz"]) == want.metrics
    original = scoring.iter_scores
    monkeypatch.setattr(scoring, "iter_scores", lambda *a, **k: original(*a, tokens_per_batch=200, **k))
    assert same(run_tasks(MODEL, [Quiz()], num_shots=2, seed=3)["quiz"]) == want.metrics


def test_examples_depend_on_seed_and_document_and_never_hold_it():
    task, context = Quiz(), TaskContext()
    few = FewShot.make(task, 3, 0, context)
    chosen = {task.key(d): few.examples(d) for d in task.given}
    for key, examples in chosen.items():
        assert len({task.key(e) for e in examples}) == 3 and key not in {task.key(e) for e in examples}
    assert len({tuple(map(task.key, e)) for e in chosen.values()}) > 20  # not one set for all
    document = task.given[5]
    assert FewShot.make(task, 3, 0, context).prefix(document) == few.prefix(document)
    assert FewShot.make(task, 3, 1, context).prefix(document) != few.prefix(document)
    assert few.prefix(document).count("\n\n") == 3
    assert few.requests(document)[1] == Score(few.prefix(document) + document.context, f" {document.options[1]}")
    # A pool of copies of the document has no example to give.
    task.examples = lambda context: [document] * 5
    with pytest.raises(InputError, match="there are 0"):
        FewShot.make(task, 1, 0, context).examples(document)


@pytest.mark.parametrize("kind", [MultipleChoice, LetteredChoice])
def test_an_example_never_asks_what_its_document_asks(kind):
    """Of the same question with other options, or with another right one, an example would show the answer."""

    class Twins(kind):
        name = "twins"

        def documents(self, context):
            return [Choices(f"Which {i // 3}", (f"{i}", "b"), i % 2) for i in range(9)]

        def examples(self, context):
            return self.documents(context)

    task, context = Twins(), TaskContext()
    for seed in range(5):
        few = FewShot.make(task, 6, seed, context)
        for document in task.documents(context):
            shown = few.examples(document)
            assert len({task.key(one) for one in shown}) == 6
            assert document.context not in {one.context for one in shown}
    with pytest.raises(InputError, match="num_shots=7 .*, and there are 6"):
        FewShot.make(task, 7, 0, context).examples(task.documents(context)[0])
    task.examples_in_order = True
    repeated = [task.documents(context)[8]] * 2
    few = FewShot.make(task, 2, 0, context)
    assert [one.options[0] for one in few.examples(task.documents(context)[1])] == ["3", "4"]
    assert [one.options[0] for one in few.examples(task.documents(context)[8])] == ["0", "1"]
    task.examples = lambda context: repeated  # fixed examples are shown as they are
    assert FewShot.make(task, 2, 0, context).examples(task.documents(context)[0]) == repeated


def test_choices_ties_and_lengths():
    task = Quiz()
    answers = [ScoreAnswer(x, False, 1) for x in (-4.0, -4.0, -5.0)]
    first_of_equal = task.statistics(Choices("q", ("aa", "bb", "cccccc"), 0), answers)
    assert first_of_equal == {"acc": 1.0, "acc_norm": 0.0, "acc_bytes": 0.0}  # -5/6 is the best per character
    accents = task.statistics(Choices("q", ("éééé", "bbbbb"), 0), [ScoreAnswer(x, False, 1) for x in (-4.0, -4.5)])
    assert accents == {"acc": 1.0, "acc_norm": 0.0, "acc_bytes": 1.0}  # 4 characters but 8 bytes
    with pytest.raises(DataError, match="number 3, and there are 3 options"):
        Choices("q", ("a", "b", "c"), 3)
    lettered = LetteredChoice()
    assert lettered.question(Choices("What?", ("x", "y"), 1)) == "What?\nA. x\nB. y\nAnswer:"
    assert lettered.example(Choices("What?", ("x", "y"), 1)).endswith("Answer: B")


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    want = run_tasks(MODEL, [Quiz()])["quiz"]
    original = Model.iter_scores

    def dies(self, segments, progress=None):
        for number, found in enumerate(original(self, segments, progress)):
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
    other = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x * 1.5, PARAMS))
    assert run_tasks(other, [Quiz()], answers_dir=tmp_path)["quiz"].work.stored == 0
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], b"nonsense", *lines[1:], b""]))
    with pytest.raises(DataError, match="line 2, is not an answer"):
        AnswerStore(tmp_path, MODEL)


def test_a_models_fingerprint_is_its_content():
    own = model_fingerprint(MODEL)
    assert own == model_fingerprint(dataclasses.replace(MODEL, source="elsewhere", step=7))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P())
    halves = jax.tree.map(
        lambda x: jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P(*(["x"] if x.shape[0] % 8 == 0 else [])))),
        PARAMS,
    )
    assert not all(x.sharding == sharding for x in jax.tree.leaves(halves))
    assert own == model_fingerprint(dataclasses.replace(MODEL, params=halves))
    leaves, tree = jax.tree.flatten(PARAMS)
    nudged = leaves[0].at[(0,) * leaves[0].ndim].add(1e-6)
    swapped = jnp.flip(leaves[0])
    for leaf in (nudged, swapped):
        assert own != model_fingerprint(dataclasses.replace(MODEL, params=tree.unflatten([leaf, *leaves[1:]])))
    assert own != model_fingerprint(dataclasses.replace(MODEL, module=MODULE.clone(max_length=64)))
    assert own != model_fingerprint(dataclasses.replace(MODEL, add_bos=False))


def test_equal_requests_are_asked_once_and_counted():
    work = Work()
    requests = [
        Score("ab", " c"),
        Score("ab", " c"),
        Score("ab", " d"),
        Generate("ab", 4),
        Generate("ab", 4),
        Rolling("abc"),
    ]
    answers = answer(requests, MODEL, work=work)
    assert answers[0] == answers[1] and answers[3] == answers[4] and work.requests == 4
    # BOS a b, space and a scored letter; " c" and " d" are two segments; a generation reads and draws 3 + 4.
    assert sorted(work.lengths.elements()) == sorted([4, 3, 7])
    assert work.flops(MODEL) == pytest.approx(
        sum(MODULE.flops_per_example({"tokens": (n,)}) / 3 for n in work.lengths.elements())
    )


def test_drawn_samples_differ_and_repeat():
    requests = [Generate("ab", 8, temperature=1.0, sample=i) for i in range(3)]
    texts = answer(requests, MODEL, seed=1)
    assert len(set(texts)) == 3 and answer([requests[1]], MODEL, seed=1) == [texts[1]]
    assert answer(requests, MODEL, seed=2) != texts


TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ strftime_now('%d.%m.%y') }}:"


class Chatty(ByteTokenizer):
    chat_templates = {"default": TEMPLATE}


class Asked(Task):
    name = "asked"
    metrics = ("length",)
    uses = ("generate",)

    def documents(self, context):
        return ["ab"]

    def requests(self, document):
        return [Generate(document, 8, chat=True), Generate(document, 8)]

    def statistics(self, document, answers):
        return {"length": len(answers[0])}


def test_a_chat_prompt_goes_through_the_template_where_there_is_one(tmp_path):
    model = dataclasses.replace(MODEL, tokenizer=Chatty(), kept={})
    raw = MODEL.generate(["ab"], max_new_tokens=8, temperature=0)[0]
    # By hand; as templates write BOS themselves, there is none here. The day is a fixed one.
    ids = MODEL.tokenizer.encode("[user]ab01.01.25:")
    reply = MODEL.generate([ids], max_new_tokens=8, temperature=0)[0]
    found = run_tasks(model, [Asked()], answers_dir=tmp_path)["asked"]
    assert found.samples[0]["answers"] == [reply, raw] and reply != raw
    assert len(found.details["chat_template"]) == 32 and found.details["chat_date"] == "2025-01-01"
    # Without a template both are the prompt as it is, and no answer of the other model is taken for it.
    plain = run_tasks(MODEL, [Asked()], answers_dir=tmp_path)["asked"]
    assert plain.samples[0]["answers"] == [raw, raw] and plain.details == {"chat_template": None}
    assert run_tasks(MODEL, [Quiz()], limit=1)["quiz"].details == {}


def test_long_prompts_keep_their_end():
    work = Work()
    (text,) = answer([Generate("x" * 500 + "ab", 8)], MODEL, work=work)
    assert work.truncated == 1 and work.unfinished == 0
    assert text == MODEL.generate([MODEL.encode("x" * 500 + "ab")[-120:]], max_new_tokens=8, temperature=0)[0]


def test_answers_that_the_context_cuts_short_are_counted(tmp_path):
    """Of a context of 128, half is kept for a prompt; 64 more tokens are read, and what the last of them says is 65."""

    class Long(Asked):
        def requests(self, document):
            return [Generate("x" * 90, 100), Generate("x" * 20, 100), Generate("x" * 90, 50)]

    result = run_tasks(MODEL, [Long()], answers_dir=tmp_path)["asked"]
    assert [len(text) for text in result.samples[0]["answers"]] == [65, 100, 50]
    assert (result.work.truncated, result.work.unfinished) == (2, 1)
    report = make_report(MODEL, {"asked": result}, limit=None, seed=0, fingerprint="")
    assert report["cost"]["asked"]["unfinished_answers"] == 1
    assert "1 answers ended early, where the model's context was full" in cost_line(report)


class Vectors(Task):
    name, metrics, uses = "vectors", ("norm",), ("embed",)
    given = ("ab", "cd")

    def documents(self, context):
        return self.given

    def requests(self, document):
        return [Apply("embed", document)]

    def statistics(self, document, answers):
        return {"norm": float(np.linalg.norm(answers[0]))}


TEXTS = ["".join("abcdefgh"[(i * k) % 8] for k in range(1 + 5 * i % 23)) for i in range(20)]


def test_vectors_depend_on_neither_batch_nor_devices(monkeypatch):
    monkeypatch.setattr(Vectors, "given", TEXTS)
    want = run_tasks(MODEL, [Vectors()])["vectors"]
    vectors = np.asarray([sample["answers"][0] for sample in want.samples])
    spread = run_tasks(on_eight_devices(), [Vectors()])["vectors"]
    np.testing.assert_allclose([sample["answers"][0] for sample in spread.samples], vectors, atol=1e-5)
    assert spread.metrics["norm"] == pytest.approx(want.metrics["norm"], abs=1e-5)
    requests = [Apply("embed", text) for text in TEXTS]
    alone = [answer([request], MODEL)[0] for request in requests[::5]]
    np.testing.assert_allclose(alone, vectors[::5], atol=1e-5)
    np.testing.assert_allclose(answer(requests[::-1], MODEL)[::-1], vectors, atol=1e-5)
    assert np.abs(vectors[0] - vectors[7]).max() > 0.1


def test_continuations_depend_on_neither_batch_nor_devices():
    """Greedy ones and, of the same seed, drawn ones: alone, in another order, and on eight devices."""
    texts = [text[:6] for text in TEXTS]
    requests = [Generate(text, 6) for text in texts] + [
        Generate(text, 6, temperature=1.0, sample=i) for text in texts[:3] for i in range(2)
    ]
    want = answer(requests, MODEL, seed=1)
    assert len(set(want)) > 5
    assert [answer([request], MODEL, seed=1)[0] for request in requests[::4]] == want[::4]
    assert answer(requests[::-1], MODEL, seed=1)[::-1] == want
    assert answer(requests, on_eight_devices(), seed=1) == want


def test_functions_are_applied_and_a_missing_one_is_said_before_anything_is_computed():
    assert run_tasks(MODEL, [Vectors()])["vectors"].metrics["norm"] == pytest.approx(1, abs=1e-5)
    silent = dataclasses.replace(MODEL, tokenizer=None)
    with pytest.raises(InputError, match="vectors needs embed; quiz needs score .it has no tokenizer"):
        run_tasks(silent, [Vectors(), Quiz()])
    (length,) = answer([Apply("tests.tasks.test_runner:lengths", "abc")], MODEL)
    assert length == 3
    named = dataclasses.replace(MODEL, functions={"twice": jax.tree_util.Partial(scaled, 2.0)})
    assert answer([Apply("twice", "abc")], named) == [6.0]
    assert model_fingerprint(named) != model_fingerprint(MODEL)


def lengths(model, inputs):
    return [len(text) for text in inputs]


def scaled(factor, model, inputs):
    return [factor * len(text) for text in inputs]


def test_a_metric_that_a_resample_may_lack_has_no_standard_error():
    columns = {"rare": np.asarray([1.0] + [0.0] * 9), "value": np.arange(10.0)}

    def reduce(found):
        rare = {"rare": 7.0} if found["rare"].sum() else {}
        return {"value": found["value"].sum()} | rare

    errors = statistics.bootstrap(columns, reduce, 0)
    assert errors["rare"] is None and errors["value"] > 0


def test_bootstrap_of_clusters_is_the_closed_form():
    """Ten copies of each value in one cluster are worth one value: the error is that of the clusters' means."""
    values = np.random.default_rng(0).normal(size=300)
    columns = {"x": np.repeat(values, 10), "documents": np.ones(3000)}

    def mean(table):
        return {"mean": table["x"].sum() / table["documents"].sum()}

    clusters = [i // 10 for i in range(3000)]
    together = statistics.bootstrap(columns, mean, 0, clusters)["mean"]
    assert together == pytest.approx(values.std() / math.sqrt(300), rel=0.1)
    assert together == pytest.approx(statistics.bootstrap(columns, mean, 0, clusters, summable=False)["mean"], rel=1e-6)
    assert statistics.bootstrap(columns, mean, 0)["mean"] == pytest.approx(together / math.sqrt(10), rel=0.1)
    assert statistics.bootstrap(columns, mean, 0, [0] * 3000) == {"mean": None}
    once = iter([{"rare": 1.0}])
    assert statistics.bootstrap(columns, lambda table: mean(table) | next(once, {}), 0, clusters)["rare"] is None


def test_episodes_of_a_policy_and_of_a_language_model():
    @dataclasses.dataclass(frozen=True)
    class ToGoal(Model):
        def act(self, observations):
            delta = observations[:, 2:] - observations[:, :2]
            vertical = np.where(delta[:, 1] > 0, 0, 1)
            return np.where(delta[:, 1] != 0, vertical, np.where(delta[:, 0] > 0, 3, 2))

    policy = ToGoal(MODULE, PARAMS, {}, ByteTokenizer())
    requests = [Rollout("grid", seed) for seed in range(12)]
    from fmjax.tasks.environments import Grid

    for request, summary in zip(requests, answer(requests, policy)):
        (x, y), (goal_x, goal_y) = Grid().reset(request.seed)
        assert summary == {"return": 1.0, "steps": abs(x - goal_x) + abs(y - goal_y), "ended": 1.0}
    metrics = run_tasks(policy, ["grid"], limit=20)["grid"].metrics
    assert metrics["return"] == metrics["ended"] == 1 and 1 <= metrics["steps"] <= 8
    summaries = answer(requests[:3], MODEL)
    assert summaries == answer(requests[:3][::-1], MODEL)[::-1] and all(1 <= s["steps"] <= 16 for s in summaries)


def test_cartpole_falls_as_the_equations_say():
    """One step of Euler by the equations of Gymnasium's CartPole-v1, and both limits."""
    from fmjax.tasks.environments import CartPole

    environment = CartPole()
    state, reward, ended = environment.step(np.asarray([0.01, -0.02, 0.03, 0.04]), 1)
    force, sin, cos = 10.0, math.sin(0.03), math.cos(0.03)
    temp = (force + 0.05 * 0.04**2 * sin) / 1.1
    theta_acc = (9.8 * sin - cos * temp) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
    x_acc = temp - 0.05 * theta_acc * cos / 1.1
    expected = [0.01 - 0.02 * 0.02, -0.02 + 0.02 * x_acc, 0.03 + 0.02 * 0.04, 0.04 + 0.02 * theta_acc]
    np.testing.assert_allclose(state, expected, rtol=1e-12)
    assert reward == 1.0 and not ended
    assert environment.step(np.asarray([2.399, 1.0, 0.0, 0.0]), 1)[2]
    assert environment.step(np.asarray([0, 0, 0.3, 0]), 0)[2]


def test_what_cannot_be_scored_whole_is_said_before_another_task_computes(monkeypatch):
    class Long(Quiz):
        name = "long"

    long = Long([Choices("q", ("a", "b" * 129), 0)])
    monkeypatch.setattr("fmjax.tasks.runner.answer", lambda *a, **k: pytest.fail("a task was run"))
    with pytest.raises(InputError, match="task long: a continuation has 130 tokens, more than .* context of 128"):
        run_tasks(MODEL, [Quiz(), long])


class Read(Task):
    name, metrics = "read", ("loglikelihood",)

    def documents(self, context):
        return ["some text"]

    def requests(self, document):
        return [Rolling(document)]

    def statistics(self, document, answers):
        return {"loglikelihood": answers[0].loglikelihood}


def test_a_model_that_gives_nan_has_no_scores():
    broken = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x * jnp.nan, PARAMS))
    first = questions()[0]
    with pytest.raises(InputError, match=f"task quiz: the model gives NaN for .* of ' .*' after '{first.context}'"):
        run_tasks(broken, [Quiz([first])])
    with pytest.raises(InputError, match="task read: the model gives NaN for .* of the text that begins 'some text'"):
        run_tasks(broken, [Read()])
    with pytest.raises(InputError, match="NaN has no probability"):
        softmax([0.0, math.nan])


def test_minus_infinity_is_a_score_and_is_written_as_json_has_it(monkeypatch, tmp_path):
    def impossible(model, requests, *rest):
        for index, request in enumerate(requests):
            yield index, ScoreAnswer(-1.0 if request.continuation == " b" else -math.inf, False, 1)

    class Odds(Quiz):
        name, metrics = "odds", ("acc", "best")

        def statistics(self, document, answers):
            values = [answer.loglikelihood for answer in answers]
            return {"acc": super().statistics(document, answers)["acc"], "best": max(values), "worst": min(values)}

    monkeypatch.setitem(ANSWERERS, Score, impossible)
    found = run_tasks(MODEL, [Odds([Choices("q", ("a", "b"), 1), Choices("q", ("a", "c"), 0)])])
    assert found["odds"].metrics["acc"] == 1.0
    write_samples(found, tmp_path / "samples")
    lines = (tmp_path / "samples" / "odds.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]
    assert [[one[0] for one in row["answers"]] for row in rows] == [["-Infinity", -1.0], ["-Infinity"] * 2]
    read = [row["statistics"] for row in read_samples(tmp_path, "odds").values()]
    assert read == [sample["statistics"] for sample in found["odds"].samples] and read[1]["best"] == -math.inf


def test_a_file_may_not_call_its_task_as_a_subset_of_another(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from tests.tasks.test_runner import Quiz as Base\n\n\nclass Quiz(Base):\n    name = 'mmlu_anatomy'\n"
    )
    with pytest.raises(InputError, match="two tasks are called 'mmlu_anatomy': one of fmjax, one of .*mine.py"):
        run_tasks(MODEL, ["mmlu_anatomy"], task_path=[tmp_path / "mine.py"])


def test_a_comparison_says_what_it_leaves_out_and_needs_the_task_as_it_was(tmp_path):
    from fmjax.tasks.compare import compare, notes

    icl = "icl_mapping"
    fmjax.evaluate(MODEL, [icl, "icl_linear"], output=tmp_path / "both", limit=2)
    fmjax.evaluate(MODEL, [icl], output=tmp_path / "one", limit=2)
    report = json.loads((tmp_path / "one" / "results.json").read_text()) | {"complete": False}
    (tmp_path / "one" / "results.json").write_text(json.dumps(report))
    assert notes(tmp_path / "both", tmp_path / "one") == [
        "left out, as the first alone has them: icl_linear",
        "the second was interrupted: not all of its tasks are there",
    ]
    for name in ("both", "one"):
        report = json.loads((tmp_path / name / "results.json").read_text())
        report["task_versions"][icl] = "0-old"
        (tmp_path / name / "results.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="are of version 0-old, and the task as it is now of version"):
        compare(tmp_path / "both", tmp_path / "one")


def test_two_evaluations_are_compared_document_by_document(tmp_path, capsys):
    from fmjax import cli, evaluate
    from fmjax.tasks.compare import compare

    (tmp_path / "quiz.py").write_text(
        "from tests.tasks.test_runner import Quiz as Base\n\n\nclass Quiz(Base):\n    name = 'quiz'\n"
    )
    other = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x * 1.5, PARAMS))
    for name, model in [("a", MODEL), ("b", other)]:
        fmjax.evaluate(model, ["quiz"], output=tmp_path / name, task_path=[tmp_path / "quiz.py"])
    argv = ["--compare", str(tmp_path / "a"), str(tmp_path / "b"), f"--task_path={tmp_path / 'quiz.py'}"]
    assert cli.run(evaluate.main, [*argv, f"--output={tmp_path / 'c'}"]) == 0
    printed = capsys.readouterr().out
    assert "acc_norm" in printed and (tmp_path / "c" / "compare.png").stat().st_size > 5000
    found = {d.metric: d for d in compare(tmp_path / "a", tmp_path / "b", task_path=[tmp_path / "quiz.py"])}
    rows = [
        [json.loads(line) for line in (tmp_path / n / "samples" / "quiz.jsonl").read_text().splitlines()] for n in "ab"
    ]
    differences = np.asarray([y["statistics"]["acc"] - x["statistics"]["acc"] for x, y in zip(*rows)])
    assert found["acc"].difference == pytest.approx(differences.mean())
    pages = differences.reshape(8, 3).mean(axis=1)  # documents of one page are one cluster
    assert found["acc"].stderr == pytest.approx(pages.std() / math.sqrt(8), rel=0.15)
    assert "note:" not in printed
    # What else differs is said, and only what both have is compared.
    other = dict(num_shots=2, limit=9, seed=4)
    fmjax.evaluate(MODEL, ["quiz"], output=tmp_path / "d", task_path=[tmp_path / "quiz.py"], **other)
    assert cli.run(evaluate.main, ["--compare", str(tmp_path / "a"), str(tmp_path / "d"), argv[-1]]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("note: ")] == [
        "note: task quiz: 0 examples in the prompts of the first, 2 of the second",
        "note: seed 0 of the first, 4 of the second: other examples in prompts, other draws, other training of probes",
        "note: limit: all documents of the first, 9 of the second; compared is what both have",
    ]
    assert "quiz  acc        9 " in printed
    same = compare(tmp_path / "a", tmp_path / "a", task_path=[tmp_path / "quiz.py"])
    assert all(d.difference == 0 and d.stderr == 0 for d in same)
    assert cli.run(evaluate.main, ["--compare", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert "is not the output of an evaluation" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"results": {}}')
    with pytest.raises(InputError, match="is not of an evaluation: it has no 'task_versions'"):
        compare(tmp_path / "a", tmp_path)


class Partly(Task):
    """Five documents, two of them equal; how well they are answered stands in a file."""

    metrics = ("acc",)
    uses = ()

    def __init__(self, wanted="no"):
        self.name = f"partly_{wanted}"
        self.wanted = wanted

    def documents(self, context):
        self.values = json.loads(context.file("partly", "values.json").read_text())
        return [{"text": text} for text in ("a", "a", "b", "c", "d")]

    def requests(self, document):
        return []

    def cluster(self, document):
        return ("page", document["text"])

    def statistics(self, document, answers):
        return {f"acc/{document['text']}": self.values.pop(0), "count": 1.0}

    def reduce(self, totals):
        kinds = {name[4:]: value for name, value in totals.items() if name.startswith("acc/")}
        return {"acc": sum(kinds.values()) / totals["count"]} | {f"acc_{k}": v for k, v in kinds.items() if v}


def test_a_comparison_finds_tasks_documents_and_metrics_as_they_were(tmp_path):
    """An argument, an import path, equal documents, clusters that JSON turns into lists, metrics of one side alone."""
    from fmjax.tasks.compare import compare, notes

    name = "tests.tasks.test_runner:Partly"
    (tmp_path / "partly.py").write_text(
        "from tests.tasks.test_runner import Partly as Base\n\n\nclass Partly(Base):\n    name = 'partly'\n"
    )
    options = dict(task_path=[tmp_path / "partly.py"])
    for folder, values in (("one", [1.0, 0.0, 1.0, 0.0, 1.0]), ("two", [1.0, 1.0, 0.0, 0.0, 1.0])):
        (tmp_path / "partly").mkdir(exist_ok=True)
        (tmp_path / "partly" / "values.json").write_text(json.dumps(values))
        fmjax.evaluate(MODEL, ["partly:yes"], output=tmp_path / folder, data_dir=tmp_path, **options)
        fmjax.evaluate(MODEL, [name], output=tmp_path / f"path_{folder}", data_dir=tmp_path)
    report = json.loads((tmp_path / "one" / "results.json").read_text())
    assert report["tasks"] == {"partly_yes": "partly:yes"}
    found = {d.metric: d for d in compare(tmp_path / "one", tmp_path / "two", **options)}
    # b is none of the second's, c of neither's.
    assert list(found) == ["acc", "acc_a", "acc_d"] and found["acc"].task == "partly_yes"
    assert found["acc"].num_documents == 5 and found["acc"].difference == 0
    assert (found["acc_a"].first, found["acc_a"].second) == (1.0, 2.0)
    again = compare(tmp_path / "path_one", tmp_path / "path_two")
    assert [dataclasses.replace(d, task="partly_yes") for d in again] == list(found.values())
    # What was read is stated, and a comparison says where it was not the same.
    changed = "partly/values.json held something else for the second than for the first"
    assert notes(tmp_path / "one", tmp_path / "two") == [f"task partly_yes: {changed}"]
    for folder, read in (("one", {"x": {"sha256": "1"}, "y": {}}), ("two", {"x": {"sha256": "2"}})):
        details = {"partly_yes": {"read": read, "judge": folder}}
        (tmp_path / folder / "results.json").write_text(json.dumps(report | {"details": details}))
    assert notes(tmp_path / "one", tmp_path / "two") == [
        "task partly_yes: judge: one of the first, two of the second",
        "task partly_yes: only the first read y",
        "task partly_yes: x held something else for the second than for the first",
    ]
