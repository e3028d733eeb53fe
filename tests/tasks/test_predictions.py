"""--predictions=FILE.csv: a task's answers as a table, its refusals, and a task of images without labels."""

import csv

import numpy as np
import pytest

import fmjax
from fmjax import evaluate
from fmjax.commands import cli
from fmjax.data.digits import CODEC, read_digits
from fmjax.errors import InputError
from tests.classifier import MODEL, logits_of
from tests.tasks import short_texts


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_of_labels_and_probabilities(tmp_path, capsys):
    MODEL.save(tmp_path / "model")
    path = tmp_path / "answers.csv"
    given = [f"--model={tmp_path / 'model'}", "--tasks=digits", "--limit=12", f"--output={tmp_path / 'out'}"]
    assert cli.run(evaluate.main, [*given, f"--predictions={path}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"predictions: {path}"
    plain = rows(path)
    assert list(plain[0]) == ["id", "label"] and len(plain) == 12 and path.read_text().endswith("\n")
    assert cli.run(evaluate.main, [*given, f"--predictions={path}", "--probabilities"]) == 0
    found = rows(path)
    assert [(row["id"], row["label"]) for row in found] == [(row["id"], row["label"]) for row in plain]
    images, _, test = read_digits()
    places = np.flatnonzero(test)[:12]
    logits = logits_of([CODEC.decode({"images": images[i]}) for i in places])
    want = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert [row["id"] for row in found] == [f"digits/{i}" for i in places]
    assert [row["label"] for row in found] == [str(n) for n in want.argmax(1)]
    np.testing.assert_allclose([[float(row[str(n)]) for n in range(10)] for row in found], want, atol=1e-4)
    for arguments, message in (
        (["--predictions=answers.txt"], "give FILE.csv"),
        ([f"--predictions={tmp_path / 'nowhere' / 'a.csv'}"], "there is no folder"),
        ([f"--predictions={path}", "--tasks=digits,mnist"], "is of one task, and here are 2: digits, mnist"),
        ([f"--predictions={path}", "--tasks=heldout"], "task heldout is no classification"),
        (["--probabilities"], "give --predictions=FILE.csv too"),
    ):
        assert cli.run(evaluate.main, [*given, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_texts_and_options_have_predictions(tmp_path, data):
    path = tmp_path / "texts.csv"
    report = fmjax.evaluate(
        short_texts.MODEL, ["sst2_probe:16"], data_dir=data, limit=5, predictions=path, probabilities=True
    )
    found = rows(path)
    assert [row["id"] for row in found] == list("01234") and set(found[0]) == {"id", "label", "negative", "positive"}
    for row in found:
        assert row["label"] == max(("negative", "positive"), key=lambda name: float(row[name]))
        assert float(row["negative"]) + float(row["positive"]) == pytest.approx(1, abs=1e-5)
    assert 0 <= report["results"]["sst2_probe:16"]["acc"] <= 1
    fmjax.evaluate(short_texts.MODEL, ["sst2"], data_dir=data, limit=2, predictions=path)
    assert len(rows(path)) == 2


def test_images_without_labels(tmp_path):
    folder = tmp_path / "test"
    images = read_digits()[0][:6]
    for place, image in enumerate(images):
        target = folder / ("deep" if place % 2 else "") / f"{place}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        CODEC.write(CODEC.decode({"images": image}), target)
    path = tmp_path / "submission.csv"
    report = fmjax.evaluate(MODEL, ["images_unlabelled:test"], data_dir=tmp_path, predictions=path, probabilities=True)
    found = rows(path)
    assert [row["id"] for row in found] == ["0.png", "2.png", "4.png", "deep/1.png", "deep/3.png", "deep/5.png"]
    logits = logits_of([CODEC.decode({"images": images[i]}) for i in (0, 2, 4, 1, 3, 5)])
    assert [int(row["label"]) for row in found] == logits.argmax(1).tolist()
    confidences = [max(float(row[str(n)]) for n in range(10)) for row in found]
    metrics = report["results"]["images_unlabelled:test"]
    assert metrics["confidence"] == pytest.approx(np.mean(confidences), abs=1e-5)
    (folder / "torn.png").write_bytes(b"PNG")
    with pytest.raises(InputError, match="1 of 7 images cannot be read; .*torn.png.*leave them out: .*:test:skip"):
        fmjax.evaluate(MODEL, ["images_unlabelled:test"], data_dir=tmp_path)
    again = fmjax.evaluate(MODEL, ["images_unlabelled:test:skip"], data_dir=tmp_path, predictions=path)
    assert again["results"]["images_unlabelled:test:skip"] == metrics and len(rows(path)) == 6
    with pytest.raises(InputError, match="has no image"):
        (tmp_path / "empty").mkdir()
        fmjax.evaluate(MODEL, ["images_unlabelled:empty"], data_dir=tmp_path)
