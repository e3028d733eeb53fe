"""LAMBADA (Paperno et al. 2016, https://arxiv.org/abs/1606.06031): the last word of a passage."""

from fmjax.tasks.protocol import Score, Task, exp
from fmjax.tasks.reading import read_jsonl


class LambadaOpenAI(Task):
    """Passages as OpenAI prepared them for GPT-2; the context is all but the last word, split at spaces."""

    name = "lambada_openai"
    metrics = ("acc", "perplexity")
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


class Lambada(LambadaOpenAI):
    """The same under its short name."""

    name = "lambada"
