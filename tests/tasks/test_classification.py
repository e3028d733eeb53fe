"""Adapted models, classification, entities, calibration, retrieval and in-context learning against libraries."""

import dataclasses
import gzip

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.data.tokenizer import ByteTokenizer
from fmjax.errors import DataError, InputError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.inference.word_vectors import word_places, word_vectors
from fmjax.load import Model
from fmjax.models.gpt import GPT
from fmjax.tasks import adaptation
from fmjax.tasks.calibration import expected_calibration_error
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.classification import SST2, AGNews, SST2Probe
from fmjax.tasks.entities import WNUT17, WNUT17Probe, entity_counts, read_entities, written
from fmjax.tasks.in_context import SHOTS, Linear, Mapping
from fmjax.tasks.protocol import Apply, ScoreAnswer, Task, TaskContext
from fmjax.tasks.retrieval import best_rank
from fmjax.tasks.runner import run_tasks

MODULE = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=32, vocab_size=258, init_std=0.3)
PARAMS = nn.unbox(MODULE.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
MODEL = Model(MODULE, PARAMS, {}, ByteTokenizer())
RNG = np.random.default_rng(0)
TEXTS = ["".join(RNG.choice(list("abcdef "), RNG.integers(3, 12))) + "xy"[i % 2] for i in range(40)]
LABELS = [i % 2 for i in range(40)]
SHORT = adaptation.Recipe(epochs=0, min_steps=30, batch_size=8, learning_rate=0.01)


def test_linear_probe_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    labels = [(i * 7) % 3 for i in range(40)]
    model = adaptation.probe_texts(MODEL, TEXTS, labels, 3, seed=0)
    found = model.functions["class_logits"](model, TEXTS)
    vectors = adaptation.text_vectors(MODEL, TEXTS)
    np.testing.assert_allclose(vectors, MODEL.embed(TEXTS), atol=1e-6)
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    want = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(scaled, labels).decision_function(scaled)
    found, want = (x - x.mean(1, keepdims=True) for x in (found, want))  # logits are known up to a constant
    np.testing.assert_allclose(found, want, atol=0.05)
    assert model.params is MODEL.params and model_fingerprint(model) != model_fingerprint(MODEL)


def test_fine_tuning_learns_and_is_deterministic_and_leaves_the_model_alone():
    before = model_fingerprint(MODEL)
    tuned = [adaptation.fine_tune_texts(MODEL, TEXTS, LABELS, 2, seed, SHORT) for seed in (0, 0)]
    logits = tuned[0].functions["class_logits"](tuned[0], TEXTS)
    assert (logits.argmax(1) == LABELS).mean() > 0.95 and model_fingerprint(MODEL) == before
    prints = [model_fingerprint(model) for model in tuned]
    assert prints[0] == prints[1] != before
    classifier = adaptation.Classifier(MODULE, 2, "last")
    head = dict(zip(("kernel", "bias"), tuned[0].functions["class_logits"].args))
    batch = adaptation._padded(adaptation._rows(MODEL, TEXTS), MODEL)
    direct = classifier.apply({"params": {"backbone": tuned[0].params, "head": head}}, **batch)
    np.testing.assert_allclose(logits, direct, atol=1e-4)
    with pytest.raises(InputError, match="not finite; lower the learning rate"):
        bad = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x * jnp.nan, PARAMS))
        adaptation.fine_tune_texts(bad, TEXTS, LABELS, 2, 0, dataclasses.replace(SHORT, min_steps=2))


def test_fine_tuning_takes_the_same_steps_on_any_number_of_devices():
    """Ten documents, in batches of ten or of six, which eight devices do not divide."""
    from fmjax.interop.loading import placed
    from fmjax.parallel.placement import Placement

    placement = Placement.make({"fsdp": 8})
    spread = dataclasses.replace(
        MODEL, params=jax.device_put(PARAMS, placed(MODULE, placement)[1]), placement=placement
    )
    for size in (16, 6):
        recipe = dataclasses.replace(SHORT, batch_size=size, min_steps=10)
        one, eight = (
            adaptation.fine_tune_texts(model, TEXTS[:10], LABELS[:10], 2, 0, recipe) for model in (MODEL, spread)
        )
        one, eight = (model.functions["class_logits"](model, TEXTS) for model in (one, eight))
        np.testing.assert_allclose(eight, one, atol=1e-4)


