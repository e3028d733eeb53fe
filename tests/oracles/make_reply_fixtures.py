"""Writes replies.json: chats and the mask of the assistant's tokens, by `transformers`, and what `trl` packs them to.

Needs the `oracle` extra (transformers) and trl. Run after make_tokenizer_fixtures.py, from anywhere:
make_reply_fixtures.py. The templates are those of make_chat_fixtures.py, which say what is the assistant's.
"""

import base64
import json
import pathlib
import tempfile

import transformers
import trl
from make_chat_fixtures import CASES
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

HERE = pathlib.Path(__file__).parent
SYSTEM = {"role": "system", "content": "Be brief."}


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CHATS = [
    turns("Hello, world!", "Hello."),
    [SYSTEM, *turns("What's 1 + 1?", "Two: 2.", "And naïve 日本 😀?", "def f(x):\n    return x")],
    turns("a", "b", "c", "d\n\nd", "e", "  f  "),
]
TRAINING_DATE = {"llama3": {"date_string": "26 Jul 2024"}}


def main():
    published = json.loads((HERE / "tokenizers.json").read_text())["cases"]
    found, packed = [], {}
    for name, template in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in published[name]["files"].items():
                content = base64.b64decode(content["base64"]) if isinstance(content, dict) else content.encode()
                (pathlib.Path(folder) / file).write_bytes(content)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        examples = []
        for chat, messages in enumerate(CHATS):
            options = TRAINING_DATE.get(name, {})
            encoded = tokenizer.apply_chat_template(
                messages, return_assistant_tokens_mask=True, return_dict=True, **options
            )
            ids, mask = encoded["input_ids"], encoded["assistant_masks"]
            found.append({"tokenizer": name, "chat": chat, "ids": ids, "mask": mask})
            examples.append({"input_ids": ids, "labels": [i if one else -100 for i, one in zip(ids, mask)]})
        flat = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(examples)
        packed[name] = {key: flat[key][0].tolist() for key in ("input_ids", "labels", "position_ids")}
    versions = {"transformers": transformers.__version__, "trl": trl.__version__}
    path = HERE / "replies.json"
    path.write_text(json.dumps({**versions, "chats": CHATS, "found": found, "packed": packed}, separators=(",", ":")))
    print(versions, len(found), "chats", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
