"""Chats about sums of small numbers, made by rule: something to learn a chat from in a minute, without any file."""

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
