"""LAMBADA (Paperno et al. 2016, https://arxiv.org/abs/1606.06031): the last word of a passage."""

from fmjax.tasks.protocol import Score, Task, exp
from fmjax.tasks.reading import convert_records, read_jsonl, read_records, read_text


class LambadaOpenAI(Task):
    """Passages as OpenAI prepared them for GPT-2; the context is all but the last word, split at spaces."""

    name = "lambada_openai"
    metrics = ("acc", "perplexity")
    positive = ("perplexity",)
    description = "accuracy and perplexity of a passage's last word"
    needs = "eval_lambada/lambada_test.jsonl (no licence stated)"

    def documents(self, context):
        path = context.file("eval_lambada", "lambada_test.jsonl")
        return read_jsonl(path, lambda row: {"text": str(row["text"])}, "'text'")

    def requests(self, document):
        context, _, word = document["text"].rpartition(" ")
        return [Score(context, f" {word}")]

    def statistics(self, document, answers):
        (answer,) = answers
        return {"acc": float(answer.is_greedy), "loglikelihood": answer.loglikelihood}

    def reduce(self, totals):
        # The perplexity is per word, here one a document: exp(-mean log-likelihood).
        return {
            "acc": totals["acc"] / totals["documents"],
            "perplexity": exp(-totals["loglikelihood"] / totals["documents"]),
        }


class LambadaStandard(LambadaOpenAI):
    """Passages as published: small letters, with spaces around punctuation. TFDS has this form alone."""

    name = "lambada_standard"
    needs = "eval_lambada/lambada_test_plain_text.txt, or TFDS lambada (CC BY 4.0)"

    def documents(self, context):
        def convert(row):
            return {"text": row["passage"].strip()}

        names = ("lambada_test_plain_text.txt",)
        return read_records(
            context, "eval_lambada", names, "'passage'", convert, "lambada:test", convert, _read_passages
        )


def _read_passages(path, convert, expected: str) -> list:
    """Documents of a text's lines, as `fmjax.tasks.reading.read_jsonl`."""
    rows = [{"passage": line} for line in read_text(path).split("\n") if line.strip()]
    return convert_records(rows, convert, expected, path)


class Lambada(LambadaOpenAI):
    """OpenAI's passages under the short name."""

    name = "lambada"
    description = "lambada_openai under its short name"