def test_words_are_read_at_their_first_token():
    words = ["ab", "c", "\u00e9t\u00e9", "x" * 20, "late"]
    tokens, places = word_places(MODEL, words)
    assert tokens[0] == 256 and len(tokens) == 32
    assert places == [1, 4, 6, 12, -1]  # bytes; BOS in front; the context ends within the fourth word
    (found,) = word_vectors(MODEL, [words])
    hidden = MODULE.apply({"params": PARAMS}, jnp.asarray([tokens]), method="hidden")[0]
    np.testing.assert_allclose(found[:4], hidden[jnp.asarray(places[:4])], atol=1e-5)
    assert not found[4].any()


@pytest.mark.parametrize("adapt", [adaptation.probe_words, adaptation.fine_tune_words])
def test_words_are_labelled_after_adaptation(adapt):
    sentences = [list(RNG.choice(["aa", "bb", "cc"], RNG.integers(1, 6))) for _ in range(24)]
    labels = [[int(word == "bb") for word in sentence] for sentence in sentences]
    options = {} if adapt is adaptation.probe_words else {"recipe": SHORT}
    model = adapt(MODEL, sentences, labels, 2, 0, **options)
    found = model.functions["token_logits"](model, sentences)
    assert [list(map(int, rows.argmax(1))) for rows in found] == labels
    assert not model.functions["token_logits"](model, [["x" * 40, "bb"]])[0][1].any()


def test_calibration_errors_are_the_arithmetic_of_their_bins():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    confidences = rng.random(500)
    correct = rng.random(500) < confidences**2
    for equal_mass in (False, True):
        accuracy, mean = calibration_curve(
            correct, confidences, n_bins=10, strategy=("uniform", "quantile")[equal_mass]
        )
        counts = np.full(10, 50) if equal_mass else np.histogram(confidences, 10, (0, 1))[0]
        want = (np.abs(accuracy - mean) * counts).sum() / 500
        found = expected_calibration_error(confidences, correct, equal_mass=equal_mass, num_bins=10)
        assert found == pytest.approx(want, abs=1e-12 if not equal_mass else 0.005)
        order = rng.permutation(500)
        assert found == expected_calibration_error(
            confidences[order], correct[order], equal_mass=equal_mass, num_bins=10
        )
    # Two bins by hand: 0.5 belongs to the lower one; equal confidences split with the wrong ones first.
    assert expected_calibration_error([0.5, 0.9], [1, 0], num_bins=2) == pytest.approx((abs(1 - 0.5) + 0.9) / 2)
    found = expected_calibration_error([0.5, 0.5, 0.9], [1, 0, 1], equal_mass=True, num_bins=2)
    assert found == pytest.approx((abs(1 - 1.0) + abs(1 - 0.9)) / 3)
    for equal_mass in (False, True):
        with pytest.raises(InputError, match="there are none"):
            expected_calibration_error([], [], equal_mass=equal_mass)
    assert expected_calibration_error([1.0], [1], num_bins=15) == 0.0 == expected_calibration_error([0.0], [0])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("eval_sst2", "eval_ag_news", "eval_wnut17_ner", "text_multi30k"):
        (folder / name).mkdir()
    lines = [f"{text}\t{label}\n" for text, label in zip(TEXTS, LABELS)]
    (folder / "eval_sst2" / "train.tsv").write_text("sentence\tlabel\n" + "".join(lines[:32]))
    (folder / "eval_sst2" / "dev.tsv").write_text('a "quoted\tfilm\t1\n' + "".join(lines[32:]))
    news = [f'"{i % 4 + 1}","Title {i}","a\\b, ""c"" {i}"\n' for i in range(7)]
    (folder / "eval_ag_news" / "test.csv").write_text("".join(news))
    tagged = "Ann\tB-person\nLee\tI-person\nin\tO\nRome\tB-location\n\t\nno\tO\n\n\n"
    (folder / "eval_wnut17_ner" / "wnut17train.conll").write_text(tagged * 5)
    (folder / "eval_wnut17_ner" / "emerging.test.annotated").write_text(tagged)
    for language in ("de", "en"):
        texts = "\n".join(["ab", "cde", "ab", "f"]) + "\n"
        (folder / "text_multi30k" / f"test_2016_flickr.{language}.gz").write_bytes(gzip.compress(texts.encode()))
    return folder


