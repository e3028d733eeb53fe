"""Answers found in a passage: SQuAD 1.1 (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250) and XQuAD.

XQuAD (Artetxe et al. 2020, https://arxiv.org/abs/1910.11856) is a part of it in other languages.
"""

from fmjax.errors import DataError
from fmjax.small_files import read_json
from fmjax.tasks.metrics import squad
from fmjax.tasks.protocol import Generate, Task
from fmjax.tasks.reading import convert_records, read_records

# What stands before passage, question and answer, by language.
_WORDS = {
    "en": ("Context", "Question", "Answer"),
    "de": ("Kontext", "Frage", "Antwort"),
    "zh": ("语境", "问题", "回答"),
}


class Squad(Task):
    """Exact match and F1 of a generated answer, normalised as by SQuAD's script, of the best right answer.

    The prompt is that of lm-evaluation-harness's `xquad_en`; it has no task of SQuAD 1.1 in this form. Questions on one
    passage are resampled together for the standard errors.
    """

    name = "squad"
    metrics = ("exact_match", "f1")
    description = "answers to questions about a passage of Wikipedia"
    needs = "eval_squad/dev-v1.1.json, or TFDS squad (CC BY-SA 4.0)"
    uses = ("generate",)
    language = "en"
    place = "eval_squad", "dev-v1.1.json", "squad/v1.1:validation"

    def documents(self, context):
        folder, name, words = self.place
        expected = "'context', 'question', 'answers'"
        return read_records(context, folder, (name,), expected, _from_file, words, _from_tfds, read_squad)

    def examples(self, context):
        return self.documents(context)

    def example(self, document):
        return f"{self._question(document)} {(document['answers'] or [''])[0]}"

    def requests(self, document):
        return [Generate(self._question(document), max_new_tokens=256, stop=("\n",))]

    def statistics(self, document, answers):
        (answer,) = answers
        golds = document["answers"]
        return {"exact_match": squad.exact_match(answer, golds), "f1": squad.f1(answer, golds)}

    def cluster(self, document):
        return document["context"]

    def _question(self, document) -> str:
        context, question, answer = self.labels
        return f"{context} {document['context']}\n\n{question} {document['question']}\n\n{answer}"

    @property
    def labels(self):
        return tuple(f"{word}:" for word in _WORDS[self.language])


class XQuAD(Squad):
    """XQuAD in one language, as lm-evaluation-harness's `xquad_LANGUAGE`.

    Chinese is written without spaces, so its F1 is nearly its exact match: SQuAD's words are what spaces separate.

    Args:
      subset: the language.
    """

    name = "xquad"
    description = "xquad_en, xquad_de, xquad_zh: SQuAD's questions in three languages; by itself English"
    needs = "eval_xquad/xquad.LANGUAGE.json, or TFDS xquad (CC BY-SA 4.0)"
    subsets = tuple(_WORDS)

    def __init__(self, subset: str | None = None):
        if subset is not None:
            self.name = f"xquad_{subset}"
        self.language = subset or "en"
        self.place = "eval_xquad", f"xquad.{self.language}.json", f"xquad/{self.language}:validation"


def read_squad(path, convert, expected: str) -> list:
    """Documents of the questions of a file in the format of SQuAD 1.1, as `fmjax.tasks.reading.read_jsonl`."""
    value = read_json(path, dict | list, DataError)
    try:
        passages = [passage for article in value["data"] for passage in article["paragraphs"]]
        rows = [asked | {"context": passage["context"]} for passage in passages for asked in passage["qas"]]
    except (KeyError, TypeError):
        raise DataError(
            f"{str(path)!r}: expected 'data' with 'paragraphs' of 'context' and 'qas', as SQuAD 1.1"
        ) from None
    return convert_records(rows, convert, expected, path)


def _from_file(record) -> dict:
    return _document(record, [answer["text"] for answer in record["answers"]])


def _from_tfds(record) -> dict:
    return _document(record, record["answers"]["text"])


def _document(record, answers) -> dict:
    return {
        "context": str(record["context"]),
        "question": str(record["question"]),
        "answers": list(map(str, answers)),
    }
