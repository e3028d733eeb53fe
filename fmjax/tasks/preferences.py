"""How well a reward model tells better answers from worse ones, and how well it knows."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from fmjax.data.chats.comparisons import read_comparison
from fmjax.data.chats.ranked import PreferenceData
from fmjax.data.chats.sources import open_chats
from fmjax.data.sources import SourceSpec
from fmjax.errors import DataError
from fmjax.tasks.calibration import expected_calibration_error
from fmjax.tasks.protocol import Apply, Task

SUBSETS = ("task", "subset", "category")
"""Fields of a record that say of which kind it is; the first that is there counts."""
MOST = 200
"""Of the subsets that are told by themselves."""


class Preferences(Task):
    """Judged answers, as `data.name = "preferences"` reads them; a document is a pair of them, of a record with K
    answers each pair whose scores differ.

    `acc`: whether the better answer has the higher score; a tie counts half. `ece` and `ece_mass`: calibration errors
    (`fmjax.tasks.calibration`) of the confidence sigmoid(|difference|) that a Bradley-Terry model has in its choice.
    `margin`: the better one's score less the other's. `acc/KIND` and `ece/KIND` of each kind, where records say it.
    """

    name = "preferences"
    metrics = ("acc", "ece", "ece_mass", "margin")
    description = "preferences:PATH, whether a reward model scores the better answer higher, and its calibration"
    needs = "records of judged answers at PATH, or builtin"
    uses = ("reward",)

    def __init__(self, path: str):
        self.path, self.name = path, f"preferences:{path}"

    def documents(self, context):
        spec = SourceSpec(self.path)
        reader = _with_subset
        found = open_chats(spec, pathlib.Path(), reader, PreferenceData.BUILTIN, skip_bad=False)
        if (file := pathlib.Path(self.path).expanduser()).is_file():
            context.note(file.name, file)
        documents = []
        for _, name, (comparison, subset) in found.read():
            if comparison.tools:
                raise DataError(f"{comparison.where}: answers with tools cannot be scored here; leave the record out")
            prompt = json.dumps(comparison.prompt, ensure_ascii=False)
            said = [str(answer["content"]) for answer in comparison.answers]
            pairs = [(i, j) for i, a in enumerate(comparison.scores) for j, b in enumerate(comparison.scores) if a > b]
            documents += [
                {"record": name, "prompt": prompt, "better": said[i], "worse": said[j], "subset": subset}
                for i, j in pairs
            ]
        return documents

    def requests(self, document):
        scores = f"{__name__}:scores"
        return [Apply(scores, (document["prompt"], document[which])) for which in ("better", "worse")]

    def statistics(self, document, answers):
        margin = float(answers[0]) - float(answers[1])
        right = 0.5 if margin == 0 else float(margin > 0)
        confidence = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
        found = {"acc": right, "margin": margin, "confidence": confidence}
        return found | ({f"of/{document['subset']}": 1.0} if document["subset"] else {})

    def reduce_documents(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        right, sure = statistics["acc"], statistics["confidence"]
        found = {
            "acc": float(right.mean()), "ece": expected_calibration_error(sure, right),
            "ece_mass": expected_calibration_error(sure, right, equal_mass=True),
            "margin": float(statistics["margin"].mean()),
        }  # fmt: skip
        kinds = sorted(name for name in statistics if name.startswith("of/"))
        for name in kinds if 1 < len(kinds) <= MOST else ():
            place, kind = statistics[name] > 0, name.removeprefix("of/")
            if place.any():  # a resample may hold none
                found[f"acc/{kind}"] = float(right[place].mean())
                found[f"ece/{kind}"] = expected_calibration_error(sure[place], right[place])
        return found

    def reduce(self, totals):
        return {name: totals[name] / totals["documents"] for name in ("acc", "margin")}

    def cluster(self, document):
        return document["record"]


def _with_subset(record, where: str):
    """(the judged answers of a record, which kind it is or "")."""
    comparison = read_comparison(record, where)
    kind = next((record[name] for name in SUBSETS if record.get(name) is not None), "")
    return comparison, str(kind)


def scores(model, inputs: Sequence[tuple[str, str]]) -> list[float]:
    """Of (messages as JSON, reply) each the score, by a reward model."""
    return model.can("reward")([(json.loads(prompt), reply) for prompt, reply in inputs])
