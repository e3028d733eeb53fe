"""Multiple choice about the everyday world: HellaSwag, PIQA, ARC, WinoGrande, BoolQ, OpenBookQA, COPA.

Prompts are lm-evaluation-harness's, from the published records (TFDS, HellaSwag's and PIQA's own files) as from files
in llm-foundry's schema (`eval_commonsense_mc`), which hold prompts that differ little.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Sequence

from fmjax.errors import DataError
from fmjax.tasks.multiple_choice import Choices, MultipleChoice
from fmjax.tasks.reading import read_jsonl, read_records, read_text


class _Commonsense(MultipleChoice):
    """Reads the first of `files` in `folder` that exists, else TFDS. Examples are then of its training split, otherwise
    other documents of the file, which has one split alone.

    Attributes:
      folder, files: of the local data.
      tfds, tfds_examples: TFDS splits, of documents and of examples.
      expected: what a line of the file must hold.
    """

    folder = "eval_commonsense_mc"
    files: tuple[str, ...]
    tfds: str
    tfds_examples: str
    expected = "'query', 'choices', 'gold'"

    def cluster(self, document):
        return document.group or document.context  # some questions are asked twice, with other options

    def documents(self, context):
        return self._read(context, self.tfds)

    def examples(self, context):
        return self._read(context, self.tfds_examples)

    def _read(self, context, words):
        converters = self.expected, self.from_file, words, self.from_tfds
        return read_records(context, self.folder, self.files, *converters)

    def from_file(self, row: dict) -> Choices:
        return Choices(self.prompt(str(row["query"])), tuple(map(str, row["choices"])), int(row["gold"]))

    def prompt(self, query: str) -> str:
        """The context from the file's 'query'."""
        return query

    def from_tfds(self, record: dict) -> Choices:
        raise NotImplementedError


class HellaSwag(_Commonsense):
    """HellaSwag (Zellers et al. 2019, https://arxiv.org/abs/1905.07830): which sentence comes next.

    TFDS keeps a context's two parts joined, so there the second is not capitalised, as it is from the original file.
    """

    name, version = "hellaswag", "2"
    description = "which ending follows a description of an activity"
    needs = "eval_hellaswag/hellaswag_val.jsonl or hellaswag_val_1000.jsonl, or TFDS hellaswag (MIT)"
    folder, files = "eval_hellaswag", ("hellaswag_val.jsonl", "hellaswag_val_1000.jsonl")
    tfds, tfds_examples = "hellaswag:validation", "hellaswag:train"
    expected = "'activity_label', 'ctx_a', 'ctx_b', 'endings', 'label', 'source_id'"

    def from_file(self, row):
        return self._choices(row, f"{row['ctx_a']} {row['ctx_b'].capitalize()}")

    def from_tfds(self, record):
        return self._choices(record, record["context"])

    def _choices(self, row, context: str) -> Choices:
        endings = tuple(clean_wikihow(ending) for ending in row["endings"])
        text = clean_wikihow(f"{row['activity_label']}: {context}")
        return Choices(text, endings, int(row["label"]), group=str(row["source_id"]))

    def asks(self, document):
        return document.group  # clips of one video overlap, and one may begin with what another is to end with


