"""DialogSum (Chen et al. 2021, https://arxiv.org/abs/2105.06762): summaries of everyday conversations."""

from fmjax.tasks.metrics import rouge
from fmjax.tasks.protocol import Generate, Task
from fmjax.tasks.reading import read_jsonl

_VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_USE_STEMMER = True


class DialogSum(Task):
    """ROUGE of a generated summary, F-measure * 100 with Porter's stemmer.

    A dialogue has three reference summaries: ROUGE is the mean over them; `rouge1_max` and the others are of the best
    one. rougeL takes a summary for one sentence, rougeLsum for sentences. lm-evaluation-harness has no such task.
    """

    name = "dialogsum"
    metrics = (*_VARIANTS, *(f"{variant}_max" for variant in _VARIANTS))
    description = "summaries of conversations, by ROUGE with stemmer"
    needs = "eval_dialogsum/dialogsum.test.jsonl, examples from dialogsum.dev.jsonl (CC BY-NC-SA 4.0)"
    uses = ("generate",)
    labels = ("Summarize the following dialogue.", "Summary:")

    def check(self):
        self.details()  # asks the library

    def documents(self, context):
        path = context.file("eval_dialogsum", "dialogsum.test.jsonl")
        return read_jsonl(path, _tested, "'dialogue', 'summary1', 'summary2', 'summary3'")

    def examples(self, context):
        path = context.file("eval_dialogsum", "dialogsum.dev.jsonl")
        return read_jsonl(path, lambda row: _document(row, row["summary"]), "'dialogue' and 'summary'")

    def example(self, document):
        return f"{_question(document)} {document['summaries'][0]}"

    def requests(self, document):
        return [Generate(_question(document), max_new_tokens=128, stop=("\n",))]

    def statistics(self, document, answers):
        prediction = rouge.lines(answers[0])
        scores = [
            rouge.rouge(prediction, rouge.lines(summary), _VARIANTS, use_stemmer=_USE_STEMMER)
            for summary in document["summaries"]
        ]
        found = {}
        for name in _VARIANTS:
            values = [one[name] for one in scores]
            found |= {name: sum(values) / len(values), f"{name}_max": max(values)}
        return found

    def details(self):
        sentences = "end at . ! or ? before a space"
        return {"rouge": rouge.details(_USE_STEMMER, sentences) | {"references": "mean; NAME_max: the best"}}


def _tested(row) -> dict:
    return _document(row, *(row[f"summary{i}"] for i in (1, 2, 3)))


def _document(row, *summaries: str) -> dict:
    return {"dialogue": str(row["dialogue"]), "summaries": list(map(str, summaries))}


def _question(document) -> str:
    return f"Summarize the following dialogue.\n\n{document['dialogue']}\n\nSummary:"
