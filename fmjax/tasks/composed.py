"""Tasks made of two bases: data, and a way to answer."""

from fmjax.tasks.protocol import Task


class Composed(Task):
    """A class with a data set and a way among its bases is a task, called by both unless it has a name of its own.

    Attributes:
      dataset, about: of the data set: its name, and what is asked, in a few words.
      suffix, how: of the way to answer; in `how`, DATASET stands for `dataset`, and COUNT for `argument`.
      argument: what a number behind the name is given as.
    """

    dataset = about = suffix = how = ""
    argument = "COUNT"

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if cls.dataset and cls.how and "name" not in vars(cls):
            cls.name = cls.dataset + cls.suffix
            how = cls.how.replace("DATASET", cls.dataset).replace("COUNT", cls.argument)
            cls.description = f"{cls.about}, {how}"
