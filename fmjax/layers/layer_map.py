"""Which layers of a deeper stack go with those of a shallower one: what a student begins with, or learns from."""

from collections.abc import Sequence

from fmjax.errors import ConfigError
from fmjax.registry import nearest

NAMED = ("every", "spread", "last")


def layer_map(layers: Sequence[int] | str, student: int, teacher: int, where: str) -> tuple[int, ...]:
    """For each of `student` layers the number, from 0, of the one of `teacher` layers that goes with it; -1 for none.

    Args:
      layers: one number for each of the student's layers, -1 for one that goes with none; or
        "every": each goes with the last of as many equal parts of the teacher's stack, every third one of 30 being 2,
          5, ..., 29 (the uniform map of TinyBERT, Jiao et al. 2020, https://arxiv.org/abs/1909.10351);
        "spread": from the first to the last, as evenly as whole numbers allow; of 12 into 6 they are DistilBERT's 0, 2,
          4, 7, 9, 11 (Sanh et al. 2019, https://arxiv.org/abs/1910.01108, and its code);
        "last": the last goes with the last, the others with none.
      student, teacher: how many layers each has.
      where: the key of the config, for messages.

    Raises ConfigError for another name, a number that is no layer, a list of another length, and "every" of a depth
    that does not divide.
    """
    if isinstance(layers, str):
        return _named(layers, student, teacher, where)
    layers = tuple(layers)
    if len(layers) != student:
        raise ConfigError(
            f"{where} = {layers} names {len(layers)} layers, and the student has {student}: give one for each, -1 for "
            "none"
        )
    if wrong := [one for one in layers if not -1 <= one < teacher]:
        raise ConfigError(
            f"{where} = {layers}: the teacher has no layer {wrong[0]}; its {teacher} are 0 to {teacher - 1}"
        )
    return layers


def _named(name: str, student: int, teacher: int, where: str) -> tuple[int, ...]:
    if name not in NAMED:
        known = ", ".join(map(repr, NAMED))
        raise ConfigError(f"{where} = {name!r} is no map of layers{nearest(name, NAMED)} Known: {known}, or numbers")
    if name == "last":
        return (-1,) * (student - 1) + (teacher - 1,)
    if teacher < student:
        raise ConfigError(
            f"{where} = {name!r} picks {student} different layers, and the teacher has {teacher}; name one for each, "
            "such as (0, 0, 1, 1)"
        )
    if name == "every":
        if teacher % student:
            raise ConfigError(
                f"{where} = 'every' cuts the teacher's {teacher} layers into {student} equal parts, which do not "
                "divide; take 'spread', or name one for each"
            )
        return tuple((i + 1) * (teacher // student) - 1 for i in range(student))
    if student == 1:
        return (0,)
    return tuple((2 * i * (teacher - 1) + student - 1) // (2 * (student - 1)) for i in range(student))