def test_sst2_prompt_and_confidence(data):
    task, context = SST2(), TaskContext(data)
    document = task.documents(context)[0]
    assert document == {"text": 'a "quoted\tfilm', "label": 1} and len(task.training(context)) == 32
    asked = f"{document['text']}\nQuestion: Is this sentence positive or negative?\nAnswer:"
    assert [(r.context, r.continuation) for r in task.requests(document)] == [
        (asked, " negative"),
        (asked, " positive"),
    ]
    found = task.statistics(document, [ScoreAnswer(x, False, 1) for x in (-1.0, -1.0)])
    assert found == {"acc": 0.0, "confidence": 0.5}  # the first of equal ones
    metrics = run_tasks(MODEL, [task], data_dir=data, num_shots=0)["sst2"].metrics
    assert {"acc", "ece", "ece_mass", "ece_stderr"} <= set(metrics)


def test_probe_task_counts_its_training_documents(data):
    context = TaskContext(data, seed=3)
    small, large = (get_task(f"sst2_probe:{count}").chosen(context) for count in (8, 16))
    assert large[:8] == small and small != get_task("sst2_probe:8").chosen(TaskContext(data, seed=4))
    assert len(SST2Probe().chosen(context)) == 32
    # The order of the file does not matter, also where documents are equal.
    task = get_task("sst2_probe:16")
    found = [*task.training(context), *task.training(context)[:5]]
    task.training = lambda context: found
    chosen = task.chosen(context)
    task.training = lambda context: found[::-1]
    assert task.chosen(context) == chosen and SST2Probe().version == "2"
    result = run_tasks(MODEL, ["sst2_probe:16"], data_dir=data)["sst2_probe:16"]
    again = run_tasks(MODEL, ["sst2_probe:16"], data_dir=data, limit=5)["sst2_probe:16"]
    # Equal but for the rounding of sums, whose order is that of a batch of another shape.
    found, wanted = ([s["answers"] for s in samples] for samples in (again.samples, result.samples[:5]))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert result.metrics["acc"] == np.mean([s["statistics"]["acc"] for s in result.samples])
    with pytest.raises(InputError, match="only 32 training documents"):
        run_tasks(None, ["sst2_probe:33"], data_dir=data)  # before a model is asked anything
    with pytest.raises(InputError, match="expected a number of training documents, got 'many'"):
        get_task("sst2_probe:many")


def test_ag_news_says_where_its_training_set_is_missing_and_halves_under_another_name(data):
    task, context = AGNews(), TaskContext(data)
    assert len(task.documents(context)) == 7
    assert task.documents(context)[1] == {"text": 'Title 1\na b, "c" 1', "label": 1}
    for name in ("ag_news", "ag_news_probe"):
        with pytest.raises(DataError, match=f"train.csv beside .* evaluate {name.replace('news', 'news_half')},"):
            get_task(name).training(context)
    half, probe = get_task("ag_news_half"), get_task("ag_news_half_probe:2")
    tests, training = half.documents(context), half.training(context)
    assert [len(tests), len(training)] == [3, 4] and probe.training(context) == training
    assert {one["text"] for one in [*tests, *training]} == {one["text"] for one in task.documents(context)}
    file = data / "eval_ag_news" / "test.csv"
    lines = file.read_text()
    file.write_text("".join(lines.splitlines(keepends=True)[::-1]))
    assert half.documents(context) == tests
    file.write_text(lines)
    (data / "eval_ag_news" / "train.csv").write_text('"4","t","x"\n')
    assert [len(task.documents(context)), len(task.training(context))] == [7, 1]
    (data / "eval_ag_news" / "train.csv").write_text('"5","t","x"\n')
    with pytest.raises(DataError, match="row 1: expected a class from 1 to 4"):
        task.training(context)
    (data / "eval_ag_news" / "train.csv").unlink()


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


