"""GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): school mathematics in words, solved step by step."""

import re

from fmjax.tasks.protocol import Generate, Task
from fmjax.tasks.reading import read_records


class GSM8K(Task):
    """Whether the number that a written solution ends with is right, after five solved examples of the training set.

    exact_match_strict takes the number behind the first "####", as in the examples; exact_match_flexible the last
    number of the text. Both are lm-evaluation-harness's `exact_match` with the filters strict-match and
    flexible-extract.
    """

    name = "gsm8k"
    metrics = ("exact_match_strict", "exact_match_flexible")
    description = "the final number of a school problem solved in words"
    needs = "eval_gsm8k/test.jsonl and train.jsonl, or TFDS gsm8k (MIT)"
    uses = ("generate",)
    version = "2"
    num_shots = 5

    def documents(self, context):
        return _read(context, "test")

    def examples(self, context):
        return _read(context, "train")

    def example(self, document):
        return f"{_question(document)} {document['answer']}"

    def requests(self, document):
        return [Generate(_question(document), max_new_tokens=256, stop=("Question:", "</s>", "<|im_end|>"))]

    def answer_of(self, text):
        found = last_number(text)
        return None if found == NONE else plain_number(found)

    def statistics(self, document, answers):
        (text,), gold = answers, plain_number(document["answer"])
        return {
            "exact_match_strict": float(plain_number(strict_number(text)) == gold),
            "exact_match_flexible": float(plain_number(last_number(text)) == gold),
        }


NONE = "[invalid]"
"""Stands for the number of a text that has none."""


def strict_number(text: str) -> str:
    """The number behind the first "#### " that one follows, `NONE` where there is none."""
    found = re.search(r"#### (-?[0-9.,]+)", text)
    return found[1] if found else NONE


def last_number(text: str) -> str:
    """The last number of a text, with what stands around it of "$", "." and ",", `NONE` where there is none."""
    found = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", text)
    return found[-1] if found else NONE


def plain_number(text: str) -> str:
    """What is compared: behind the last "#### ", without commas, dollar signs and a full stop at the end."""
    text = re.sub(r".*#### ", "", re.sub(r"[,$]", "", text), flags=re.DOTALL)
    return re.sub(r"\.$", "", text).lower()


def _question(document) -> str:
    return f"Question: {document['question']}\nAnswer:"


def _read(context, split: str) -> list[dict]:
    def convert(row):
        return {"question": str(row["question"]), "answer": str(row["answer"])}

    names, words = (f"{split}.jsonl",), f"gsm8k:{split}"
    return read_records(context, "eval_gsm8k", names, "'question' and 'answer'", convert, words, convert)
