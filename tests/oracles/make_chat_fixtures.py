"""Writes chats.json: chats rendered and encoded by `transformers`, with templates in the published formats.

Needs the `oracle` extra (transformers). Run after make_tokenizer_fixtures.py, from anywhere: make_chat_fixtures.py
The templates are written here from the documented formats: ChatML, LLaMA 2's [INST], LLaMA 3's headers, Gemma's turns.
"""

import base64
import itertools
import json
import pathlib
import tempfile

import transformers

HERE = pathlib.Path(__file__).parent

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set turns = messages[1:] %}
    {% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{% else %}
    {% set turns = messages %}
    {% set system = '' %}
{% endif %}
{% for message in turns %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate: user, assistant, user, ...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {% else %}
{% generation %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {%- if tool.hidden %}{% continue %}{% endif %}
        {{- tool | tojson(indent=4) + "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message['role'] == 'assistant' -%}
        {%- set role = 'model' -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if role == 'model' -%}
        {%- generation -%}{{ message['content'] | trim }}{%- endgeneration -%}
    {%- else -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

CASES = {"qwen3": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "gemma": GEMMA}

SYSTEM = {"role": "system", "content": "Be brief, say <b>hello</b>.\n"}
CHATS = {
    "one": [{"role": "user", "content": "Hello, world!"}],
    "system": [SYSTEM, {"role": "user", "content": "  naïve 日本 😀  "}],
    "turns": [
        SYSTEM,
        {"role": "user", "content": "What's 1 + 1?"},
        {"role": "assistant", "content": "Two: 2.", "tool_calls": None},
        {"role": "user", "content": "And <|im_end|> </s>?"},
        {"role": "assistant", "content": "def f(x):\n    return x"},
    ],
}
TOOLS = [{"name": "add", "description": "1 < 2 & 'é'"}, {"name": "no", "hidden": True}]


def options(name):
    variables = {"llama3": [{"date_string": "1 Jan 2026"}], "qwen3": [{}, {"enable_thinking": False}]}.get(name, [{}])
    for add_generation_prompt, variable in itertools.product([False, True], variables):
        yield {"add_generation_prompt": add_generation_prompt, **variable}
    if name == "llama3":
        yield {"add_generation_prompt": True, "tools": TOOLS, "date_string": "now"}


def main():
    published = json.loads((HERE / "tokenizers.json").read_text())["cases"]
    rendered = []
    for name, template in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in published[name]["files"].items():
                content = base64.b64decode(content["base64"]) if isinstance(content, dict) else content.encode()
                (pathlib.Path(folder) / file).write_bytes(content)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        for (chat, messages), chosen in itertools.product(CHATS.items(), options(name)):
            text = tokenizer.apply_chat_template(messages, tokenize=False, **chosen)
            encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, **chosen)
            entry = {"tokenizer": name, "chat": chat, "options": chosen, "text": text}
            rendered.append(entry | {"ids": encoded["input_ids"], "mask": encoded["assistant_masks"]})
    fixture = {"transformers": transformers.__version__, "templates": CASES, "chats": CHATS, "rendered": rendered}
    path = HERE / "chats.json"
    path.write_text(json.dumps(fixture, separators=(",", ":")))
    print(transformers.__version__, len(rendered), "chats", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
