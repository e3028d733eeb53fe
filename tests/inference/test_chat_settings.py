"""How replies of a chat are drawn by default."""

import dataclasses

import pytest
from small_models import byte_model

from fmjax.commands.chat_session import ChatSession
from fmjax.inference.chat_settings import chat_settings, told


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, dict(temperature=0.0)),
        ({"eos_token_id": 2, "top_p": None}, dict(temperature=0.0)),
        ({"do_sample": True}, dict(temperature=1.0, top_k=50)),  # as transformers has it
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, dict(temperature=0.6, top_k=50, top_p=0.9)),
        ({"temperature": 0.7, "top_k": 20}, dict(temperature=0.7, top_k=20)),
        ({"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.1},
         dict(temperature=0.0, repetition_penalty=1.1)),
        ({"repetition_penalty": 1.1}, dict(temperature=0.0, repetition_penalty=1.1)),
    ],
)  # fmt: skip
def test_what_a_model_states_is_its_default(generation, expected):
    assert chat_settings(generation) == expected


def test_the_line_of_a_chat_calls_greedy_what_is():
    assert told(dict(temperature=0.0, top_k=50, repetition_penalty=1.1)) == (
        "replies are greedy: --temperature=0 --repetition_penalty=1.1"
    )
    assert told(dict(temperature=0.6, top_k=50)) == "replies are drawn: --temperature=0.6 --top_k=50"


def test_a_chat_is_greedy_unless_the_model_or_the_caller_says_otherwise():
    model, messages = byte_model(), [{"role": "user", "content": "ab"}]
    prompt = [model.encode_chat(messages)]
    (greedy,) = model.generate(prompt, temperature=0, max_new_tokens=8)
    (drawn,) = model.generate(prompt, temperature=3.0, top_k=50, max_new_tokens=8)
    assert greedy != drawn
    stated = dataclasses.replace(model, config=model.config | {"published": {"generation": {"temperature": 3.0}}})
    assert model.chat(messages, max_new_tokens=8) == greedy == stated.chat(messages, max_new_tokens=8, temperature=0)
    assert model.chat(messages, max_new_tokens=8, temperature=3.0, top_k=50) == drawn
    assert stated.chat(messages, max_new_tokens=8) == drawn
    # A conversation does the same, and another reply is another one.
    for one, first in ((model, greedy), (stated, drawn)):
        session = ChatSession(one, max_new_tokens=8)
        assert "".join(session.say("ab")) == first and "".join(session.retry()) != first
    session = ChatSession(model, max_new_tokens=8, temperature=0)
    assert "".join(session.say("ab")) == greedy == "".join(session.retry())
