"""What each token of a `tokenizer.json` adds to a text, in bytes."""

import functools
import re
from collections.abc import Callable, Mapping


def bytes_of_tokens(decoder: Mapping | None) -> Callable[[str], bytes] | None:
    """What makes bytes of a token by the decoder of a `tokenizer.json`; None where others change what it adds.

    Byte-level decoders (GPT-2's) write a byte as a character; those of SentencePiece a space as U+2581 and, with
    ByteFallback, a byte as <0x0A>. What they take away in front of a text is not in these bytes
    (`fmjax.inference.constraints.drops_space`).
    """
    kinds = [decoder["type"]] if decoder else []
    if kinds == ["Sequence"]:
        parts = decoder["decoders"]
        kinds = [part["type"] for part in parts]
        replaces = [(part["pattern"], part["content"]) for part in parts if part["type"] == "Replace"]
        if any(pair != ({"String": "\u2581"}, " ") for pair in replaces):
            return None
    if kinds == ["ByteLevel"]:
        return _byte_level
    if not kinds or not {"Replace", "Metaspace"} & set(kinds):
        return None
    if set(kinds) - {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}:
        return None

    def read(token: str) -> bytes:
        if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes([int(token[1:-1], 16)])
        return token.replace("\u2581", " ").encode()

    return read


@functools.cache
def _byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones for themselves, others for
    U+0100 and what follows."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    known = _byte_characters()
    return bytes(known[one] for one in token) if all(one in known for one in token) else token.encode()
