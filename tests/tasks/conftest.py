"""A small data folder that the tests of tasks share."""

import gzip

import pytest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with a few lines of SST-2, AG News, WNUT-17 and Multi30k."""
    from tests.tasks.short_texts import LABELS, TEXTS

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
