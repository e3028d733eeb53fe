"""Multi30k: corpus scores of the task are sacrebleu's, with its signatures."""

import gzip
import math

import pytest
import sacrebleu

from fmjax.errors import DataError
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.protocol import TaskContext


@pytest.fixture
def context(tmp_path):
    (tmp_path / "text_multi30k").mkdir()
    for split in ("test_2016_flickr", "val"):
        for language, word in (("en", "A dog"), ("de", "Ein Hund"), ("fr", "Un chien")):
            text = "".join(f"{word} {split} {i} .\n" for i in range(3))
            (tmp_path / "text_multi30k" / f"{split}.{language}.gz").write_bytes(gzip.compress(text.encode()))
    return TaskContext(tmp_path)


def test_scores_are_those_of_the_corpus(context):
    task = get_task("multi30k_en-de")
    documents, texts = task.documents(context), [" Ein Hund lag da .", "Hund 1", ""]
    rows = [task.statistics(document, [text]) for document, text in zip(documents, texts)]
    found = task.reduce({name: math.fsum(row[name] for row in rows) for name in rows[0]})
    references = [[document["target"] for document in documents]]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, references).score) and found["bleu"] > 0
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, references).score)
    assert task.details() == {
        "bleu": f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}",
        "chrf": f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{sacrebleu.__version__}",
    }


def test_pairs_prompts_and_unequal_files(context):
    task = get_task("multi30k_fr-de")
    (request,) = FewShot.make(task, 1, 0, context).requests(task.documents(context)[1])
    assert request.prompt.endswith(" .\n\nFrench phrase: Un chien test_2016_flickr 1 .\nGerman phrase:")
    assert request.prompt.startswith("French phrase: Un chien val") and request.stop == ("\n",)
    assert get_task("multi30k").languages == ["en", "de"] and len(task.subsets) == 12
    path = context.data_dir / "text_multi30k" / "test_2016_flickr.de.gz"
    path.write_bytes(gzip.compress(b"Ein Hund\n"))
    with pytest.raises(DataError, match="flickr.fr.gz has 3 lines and test_2016_flickr.de.gz beside it 1"):
        task.documents(context)
