"""BIG-Bench Hard (Suzgun et al. 2022, https://arxiv.org/abs/2210.09261): 27 tasks that models found hard."""

import json

from fmjax.errors import DataError
from fmjax.tasks.by_subset import BySubset
from fmjax.tasks.protocol import Generate, Task
from fmjax.tasks.reading import convert_records, read_zip

_DEDUCTION = "A logical deduction task which requires deducing the order of a sequence of objects."
_SHUFFLED = (
    "A task requiring determining the final positions of a set of objects given their initial positions and a "
    "description of a sequence of swaps."
)
_SARCASM = (
    "Determine which of two sentences is sarcastic.\n\nAccording to Cambridge University Dictionary, sarcasm is "
    "\"the use of remarks that clearly mean the opposite of what they say, made in order to hurt someone's feelings or "
    'to criticize something in a humorous way." Sarcastic sentences often contain satirical or ironic utterances, '
    "hyperboles, ambivalent or witty remarks."
)

# The instruction that the benchmark publishes with each of its tasks.
INSTRUCTIONS = {
    "boolean_expressions": "Evaluate the result of a random Boolean expression.",
    "causal_judgement": "Answer questions about causal attribution.",
    "date_understanding": "Infer the date from context.",
    "disambiguation_qa": "Clarify the meaning of sentences with ambiguous pronouns.",
    "dyck_languages": "Correctly close a Dyck-n word.",
    "formal_fallacies": "Distinguish deductively valid arguments from formal fallacies.",
    "geometric_shapes": "Name geometric shapes from their SVG paths.",
    "hyperbaton": "Order adjectives correctly in English sentences.",
    "logical_deduction_five_objects": _DEDUCTION,
    "logical_deduction_seven_objects": _DEDUCTION,
    "logical_deduction_three_objects": _DEDUCTION,
    "movie_recommendation": "Recommend movies similar to the given list of movies.",
    "multistep_arithmetic_two": "Solve multi-step arithmetic problems.",
    "navigate": (
        "Given a series of navigation instructions, determine whether one would end up back at the starting point."
    ),
    "object_counting": "Questions that involve enumerating objects and asking the model to count them.",
    "penguins_in_a_table": "Answer questions about a table of penguins and their attributes.",
    "reasoning_about_colored_objects": "Answer extremely simple questions about the colors of objects on a surface.",
    "ruin_names": "Select the humorous edit that 'ruins' the input movie or musical artist name.",
    "salient_translation_error_detection": (
        "Detect the type of error in an English translation of a German source sentence."
    ),
    "snarks": _SARCASM,
    "sports_understanding": (
        "Determine whether an artificially constructed sentence relating to sports is plausible or not."
    ),
    "temporal_sequences": "Task description: Answer questions about which times certain events could have occurred.",
    "tracking_shuffled_objects_five_objects": _SHUFFLED,
    "tracking_shuffled_objects_seven_objects": _SHUFFLED,
    "tracking_shuffled_objects_three_objects": _SHUFFLED,
    "web_of_lies": "Evaluate a random boolean function expressed as a word problem.",
    "word_sorting": "Sort a list of words.",
}


class _Asked(Task):
    """Questions with one right answer, which is to be written as it stands."""

    metrics = ("exact_match",)
    uses = ("generate",)

    def example(self, document):
        return f"{self._question(document)} {document['target']}"

    def requests(self, document):
        return [Generate(self._question(document), max_new_tokens=256, stop=("</s>", "Q", "\n\n"))]

    def answer_of(self, text):
        return text.strip() or None

    def statistics(self, document, answers):
        return {"exact_match": float(answers[0].strip() == document["target"].strip())}

    def _question(self, document) -> str:
        return f"Q: {document['input']}\nA:"


class BBH(BySubset, _Asked):
    """Exact match of the answer, after three examples without chains of thought.

    Instruction, format and stop strings are those of lm-evaluation-harness's `bbh_fewshot_SUBSET`. Its three examples
    a subset were written for it and are not among the documents, so here they are drawn from the subset's others: the
    scores do not compare, hence another name. Answers are compared without the spaces around them. TFDS has no BBH.

    Args:
      subset: one of the 27; None is all.
    """

    name = "bbh"
    description = "27 tasks of BIG-Bench that are hard for models, answered directly; bbh_NAME for one"
    needs = "eval_bbh/bbh.zip (MIT)"
    version = "2"
    num_shots = 3
    subsets = tuple(INSTRUCTIONS)

    def __init__(self, subset: str | None = None):
        if subset is not None:
            self.name = f"bbh_{subset}"
        self.chosen = self.subsets if subset is None else (subset,)

    def documents(self, context):
        path = context.file("eval_bbh", "bbh.zip")
        found = []
        for name, text in read_zip(path, [f"{subset}.json" for subset in self.chosen]).items():
            found += _read(text, name.removesuffix(".json"), f"{path}/{name}")
        return found

    def examples(self, context):
        return self.documents(context)

    def subset_of(self, document):
        return document["subset"]

    def preamble_of(self, document):
        return INSTRUCTIONS[document["subset"]] + "\n\n"


def _read(text: str, subset: str, where: str) -> list[dict]:
    def convert(row):
        return {"subset": subset, "input": str(row["input"]), "target": str(row["target"])}

    try:
        rows = json.loads(text)["examples"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{where}: expected a JSON object with 'examples'") from None
    return convert_records(rows, convert, "'input' and 'target'", where)
