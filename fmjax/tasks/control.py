"""Control: episodes in an environment (`fmjax.tasks.environments`), by a policy or by a language model that is told."""

from fmjax.tasks.protocol import Rollout, Task


class Control(Task):
    """Episodes with the seeds 0 to 99; their mean return and length, and the part that the environment ended."""

    metrics = ("return", "steps", "ended")
    needs = "nothing: the environment is simulated"
    uses = ("rollout",)
    environment: str

    def documents(self, context):
        return list(range(100))

    def requests(self, document):
        return [Rollout(self.environment, document)]

    def statistics(self, document, answers):
        return dict(answers[0])


class GridControl(Control):
    """A goal on a grid of 5 x 5 within 16 steps; the return is the part of episodes that reach it."""

    name = environment = "grid"
    description = "the way to a goal on a small grid, told in words"


class CartPoleControl(Control):
    """The pole kept upright for 500 steps; the return is the number of steps."""

    name = environment = "cartpole"
    description = "a pole balanced on a cart (Gymnasium's CartPole-v1), told in words"
