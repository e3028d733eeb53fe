"""A "model" whose replies are written beforehand, with a tokenizer of bytes and control tokens."""

import json
import re
import types

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.inference.continuations import Continuation

TURNS = (
    "{% if tools %}<bos>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "As <tool_call>{...}</tool_call>.<eos>{% endif %}"
    "{% for m in messages %}<bos>{{ m.role }}\n"
    "{% if m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>{% else %}{{ m.content }}{% endif %}<eos>"
    "{% endfor %}{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)
"""A template with tools, as Hermes writes them."""

PLAIN = re.sub(r"{% if tools %}.*?{% endif %}", "", TURNS, count=1, flags=re.DOTALL)


class Bytes(ByteTokenizer):
    add_bos = True

    def __init__(self, template=None):
        super().__init__({"default": template} if template else None)


class Scripted:
    """Gives its replies one after the other, each ended by EOS or, in lines, by a newline.

    Attributes:
      asked: (prompts, options) of each call.
    """

    source, context_length = "a script", None

    def __init__(self, replies, template=None, context_length=None):
        self.tokenizer, self.replies, self.asked = Bytes(template), list(replies), []
        self.context_length = context_length
        self.module = types.SimpleNamespace()

    def complete(self, prompts, *, max_new_tokens, stop_ids=(), **options):
        self.asked.append((prompts, {"max_new_tokens": max_new_tokens, "stop_ids": stop_ids, **options}))
        found = []
        for _ in prompts:
            reply = self.replies.pop(0)
            text = reply if isinstance(reply, str) else json.dumps(reply)
            end = list(stop_ids)[:1] or [self.tokenizer.eos_id]
            tokens = [*self.tokenizer.encode(text), *end][:max_new_tokens]
            finish = "stop" if tokens[-1:] == end else "length"
            found.append(Continuation(text, tokens, [-0.5] * len(tokens), finish))
        return found
