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


def questions(number: int = NUMBER, largest: int = LARGEST) -> list[dict]:
    """Records with `prompt`, `completion` and `answer`: sums of two numbers up to 20, a right reply, and its number.
    Record i is a pure function of i."""
    return [_question(Draws("arithmetic questions", index), largest) for index in range(number)]


def digit_questions(number: int = NUMBER) -> list[dict]:
    """`questions` about sums of two digits: a hundred different ones, each about as often."""
    return questions(number, 9)


def _question(draws: Draws, largest: int) -> dict:
    first, second = draws.below(largest + 1), draws.below(largest + 1)
    said = f"{first} + {second} = {first + second}."
    return {"prompt": f"What is {first} + {second}?", "completion": said, "answer": f"{first + second}"}


def solutions(number: int = NUMBER) -> list[dict]:
    """Records with `prompt`, `steps` and `labels`: sums of three to five numbers up to 20, a step each; in half of them
    one step is off by 1 to 9, and wrong with all that follow. Record i is a pure function of i."""
    return [_solution(Draws("arithmetic solutions", index)) for index in range(number)]


def _solution(draws: Draws) -> dict:
    terms = [draws.below(LARGEST + 1) for _ in range(3 + draws.below(3))]
    wrong = 1 + draws.below(len(terms) - 1) if draws.below(2) else len(terms)
    found, steps, labels = terms[0], [], []
    for place, term in enumerate(terms[1:], 1):
        result = found + term + (1 + draws.below(9) if place == wrong else 0)
        steps.append(f"{found} + {term} = {result}")
        labels.append(place < wrong)
        found = result
    return {"prompt": f"What is {' + '.join(map(str, terms))}?", "steps": steps, "labels": labels}


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