def test_what_adapting_takes_is_counted(data):
    def passes(texts):
        return [1 + len(text.encode()) for text in texts]  # BOS and bytes

    probe = run_tasks(MODEL, ["sst2_probe:16"], data_dir=data, limit=3)["sst2_probe:16"].work
    task = get_task("sst2_probe:16")
    texts = [d["text"] for d in [*task.chosen(TaskContext(data)), *task.documents(TaskContext(data))[:3]]]
    assert sorted(probe.lengths.elements()) == sorted(passes(texts)) and not probe.trained
    words = run_tasks(MODEL, ["wnut17_probe"], data_dir=data)["wnut17_probe"].work
    assert sorted(words.lengths.elements()) == sorted(passes(6 * ["Ann Lee in Rome", "no"]))
    found = run_tasks(MODEL, ["multi30k_retrieval"], data_dir=data)["multi30k_retrieval"].work
    # Equal queries are asked once.
    assert sorted(found.lengths.elements()) == sorted(passes(["ab", "cde", "ab", "f", "ab", "cde", "f"]))
    # Fine-tuning: a forward and backward pass of each document of each batch.
    task = get_task("sst2_finetune:8")
    task.fit = lambda model, documents, seed: adaptation.fine_tune_texts(
        model, [d["text"] for d in documents], [d["label"] for d in documents], 2, seed, SHORT
    )
    tuned = run_tasks(MODEL, [task], data_dir=data, limit=3)["sst2_finetune:8"]
    chosen = [d["text"] for d in task.chosen(TaskContext(data))]
    assert sorted(tuned.work.trained.elements()) == sorted(passes(30 * chosen))
    flops = sum(MODULE.flops_per_example({"tokens": (n,)}) for n in passes(30 * chosen))
    assert flops < tuned.flops < 1.1 * flops and tuned.flops_note is None


def uncounted(model, inputs):
    return [0.0 for _ in inputs]


def counted_by_score(model, inputs):
    return [loglikelihood for loglikelihood, *_ in model.score([("a", text) for text in inputs])]


def test_flops_are_not_known_where_something_does_not_say_what_it_read():
    class Custom(Task):
        name, uses = "custom", ()

        def __init__(self, function, adapted=False):
            self.function, self.adapted, self.metrics = function, adapted, ("value",)

        def documents(self, context):
            return [{"text": "ab"}]

        def adapt(self, model, context):
            return dataclasses.replace(model, source="elsewhere") if self.adapted else model

        def requests(self, document):
            return [Apply(f"{__name__}:{self.function}", document["text"])]

        def statistics(self, document, answers):
            return {"value": answers[0]}

    def run(*options):
        return run_tasks(MODEL, [Custom(*options)])["custom"]

    silent, adapted, said = run("uncounted"), run("counted_by_score", True), run("counted_by_score")
    assert silent.flops is None and "'uncounted' did not say" in silent.flops_note.replace(f"{__name__}:", "")
    assert adapted.flops is None and "custom's adapt did not say" in adapted.flops_note
    assert said.flops == pytest.approx(MODULE.flops_per_example({"tokens": (3,)}) / 3) and said.flops_note is None


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


