"""Chats about sums of small numbers, made by rule: something to learn a chat from in a minute, without any file."""

from collections.abc import Callable

from fmjax.data.shuffle import Draws

NUMBER = 2_000
LARGEST = 20


def chats(number: int = NUMBER) -> list[dict]:
    """Records with `messages`: a sum of two numbers up to 20, often with a second question about the result; a quarter
    have a system message, which asks for the bare number. Chat i is a pure function of i."""
    return [{"messages": _chat(Draws("arithmetic chats", index))} for index in range(number)]


def _chat(draws: Draws) -> list[dict[str, str]]:
    brief = draws.below(4) == 0
    first, second = draws.below(LARGEST + 1), draws.below(LARGEST + 1)
    result = first + second
    said = [(f"What is {first} + {second}?", f"{first} + {second}", result)]
    if draws.below(2):
        more = draws.below(LARGEST + 1)
        said.append((f"And {more} more?", f"{result} + {more}", result + more))
    messages = [{"role": "system", "content": "Only the number."}] if brief else []
    for question, terms, found in said:
        reply = f"{found}" if brief else f"{terms} = {found}."
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return messages


def preferences(number: int = NUMBER) -> list[dict]:
    """Records with `prompt`, `chosen` and `rejected`: the sum of two numbers up to 20, and one that is off by 1 to 9.
    Record i is a pure function of i."""
    return [_judged(Draws("arithmetic preferences", index), 2, _pair) for index in range(number)]


def rankings(number: int = NUMBER, answers: int = 4) -> list[dict]:
    """Records with `prompt`, `responses` and `scores`: so many different answers to a sum of two numbers up to 20, of
    which the nearer to the right one scores higher. Record i is a pure function of i."""
    return [_judged(Draws("arithmetic rankings", index), answers, _ranking) for index in range(number)]


def _judged(draws: Draws, answers: int, record: Callable[[str, list[str], list[int]], dict]) -> dict:
    first, second = draws.below(LARGEST + 1), draws.below(LARGEST + 1)
    right = first + second
    near = [value for value in range(max(0, right - 9), right + 10) if value != right]
    values = [right, *draws.some(near, answers - 1)]
    said = [f"{first} + {second} = {value}." for value in values]
    return record(f"What is {first} + {second}?", said, [-abs(value - right) for value in values])


def _pair(prompt: str, said: list[str], scores: list[int]) -> dict:
    return {"prompt": prompt, "chosen": said[0], "rejected": said[1]}


def _ranking(prompt: str, said: list[str], scores: list[int]) -> dict:
    return {"prompt": prompt, "responses": said, "scores": scores}
