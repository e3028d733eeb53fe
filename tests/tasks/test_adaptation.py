"""Models adapted to a task, by probes as scikit-learn fits them and by fine-tuning, and what it takes in FLOPs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import InputError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.inference.word_vectors import word_places, word_vectors
from fmjax.interop.loading import placed
from fmjax.parallel.placement import Placement
from fmjax.tasks import adaptation
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.protocol import Apply, Task, TaskContext
from fmjax.tasks.runner import run_tasks
from tests.tasks.short_texts import LABELS, MODEL, MODULE, PARAMS, TEXTS

SHORT = adaptation.Recipe(epochs=0, min_steps=30, batch_size=8, learning_rate=0.01)


def test_linear_probe_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    labels = [(i * 7) % 3 for i in range(40)]
    model = adaptation.probe(MODEL, TEXTS, labels, 3, seed=0)
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
    tuned = [adaptation.fine_tune(MODEL, TEXTS, LABELS, 2, seed, SHORT) for seed in (0, 0)]
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
        adaptation.fine_tune(bad, TEXTS, LABELS, 2, 0, dataclasses.replace(SHORT, min_steps=2))


def test_fine_tuning_takes_the_same_steps_on_any_number_of_devices():
    """Ten documents, in batches of ten or of six, which eight devices do not divide."""
    placement = Placement.make({"fsdp": 8})
    spread = dataclasses.replace(
        MODEL, params=jax.device_put(PARAMS, placed(MODULE, placement)[1]), placement=placement
    )
    for size in (16, 6):
        recipe = dataclasses.replace(SHORT, batch_size=size, min_steps=10)
        one, eight = (
            adaptation.fine_tune(model, TEXTS[:10], LABELS[:10], 2, 0, recipe) for model in (MODEL, spread)
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
    rng = np.random.default_rng(0)
    sentences = [list(rng.choice(["aa", "bb", "cc"], rng.integers(1, 6))) for _ in range(24)]
    labels = [[int(word == "bb") for word in sentence] for sentence in sentences]
    options = {} if adapt is adaptation.probe_words else {"recipe": SHORT}
    model = adapt(MODEL, sentences, labels, 2, 0, **options)
    found = model.functions["token_logits"](model, sentences)
    assert [list(map(int, rows.argmax(1))) for rows in found] == labels
    assert not model.functions["token_logits"](model, [["x" * 40, "bb"]])[0][1].any()


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
    task.fit = lambda model, documents, seed: adaptation.fine_tune(
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
