"""The trainer, the planner and the evaluator know no name of a model and no modality: what they ask is told them by the
module, the objective, the data and the codecs."""

import ast
import pathlib
import re

from fmjax.models import MODELS
from fmjax.objectives import OBJECTIVES

ROOT = pathlib.Path(__file__).parents[1] / "fmjax"
FILES = [
    *sorted((ROOT / "training").glob("*.py")),
    *sorted((ROOT / "planning").glob("*.py")),
    *(ROOT / "tasks" / f"{name}.py" for name in ("runner", "prepared", "answers", "store", "report", "sample_log")),
]
MODALITIES = (
    "text texts token tokens tokenizer image images pixel pixels png audio waveform wav video videos gif label labels"
)
EXCEPTIONS = {
    # Rates and lengths are told in tokens where the batch has `tokens`, in examples elsewhere.
    "training/clock.py": "tokens",
    "planning/report.py": "tokens",
    "planning/plan.py": "tokens text",  # text: the compiled program's
    "training/checks.py": "tokens text",  # what remedies for text data a message names
    # The tokenizer is a part of OpenData and Model, which a run saves and compares; texts are samples without a codec.
    "training/start.py": "tokenizer",
    "training/results.py": "text texts png",  # png: loss.png
    "training/progress.py": "tokens",
    "training/final_tasks.py": "tokenizer texts",
    "training/settings.py": "tokenizer",
    # Of numbers and gradients.
    "training/optimizer.py": "clip",
    "training/budget.py": "clip",
    "training/sampling.py": "text texts",
    # Kinds of TensorBoard's summaries, and of the loss curve's file.
    "training/metrics.py": "text png label",
    "training/tensorboard.py": "text image",
    # The compiler's output is text; so is a file of the system's; `dim_labels` and `token` are XLA's words.
    "planning/counts.py": "text labels",
    "planning/hlo.py": "text token",
    "planning/topology.py": "text",
    # The requests Score, Rolling and Generate are about texts; a label is a progress bar's.
    "tasks/answers.py": "text texts tokens tokenizer label",
    "tasks/runner.py": "text tokenizer label",
    "tasks/report.py": "text tokens tokenizer",
    "tasks/sample_log.py": "text",  # a file's
}
"""Words by file, each for the reason in front of it or behind it."""


def names() -> set[str]:
    """Registered names of models and objectives, and their classes, in small letters."""
    found = set()
    for registry in (MODELS, OBJECTIVES):
        found |= {*registry.table, *(path.partition(":")[2] for path in registry.table.values())}
    return {name.lower() for name in found}


def words(source: str) -> set[str]:
    """The words of code: identifiers whole and in their parts, and those of strings that are no docstrings."""
    found, docstrings = [], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(node.value)
        for field in ("id", "attr", "arg", "name", "module"):
            value = getattr(node, field, None)
            found += [value] if isinstance(value, str) else []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            found.append(node.value)
    text = " ".join(found)
    parts = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", text)
    return {word.lower() for word in [*re.findall(r"\w+", text), *parts]}


def test_words_are_those_of_code_alone():
    source = '"""bert"""\ndef is_gpt(tokenTypes):\n    "image"  # audio\n    return Llama("a png", x.label_names)\n'
    assert words(source) >= {"is_gpt", "gpt", "token", "types", "llama", "png", "label", "names"}
    assert not words(source) & {"bert", "image", "audio"}


def test_the_core_knows_no_name_of_a_model_and_no_modality():
    known, found = names() | set(MODALITIES.split()), {}
    for path in FILES:
        name = str(path.relative_to(ROOT))
        if there := (words(path.read_text(encoding="utf-8")) & known):
            found[name] = there
    unwanted = {name: sorted(there - set(EXCEPTIONS.get(name, "").split())) for name, there in found.items()}
    assert not {name: there for name, there in unwanted.items() if there}
    stale = {name: set(there.split()) - found.get(name, set()) for name, there in EXCEPTIONS.items()}
    assert not {name: there for name, there in stale.items() if there}
