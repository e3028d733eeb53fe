"""`python -m tests.training.killed MOMENT STEP FLAGS...`: `fmjax.train`, ended by a signal to itself at a moment.

MOMENT: "rollout" (while rewards are computed), "during" (while the device computes the update), both by SIGKILL;
"asked": SIGTERM while rewards are computed. STEP: the step it comes at, or a later one.
"""

import os
import signal
import sys


def small_letters(prompts, replies):
    """A reward with a different number for almost every reply."""
    return [sum(ord(one) % 101 for one in reply) / 100 + len(reply) for reply in replies]


def main(moment: str, step: int, flags: list[str]) -> None:
    from fmjax import train
    from fmjax.commands import cli
    from fmjax.objectives.reinforce import Reinforce
    from fmjax.training.clock import Completions
    from fmjax.training.experience import Experience

    now = [-1]

    def signalled(cls, method, wanted, number=signal.SIGKILL):
        inner = getattr(cls, method)

        def outer(self, *args, **kwargs):
            if moment == wanted and now[0] >= step:
                os.kill(os.getpid(), number)
            return inner(self, *args, **kwargs)

        setattr(cls, method, outer)

    due = Experience.due

    def noted(self, at):
        now[0] = at
        return due(self, at)

    Experience.due = noted
    signalled(Reinforce, "graded", "rollout")
    signalled(Reinforce, "graded", "asked", signal.SIGTERM)
    signalled(Completions, "of", "during")
    sys.argv = ["fmjax.train", *flags]
    cli.leave(cli.run(train.main))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
