"""Answers: equal requests asked once, alike in any company and on any devices; chats; prompts that are too long."""

import dataclasses

import jax
import numpy as np
import pytest

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.parallel import watch
from fmjax.tasks.answers import Work, answer
from fmjax.tasks.protocol import Apply, Generate, Rolling, Score, Task
from fmjax.tasks.report import cost_line, make_report
from fmjax.tasks.runner import run_tasks
from tests.tasks.quiz import MODEL, MODULE, Quiz, on_eight_devices


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


def test_the_watch_hears_of_each_batch(monkeypatch):
    """What may hang in a batch is limited in time; what comes before and after all is not."""
    places = []
    monkeypatch.setattr(watch, "at", lambda what, limited=True: places.append((what, limited)))
    answer([Score("ab", " c"), Score("ab", " d"), Rolling("abc"), Rolling(""), Generate("ab", 2)], MODEL)
    parts = [place for place in places if "part" in place[0]]
    assert parts == [(f"part {n} of the generation", True) for n in range(1, len(parts) + 1)] and parts
    follow = [("what follows the scores", False)]
    assert places == [
        ("the score requests of a task", False), ("batch 1 of scores", True), *follow,
        ("the rolling requests of a task", False), ("batch 1 of scores", True), *follow,
        ("the generate requests of a task", False), *parts, ("what follows the generation", False),
        ("what follows the answers", False),
    ]  # fmt: skip


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
    (length,) = answer([Apply("tests.tasks.test_answers:lengths", "abc")], MODEL)
    assert length == 3
    named = dataclasses.replace(MODEL, functions={"twice": jax.tree_util.Partial(scaled, 2.0)})
    assert answer([Apply("twice", "abc")], named) == [6.0]
    assert model_fingerprint(named) != model_fingerprint(MODEL)


def lengths(model, inputs):
    return [len(text) for text in inputs]


def scaled(factor, model, inputs):
    return [factor * len(text) for text in inputs]