def clean_wikihow(text: str) -> str:
    """Text without the bracketed marks of the WikiHow articles in HellaSwag, as lm-evaluation-harness removes them."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


class PIQA(_Commonsense):
    """PIQA (Bisk et al. 2020, https://arxiv.org/abs/1911.11641): which of two ways reaches a goal."""

    name = "piqa"
    description = "which of two solutions reaches a physical goal"
    needs = "eval_piqa/valid.jsonl and valid-labels.lst, or TFDS piqa (AFL-3.0)"
    folder, files, tfds, tfds_examples = "eval_piqa", ("valid.jsonl",), "piqa:validation", "piqa:train"
    expected = "'goal', 'sol1', 'sol2'"

    def _read(self, context, words):
        path = context.find(self.folder, *self.files)
        if path is None:
            return super()._read(context, words)
        labels = iter(read_text(context.file(self.folder, "valid-labels.lst")).split())
        rows = read_jsonl(path, lambda row: row | {"label": next(labels, None)}, self.expected)
        if rows and rows[-1]["label"] is None or next(labels, None) is not None:
            raise DataError(f"{path}: valid-labels.lst beside it has another number of lines than its {len(rows)}")
        return [self.from_tfds(row) for row in rows]

    def from_tfds(self, record):
        options = str(record["sol1"]), str(record["sol2"])
        return Choices(f"Question: {record['goal']}\nAnswer:", options, int(record["label"]))


class ARCEasy(_Commonsense):
    """ARC, easy part (Clark et al. 2018, https://arxiv.org/abs/1803.05457): science questions from school tests."""

    name = "arc_easy"
    description = "science questions of school tests, the easy ones"
    needs = "eval_commonsense_mc/arc_easy.jsonl, or TFDS ai2_arc (CC BY-SA 4.0)"
    files, tfds, tfds_examples = ("arc_easy.jsonl",), "ai2_arc/ARC-Easy:test", "ai2_arc/ARC-Easy:train"

    def prompt(self, query):
        return f"{query}\nAnswer:"

    def from_tfds(self, record):
        choices = record["choices"]
        gold = list(choices["label"]).index(record["answerKey"])
        return Choices(f"Question: {record['question']}\nAnswer:", tuple(choices["text"]), gold)


class ARCChallenge(ARCEasy):
    """ARC, challenge part: questions that neither retrieval nor word co-occurrence answers."""

    name = "arc_challenge"
    description = "science questions of school tests, the hard ones"
    needs = "eval_commonsense_mc/arc_challenge.jsonl, or TFDS ai2_arc (CC BY-SA 4.0)"
    files = ("arc_challenge.jsonl",)
    tfds, tfds_examples = "ai2_arc/ARC-Challenge:test", "ai2_arc/ARC-Challenge:train"


class WinoGrande(_Commonsense):
    """WinoGrande (Sakaguchi et al. 2019, https://arxiv.org/abs/1907.10641), by partial evaluation.

    Each option fills the gap of the context, and the end of the sentence, the same for both, is scored. Most sentences
    have a twin, in which a word differs and the other option is right: a group of its own (`twins`).
    """

    name = "winogrande"
    metrics = ("acc",)
    description = "which of two names a pronoun's gap means, by the likelihood of what follows"
    needs = "eval_commonsense_mc/winogrande.jsonl, or TFDS winogrande (CC BY 4.0)"
    files, tfds, tfds_examples = ("winogrande.jsonl",), "winogrande:validation", "winogrande:train_xl"
    expected = "'context_options', 'continuation', 'gold'"

    def _read(self, context, words):
        found = super()._read(context, words)
        return [dataclasses.replace(one, group=group) for one, group in zip(found, twins(found))]

    def asks(self, document):
        return document.group

    def from_file(self, row):
        return self._choices(row["context_options"], str(row["continuation"]), row["gold"])

    def from_tfds(self, record):
        before, gap, after = record["sentence"].partition("_")
        if not gap:
            raise ValueError("no gap")
        return self._choices([before + record["option1"], before + record["option2"]], after.strip(), record["label"])

    def _choices(self, contexts, ending: str, gold) -> Choices:
        return Choices("", (ending,) * len(contexts), int(gold), tuple(map(str, contexts)))


def twins(documents: Sequence[Choices]) -> list[str]:
    """For each sentence of WinoGrande, its text with the gap where an option was, or that of its twin.

    Twins fill the gap from the same two options and share at least half of their words. (Of the validation set's pairs
    with equal options, twins share more than 0.5 of them and others less than 0.35.)
    """
    sentences, others = [], defaultdict(list)
    for document in documents:
        words = [text.split() for text in document.contexts]
        same = next((i for i, (a, b) in enumerate(zip(*words)) if a != b), min(map(len, words)))
        sentence = " ".join([*words[0][:same], "_", document.options[0]])
        alike = others[tuple(sorted(" ".join(one[same:]) for one in words))]
        alike.append(sentence)
        sentences.append((sentence, alike))
    found = []
    for sentence, alike in sentences:
        words = {*sentence.lower().split()}
        texts = [(one, {*one.lower().split()}) for one in alike]
        found.append(min(one for one, its in texts if 2 * len(words & its) >= len(words | its)))
    return found


class BoolQ(_Commonsense):
    """BoolQ (Clark et al. 2019, https://arxiv.org/abs/1905.10044): yes or no about a passage.

    Passages are "TITLE -- ...", as in SuperGLUE and lm-evaluation-harness; those of the local file lack the title, and
    its label "Passage: " is left out.
    """

    name = "boolq"
    version = "2"
    metrics = ("acc",)
    description = "yes or no to a question about a passage"
    needs = "eval_commonsense_mc/boolq.jsonl, or TFDS bool_q (CC BY-SA 3.0)"
    files, tfds, tfds_examples = ("boolq.jsonl",), "bool_q:validation", "bool_q:train"

    def prompt(self, query):
        return f"{query.removeprefix('Passage: ')}\nAnswer:"

    def cluster(self, document):
        return document.context.rpartition("\nQuestion: ")[0]  # the passage

    def from_tfds(self, record):
        passage = f"{record['title']} -- {record['passage']}"
        return Choices(f"{passage}\nQuestion: {record['question']}?\nAnswer:", ("no", "yes"), int(record["answer"]))


class OpenBookQA(_Commonsense):
    """OpenBookQA (Mihaylov et al. 2018, https://arxiv.org/abs/1809.02789), without the book."""

    name = "openbookqa"
    description = "elementary science questions that take common knowledge besides"
    needs = "eval_commonsense_mc/openbook_qa.jsonl, or TFDS openbookqa (Apache-2.0)"
    files, tfds, tfds_examples = ("openbook_qa.jsonl",), "openbookqa:test", "openbookqa:train"

    def from_tfds(self, record):
        question = record["question"]
        return Choices(question["stem"], tuple(question[f"choice_{c}"] for c in "ABCD"), int(record["answerKey"]))


class COPA(_Commonsense):
    """COPA (Roemmele et al. 2011; SuperGLUE, https://arxiv.org/abs/1905.00537): cause or effect of a premise.

    As in lm-evaluation-harness two spaces stand before an option, and no comma before "because" and "therefore", where
    the local file has one.
    """

    name = "copa"
    version = "2"
    metrics = ("acc",)
    description = "which of two sentences is the cause or the effect of another"
    needs = "eval_commonsense_mc/copa.jsonl, or TFDS super_glue/copa (BSD-2-Clause)"
    files, tfds, tfds_examples = ("copa.jsonl",), "super_glue/copa:validation", "super_glue/copa:train"
    delimiter = "  "

    def prompt(self, query):
        premise, _, connector = query.rpartition(", ")
        if connector not in ("because", "therefore"):
            raise ValueError("no connector")
        return f"{premise} {connector}"

    def from_tfds(self, record):
        connector = {"cause": "because", "effect": "therefore"}[record["question"]]
        options = tuple(record[name][0].lower() + record[name][1:] for name in ("choice1", "choice2"))
        return Choices(f"{record['premise'].strip()[:-1]} {connector}", options, int(record["label"]))
