"""A teacher, whose distributions a student is to have: what is common to those who learn of one."""

import dataclasses
from typing import ClassVar

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice
from fmjax.objectives.base import check_reads_alike
from fmjax.objectives.divergences import FORMS, Divergence


@dataclasses.dataclass(frozen=True)
class WithTeacher:
    """The part of an objective that names a teacher, and how far from it a student is.

    Attributes:
      teacher: a run, a published folder or a hub id, with the student's vocabulary. It is not saved with the run.
      beta: of the divergence: 0 is KL(teacher || student), 1 is KL(student || teacher).
      form: of what lies between, with the mixture M = (1 - beta) student + beta teacher: "continuous", (1 - beta)
        KL(teacher || M) + beta KL(student || M), which has these two at its ends; "paper", beta KL(teacher || M') + (1
        - beta) KL(student || M') with M' = beta teacher + (1 - beta) student, which vanishes there, so that 0 and 1 are
        refused.
    """

    CUT_ALIKE: ClassVar[tuple[str, ...]] = ("teacher",)

    teacher: str = ""
    beta: float = 0.0
    form: str = "continuous"

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.form", self.form, FORMS)
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"objective.beta = {self.beta}: expected 0 to 1")
        if self.form == "paper" and self.beta in (0, 1):
            raise ConfigError(
                f"objective.beta = {self.beta} with objective.form = 'paper' is a divergence of 0 everywhere; take "
                "'continuous', which is a KL there"
            )

    @property
    def divergence(self) -> Divergence:
        """How far a student is from its teacher, both at the objective's temperature."""
        return Divergence(self.beta, self.form, self.temperature)

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return {"teacher": self.teacher} if self.teacher else {}

    def check_models(self, module, models) -> None:
        """Raises ConfigError where the teacher does not answer as the module does."""
        if self.teacher:
            self.check_teacher(module, models["teacher"].module)

    def check_teacher(self, module, teacher) -> None:
        """Raises ConfigError where a teacher gives no logits for texts, or has another vocabulary."""
        check_reads_alike(self, "teacher", teacher, module)
