"""MMLU (Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300): school and professional knowledge in 57 subjects."""

from fmjax.errors import DataError
from fmjax.tasks.by_subset import BySubset
from fmjax.tasks.multiple_choice import Choices, LetteredChoice
from fmjax.tasks.reading import read_csv, read_zip

CATEGORIES = {
    "stem": (
        "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science "
        "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
        "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
        "high_school_mathematics high_school_physics high_school_statistics machine_learning"
    ),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
        "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law "
        "world_religions"
    ),
    "social_sciences": (
        "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
        "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
        "security_studies sociology us_foreign_policy"
    ),
    "other": (
        "business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
        "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"
    ),
}
CATEGORIES = {category: tuple(subjects.split()) for category, subjects in CATEGORIES.items()}
SUBJECTS = tuple(sorted(subject for subjects in CATEGORIES.values() for subject in subjects))


class MMLU(BySubset, LetteredChoice):
    """Answers are letters. `acc` is over all questions, `acc/SUBJECT` over those of a subject.

    Published scores are for `--num_shots=5`: the first questions of the subject's development set, in their order;
    without them is lm-evaluation-harness's default. TFDS has no MMLU.

    Args:
      subset: a subject, or a category, whose subjects are taken together; None is all.
    """

    name = "mmlu"
    description = "exam questions of 57 subjects, answered by a letter; mmlu_anatomy and so on for one"
    needs = "eval_mmlu/mmlu_csv.zip (MIT)"
    subsets = (*CATEGORIES, *SUBJECTS)
    examples_in_order = True

    def __init__(self, subset: str | None = None):
        if subset is not None:
            self.name = f"mmlu_{subset}"
        self.subjects = SUBJECTS if subset is None else CATEGORIES.get(subset, (subset,))

    def documents(self, context):
        return self._read(context, "test")

    def examples(self, context):
        return self._read(context, "dev")

    def _read(self, context, split: str) -> list[Choices]:
        path = context.file("eval_mmlu", "mmlu_csv.zip")
        members = {f"{split}/{subject}_{split}.csv": subject for subject in self.subjects}
        found = []
        for member, text in read_zip(path, tuple(members)).items():
            columns = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
            for number, row in enumerate(read_csv(text, f"{path}/{member}", columns), start=1):
                *texts, answer = row.values()
                if answer not in ("0", "1", "2", "3"):
                    raise DataError(f"{path}/{member}, question {number}: expected an answer of 0 to 3, got {answer!r}")
                found.append(Choices(texts[0].strip(), tuple(texts[1:]), int(answer), group=members[member]))
        return found

    def subset_of(self, document):
        return document.group

    def cluster(self, document):
        return None  # questions of a subject are drawn one by one

    def preamble_of(self, document):
        subject = document.group.replace("_", " ")
        return f"The following are multiple choice questions (with answers) about {subject}.\n\n"