def test_recall_counts_any_hit():
    from sklearn.metrics import top_k_accuracy_score

    scores = np.random.default_rng(0).random((30, 8))
    gold = np.arange(30) % 8
    ranks = np.array([best_rank(row, [g]) for row, g in zip(scores, gold)])
    for k in (1, 5):
        assert (ranks < k).mean() == pytest.approx(top_k_accuracy_score(gold, scores, k=k, labels=range(8)))
    assert best_rank([0.1, 0.5, 0.5, 0.2], [2]) == 1 and best_rank([0.1, 0.5, 0.5, 0.2], [0, 1]) == 0


def test_retrieval_ranks_among_all_candidates_whatever_the_limit(data):
    whole = run_tasks(MODEL, ["multi30k_retrieval"], data_dir=data)["multi30k_retrieval"]
    assert whole.metrics["recall@1"] == 1.0  # both sides are equal, and either of two equal captions is right
    first = run_tasks(MODEL, ["multi30k_retrieval"], data_dir=data, limit=1)["multi30k_retrieval"]
    assert first.samples[0]["answers"] == whole.samples[0]["answers"] and whole.samples[0]["document"]["gold"] == [0, 2]


def looks_up(context):
    """Answers of a model that knows what it was shown: the letter's image, or the line through two points."""
    *shown, question = context.split("\n")
    if "->" in question:
        return dict(line.split(" -> ") for line in shown).get(question.removesuffix(" ->"))
    points = dict(tuple(map(int, line.removeprefix("f(").split(") = "))) for line in shown)
    if len(points) < 2:
        return None
    (x, y), (u, v), *_ = points.items()
    slope = (v - y) // (u - x)
    return str(y + slope * (int(question.removeprefix("f(").removesuffix(") =")) - x))


# What may be likely without examples: a number's size, its length, its place among the options, a digit.
PRIORS = {
    "nearest to the mean function": lambda x, option: abs(int(option) - (3 * x + 4.5)),
    "shortest": lambda x, option: len(option),
    "smallest": lambda x, option: int(option),
    "largest": lambda x, option: -int(option),
    "first": lambda x, option: 0,
    "even": lambda x, option: int(option) % 2,
    "a multiple": lambda x, option: int(option) % max(x, 1),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_no_prior_answers_linear_functions_without_their_examples(prior):
    count = 4000
    right = 0
    for document in Linear(count=count).documents(TaskContext()):
        x = int(document["question"].removeprefix("f(").removesuffix(") ="))
        scores = [PRIORS[prior](x, option) for option in document["options"]]
        right += int(np.argmin(scores)) == document["gold"]
        assert len(set(document["options"])) == 5
    assert right / count == pytest.approx(1 / 5, abs=4 * (0.2 * 0.8 / count) ** 0.5)


@pytest.mark.parametrize("kind, chance", [(Mapping, 1 / 8), (Linear, 1 / 5)])
def test_in_context_learning_rises_for_a_model_that_can_and_stays_at_chance_for_one_that_cannot(kind, chance):
    task = kind(count=1000)
    documents = task.documents(TaskContext())
    assert documents == kind(count=1000).documents(TaskContext())
    curves = []
    for model in (looks_up, lambda context: None):
        rows = [
            task.statistics(d, [ScoreAnswer(float(r.continuation[1:] == model(r.context)), False, 1) for r in requests])
            for d, requests in ((d, task.requests(d)) for d in documents)
        ]
        curves.append(task.reduce({k: sum(r[k] for r in rows) for k in rows[0]} | {"documents": len(rows)}))
    can, cannot = curves
    for shots in SHOTS:
        known = 1 - (7 / 8) ** shots if kind is Mapping else 1 - (1 / 9) ** max(shots - 1, 0)
        assert can[f"acc_{shots}"] == pytest.approx(known + (1 - known) * chance, abs=0.045)
        assert cannot[f"acc_{shots}"] == pytest.approx(chance, abs=0.045)
    assert can["gain"] > 0.7 and cannot["gain"] == 0.0
