"""Code: programs that are run (HumanEval, MBPP), and a function's hidden name by likelihood (CodeXGLUE)."""

import math
import pathlib
from collections.abc import Sequence

from fmjax.errors import DataError, InputError
from fmjax.small_files import read_json
from fmjax.tasks.multiple_choice import Choices, MultipleChoice
from fmjax.tasks.protocol import Generate, Task
from fmjax.tasks.reading import read_jsonl, read_text
from fmjax.tasks.sandbox import Limits, choose_unsafe, run_many


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Probability that one of `k` samples, drawn without replacement from those there are, passes.

    Chen et al. 2021: 1 - C(n - c, k) / C(n, k), the unbiased estimate of pass@k. Raises InputError for k above n.
    """
    if not 1 <= k <= num_samples or not 0 <= num_passed <= num_samples:
        raise InputError(f"pass@{k} of {num_passed} passes in {num_samples} samples: expected 1 <= k <= samples")
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


class Programs(Task):
    """A task whose documents ask for a program, which is run with tests, in the sandbox of `fmjax.tasks.sandbox`.

    Without a sandbox the task refuses, unless the variable FMJAX_UNSAFE_CODE is 1. One sample is greedy; several are
    drawn at temperature 0.2 from the top 0.95. `pass@k` is `pass_at_k`, for powers of two up to the number of samples.

    Args:
      samples: continuations of each prompt; with more than one, the task is called NAME_SAMPLES.

    Attributes:
      max_new_tokens, stop: of a continuation.
      limits: of a program.
    """

    version = "2"
    metrics = ("pass@1",)
    uses = ("generate",)
    max_new_tokens: int
    stop: tuple[str, ...]
    limits = Limits(timeout=3.0)

    def __init__(self, samples: str | int = "1"):
        if not str(samples).isdecimal() or int(samples) < 1:
            raise InputError(f"{self.name}:{samples}: expected a number of samples, such as {self.name}:20")
        self.samples = int(samples)
        if self.samples > 1:
            self.name = f"{self.name}_{self.samples}"
        self.metrics = tuple(f"pass@{2**i}" for i in range(self.samples.bit_length()))
        self._unsafe = False

    def problems(self, context) -> Sequence[dict]:
        """The documents."""
        raise NotImplementedError

    def prompt(self, document) -> str:
        raise NotImplementedError

    def program(self, document, continuation: str) -> str:
        """What is run: it passes if it runs to its end."""
        raise NotImplementedError

    def documents(self, context):
        found = self.problems(context)
        self._unsafe = choose_unsafe()  # refuses here, before the model computes
        return found

    def requests(self, document):
        drawn = dict(temperature=0.2, top_p=0.95) if self.samples > 1 else {}
        prompt = self.prompt(document)
        return [
            Generate(prompt, self.max_new_tokens, self.stop, sample=index, **drawn) for index in range(self.samples)
        ]

    def statistics(self, document, answers):
        programs = [self.program(document, answer) for answer in answers]
        passed = sum(outcome.passed for outcome in run_many(programs, self.limits, unsafe=self._unsafe))
        return {name: pass_at_k(len(answers), passed, int(name.removeprefix("pass@"))) for name in self.metrics}


class HumanEval(Programs):
    """HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374): function bodies from their docstrings.

    As lm-evaluation-harness's `humaneval`, and `humaneval_64`, whose 64 samples also give pass@1.
    """

    name = "humaneval"
    description = "Python functions written from their docstrings that pass their tests"
    needs = "eval_humaneval/HumanEval.jsonl.gz (MIT)"
    subsets = ("64",)
    max_new_tokens = 1024
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

    def problems(self, context):
        path = context.file("eval_humaneval", "HumanEval.jsonl.gz", "HumanEval.jsonl")
        names = ("task_id", "prompt", "test", "entry_point")
        return read_jsonl(
            path, lambda row: {n: str(row[n]) for n in names}, "'task_id', 'prompt', 'test', 'entry_point'"
        )

    def prompt(self, document):
        return document["prompt"]

    def program(self, document, continuation):
        return f"{document['prompt']}{continuation}\n{document['test']}\ncheck({document['entry_point']})"


class MBPP(Programs):
    """MBPP (Austin et al. 2021, https://arxiv.org/abs/2108.07732): short programs from a sentence and three asserts.

    As lm-evaluation-harness's `mbpp`: the 500 test problems (numbers 11 to 510), and problems 2, 3 and 4 in front. A
    problem's own setup code (`test_setup_code`), which the harness leaves out, runs before its asserts, as published.
    """

    name = "mbpp"
    description = "short Python programs written from a sentence and asserts that pass these"
    needs = "eval_mbpp/mbpp.jsonl (CC BY 4.0)"
    max_new_tokens = 256
    stop = ("[DONE]",)
    num_shots = 3
    examples_in_order = True

    def problems(self, context):
        return [row for row in _mbpp(context) if 11 <= row["task_id"] <= 510]

    def examples(self, context):
        return [row for row in _mbpp(context) if row["task_id"] in (2, 3, 4)]

    def prompt(self, document):
        tests = "\n".join(document["test_list"][:3])
        return (
            f"You are an expert Python programmer, and here is your task: {document['text']} Your code should pass "
            f"these tests:\n\n{tests}\n[BEGIN]\n"
        )

    def example(self, document):
        return f"{self.prompt(document)}{document['code']}\n[DONE]"

    def program(self, document, continuation):
        return "\n".join([continuation, document["test_setup_code"], *document["test_list"]])


def _mbpp(context) -> list[dict]:
    def convert(row):
        texts = {name: str(row[name]) for name in ("text", "code")}
        tests = [str(test) for test in row["test_list"]]
        return {
            "task_id": int(row["task_id"]),
            **texts,
            "test_setup_code": str(row["test_setup_code"]),
            "test_list": tests,
        }

    expected = "'task_id', 'text', 'code', 'test_setup_code', 'test_list'"
    return read_jsonl(context.file("eval_mbpp", "mbpp.jsonl"), convert, expected)


class ClozeMaxMin(MultipleChoice):
    """CodeXGLUE's cloze test of max and min in Python (Lu et al. 2021, https://arxiv.org/abs/2102.04664).

    A description and a function, in which one `max` or `min` is hidden. The paper asks masked LMs (CodeBERT); here a
    decoder scores what follows the gap under either filling: the word and the next `AFTER` tokens of the code.
    The answers are a file of their own, lines of "maxmin-1<CODESPLIT>max", as published. The variant of all words
    (ClozeTest-all, 930 of them) is not here.
    """

    name = "codexglue_cloze_maxmin"
    metrics = ("acc",)
    description = "whether max or min was hidden in a Python function"
    needs = "code_codexglue/cloze_maxmin_python.json and cloze_maxmin_python_answers.txt (C-UDA)"

    AFTER = 32
    WORDS = ("max", "min")

    def documents(self, context):
        path = context.file("code_codexglue", "cloze_maxmin_python.json", "clozeTest.json")
        names = ("cloze_maxmin_python_answers.txt", "answers.txt")
        path_of_answers = context.find("code_codexglue", *names)
        if path_of_answers is None:
            raise DataError(
                f"needs the answers, code_codexglue/{names[0]}, which are not among the questions: take answers.txt of "
                "Python from Code-Code/ClozeTesting-maxmin/evaluator/answers of github.com/microsoft/CodeXGLUE, or "
                f"evaluate {VisibleMaxMin.name}, whose answers stand in the questions"
            )
        answers = _answers(path_of_answers)
        found = []
        for row in _cloze_rows(path):
            if answers.get(row["idx"]) not in self.WORDS:
                raise DataError(f"{path}: no answer max or min for {row['idx']!r} in the file of answers")
            found.append(self.question(row, row["pl_tokens"].index("<mask>"), answers[row["idx"]]))
        return found

    def question(self, row: dict, place: int, word: str) -> Choices:
        """The question what stands at `place` of the code, where it is `word`."""
        code = row["pl_tokens"]
        before = " ".join(["#", *row["nl_tokens"]]) + "\n" + " ".join(code[:place])
        after = " ".join(code[place + 1 : place + 1 + self.AFTER])
        options = tuple(f"{one} {after}".rstrip() for one in self.WORDS)
        return Choices(before, options, self.WORDS.index(word))

    def statistics(self, document, answers):
        return {"acc": super().statistics(document, answers)["acc"]}


class VisibleMaxMin(ClozeMaxMin):
    """The same of functions that show another call of max or min, for data without their answers.

    The question is the first such call; the gap of the published question stays a gap.
    """

    name = "codexglue_cloze_maxmin_visible"
    description = "whether a call of max or min stood in a Python function, for calls that the data show"
    needs = "code_codexglue/cloze_maxmin_python.json (C-UDA)"

    def documents(self, context):
        path = context.file("code_codexglue", "cloze_maxmin_python.json", "clozeTest.json")
        found = []
        for row in _cloze_rows(path):
            code = row["pl_tokens"]
            calls = [
                place
                for place, (last, word, following) in enumerate(zip(code, code[1:], code[2:]), start=1)
                if word in self.WORDS and following == "(" and last != "."
            ]
            if calls:
                found.append(self.question(row, calls[0], code[calls[0]]))
        return found


def _cloze_rows(path: pathlib.Path) -> list[dict]:
    rows = read_json(path, list, DataError)
    for number, row in enumerate(rows):
        words = [row.get(name) for name in ("nl_tokens", "pl_tokens")] if isinstance(row, dict) else []
        if not words or not all(isinstance(w, list) for w in words) or "idx" not in row or "<mask>" not in words[1]:
            raise DataError(
                f"{path}, question {number}: expected 'idx', 'nl_tokens' and 'pl_tokens' with a '<mask>', "
                f"got {str(row)[:80]}"
            )
    return rows


def _answers(path: pathlib.Path) -> dict[str, str]:
    """Word by question, from lines of QUESTION<CODESPLIT>WORD."""
    pairs = [line.partition("<CODESPLIT>") for line in read_text(path).splitlines() if line.strip()]
    for number, (key, split, word) in enumerate(pairs, start=1):
        if not split:
            raise DataError(f"{path}, line {number}: expected QUESTION<CODESPLIT>WORD, got {key[:80]!r}")
    return {key.strip(): word.strip() for key, _, word in pairs}
