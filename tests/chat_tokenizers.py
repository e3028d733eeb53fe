"""Tokenizers of the fixtures, with chat templates in the published formats."""

import base64
import functools
import json
import pathlib
import tempfile

from fmjax.data.tokenizers.loading import load_tokenizer

ORACLES = pathlib.Path(__file__).parent / "oracles"
CHATS = json.loads((ORACLES / "chats.json").read_text())
TOKENIZERS = json.loads((ORACLES / "tokenizers.json").read_text())["cases"]


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The folder, with the files of that tokenizer in it."""
    for file, content in TOKENIZERS[name]["files"].items():
        content = base64.b64decode(content["base64"]) if isinstance(content, dict) else content.encode()
        (folder / file).write_bytes(content)
    return folder


def read_chat_tokenizer(name: str, template: str | None = None):
    """The tokenizer of that name, with its template in chats.json or another."""
    with tempfile.TemporaryDirectory() as folder:
        folder = write(name, pathlib.Path(folder))
        (folder / "chat_template.jinja").write_text(template or CHATS["templates"][name])
        return load_tokenizer(folder)


chat_tokenizer = functools.cache(read_chat_tokenizer)
