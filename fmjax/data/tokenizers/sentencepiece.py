"""SentencePiece models, with the control and added tokens of published LLaMA, Mistral and Gemma folders."""

import functools
import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence

from fmjax.data.tokenizers.base import SPECIAL_NAMES, Tokenizer, check_ids, cut_at_lines, digest, spelt_out
from fmjax.data.tokenizers.published_settings import TokenizerConfig, write_config
from fmjax.errors import TokenizerError

_SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character, so it cannot tell the two apart in a text
_LONGEST_ENCODED = 1 << 20  # characters; longer texts are encoded in parts cut at line starts, to bound the memory


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model.

    A model that adds no space in front, normalises nothing and falls back to bytes, as those trained here, is
    lossless: `decode(encode(text)) == text` for any text. There U+2581, which SentencePiece itself would turn into
    a space, is encoded as its three UTF-8 bytes. Any other model keeps its own behaviour and normalisation.

    A text begins with BOS and does not end with EOS, unless `add_bos_token` and `add_eos_token` say otherwise.

    `encode_special` encodes what lies between control tokens as texts of their own, each with the space in front that
    the model adds, as LLaMA's reference does. With `"legacy": false` in `tokenizer_config.json`, only what begins the
    whole text gets it, as in `transformers`.

    Args:
      model: the bytes of a `.model` file.
      name: where it came from, for messages.
      config: what is said beside the model. Added tokens have the ids after the model's pieces, or rename pieces.

    Raises: TokenizerError for bytes that are no model, and tokens that do not fit it.
    """

    def __init__(self, model: bytes, name: str = "tokenizer.model", *, config: TokenizerConfig | None = None):
        import sentencepiece

        config = config or TokenizerConfig()
        self._model = bytes(model)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self._model)
        except RuntimeError as error:
            raise TokenizerError(f"{name} is not a SentencePiece model: {error}") from None
        self.source = name
        self._num_pieces = self._processor.vocab_size()
        self._added = self._checked(config)
        self.vocab_size = max(self._num_pieces, *(i + 1 for i in self._added), 0)
        self.num_added = self.vocab_size - self._num_pieces
        self._set_specials(config)
        add_bos, add_eos = config.flag("add_bos_token"), config.flag("add_eos_token")
        self.add_bos = self.bos_id is not None and add_bos is not False
        self.add_eos = self.eos_id is not None and add_eos is True
        special = {self.token_to_id(token): token for token in self.special_tokens.values()}
        special |= {index: token.content for index, token in self._added.items() if token.special}
        controls = (i for i in range(self._num_pieces) if self._processor.is_control(i))
        self.control_tokens = tuple({**{i: self.token(i) for i in controls}, **special}.values())
        # Those that the model itself may find in a text, such as Gemma's <start_of_turn>.
        self._found = frozenset(special) - {self.unk_id}
        self._legacy = config.flag("legacy") is not False
        self.chat_templates = dict(config.chat_templates)
        added = [[i, t.content, t.special, t.lstrip, t.rstrip] for i, t in sorted(self._added.items())]
        self.fingerprint = digest(b"sentencepiece", self._model, *([json.dumps(added).encode()] if added else []))
        mark = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        probe = " a  b "
        self._is_exact = (
            all(self._processor.is_byte(i) for i in mark)
            and self._processor.encode("a", out_type=str) == ["a"]
            and self._processor.decode(self._processor.encode(probe)) == probe
        )
        self._mark = mark

    def _checked(self, config: TokenizerConfig) -> dict:
        """Added tokens by id. Raises TokenizerError where they leave ids free, or have none."""
        added = {}
        for token in config.added:
            index = self._piece_id(token.content) if token.id is None else token.id
            if index is None:
                raise TokenizerError(
                    f"{self.source}: the special token {token.content!r} is not in its vocabulary; state its id in "
                    "added_tokens.json beside it"
                )
            added[index] = token
        behind = sorted(i for i in added if i >= self._num_pieces)
        for expected, index in enumerate(behind, self._num_pieces):
            if index != expected:
                raise TokenizerError(
                    f"{self.source}: the added token {added[index].content!r} has id {index}, but the first free id is "
                    f"{expected}; do the added tokens beside this model belong to it?"
                )
        return added

    def _piece_id(self, piece: str) -> int | None:
        index = self._processor.piece_to_id(piece)
        return index if 0 <= index < self._num_pieces and self._processor.id_to_piece(index) == piece else None

    def _set_specials(self, config: TokenizerConfig) -> None:
        own = {name: getattr(self._processor, f"{name}_id")() for name in ("bos", "eos", "pad", "unk")}
        tokens = {f"{name}_token": self.token(i) for name, i in own.items() if i >= 0}
        mask = self._piece_id("<mask>")
        if mask is not None and self._processor.is_control(mask):  # no text is encoded as it
            tokens["mask_token"] = "<mask>"
        tokens |= {name: token for name, token in config.specials.items() if token is not None}
        for name, token in tokens.items():
            index = self.token_to_id(token)
            if index is None:
                raise TokenizerError(
                    f"{self.source}: {name} {token!r} is not in its vocabulary; correct it in tokenizer_config.json or "
                    "special_tokens_map.json, or add it with its id in added_tokens.json"
                )
            setattr(self, name.replace("_token", "_id"), index)
        self.special_tokens = {name: tokens[name] for name in SPECIAL_NAMES if name in tokens}

    def _is_plain(self, text: str) -> bool:
        return not self._is_exact or (_SPACE_MARK not in text and len(text) <= _LONGEST_ENCODED)

    def encode(self, text: str) -> list[int]:
        if self._is_plain(text):
            return self._as_text(self._processor.encode(text), text)
        ids: list[int] = []
        for index, part in enumerate(text.split(_SPACE_MARK)):
            if index:
                ids += self._mark
            chunks = cut_at_lines(part, _LONGEST_ENCODED)
            for chunk, encoded in zip(chunks, self._processor.encode(chunks, num_threads=-1)):
                ids += self._as_text(encoded, chunk)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        texts = list(texts)
        plain = [self._is_plain(text) for text in texts]
        encoded = iter(self._processor.encode([t for t, p in zip(texts, plain) if p], num_threads=-1))
        return [self._as_text(next(encoded), text) if p else self.encode(text) for text, p in zip(texts, plain)]

    def _as_text(self, ids: list[int], text: str) -> list[int]:
        """The ids that the model gives a text, without control tokens."""
        if self._found.isdisjoint(ids):
            return ids
        ids, spans = zip(*_spans(self._processor, text))
        return spelt_out(ids, spans, text, self._found, self._inside.encode)

    def encode_special_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found: list[tuple[int, tuple[int, int]]] = []
        for start, end, index in self._parts(text):
            if index is not None:
                found.append((index, (start, end)))
                continue
            processor = self._processor if start == 0 or self._legacy else self._inside
            found += [(i, (start + first, start + last)) for i, (first, last) in _spans(processor, text[start:end])]
        return [i for i, _ in found], [span for _, span in found]

    def _parts(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """A text cut at its control tokens: (start, end, id), with None for what lies between them."""
        end = 0
        names, pattern = self._control
        for match in pattern.finditer(text):
            if end < match.start():
                yield end, match.start(), None
            name = match[0] if match[0] in names else match[0].strip()
            for index in names[name]:
                yield *match.span(), index
            end = match.end()
        if end < len(text):
            yield end, len(text), None

    @functools.cached_property
    def _control(self) -> tuple[dict[str, list[int]], re.Pattern]:
        """Ids of the tokens that `encode_special` recognises, and the expression that finds them, longest first."""
        processor = self._processor
        names = {
            processor.id_to_piece(i): [i]
            for i in range(self._num_pieces)
            if processor.is_control(i) or processor.is_unknown(i)
        }
        names |= {token: [self.token_to_id(token)] for token in self.special_tokens.values()}
        names |= {token.content: [i] for i, token in self._added.items()}
        if self._is_exact:
            names[_SPACE_MARK] = self._mark
        expressions = {name: re.escape(name) for name in names}
        for token in self._added.values():
            before, behind = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
            expressions[token.content] = before + re.escape(token.content) + behind
        longest = sorted(expressions, key=len, reverse=True)
        return names, re.compile("|".join(expressions[name] for name in longest) or "(?!)")

    @functools.cached_property
    def _inside(self):
        """The model without the space that it adds in front of a text."""
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto.FromString(self._model)
        proto.normalizer_spec.add_dummy_prefix = False
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(proto.SerializeToString())
        return processor

    def decode(self, ids: Sequence[int]) -> str:
        ids = check_ids(ids, self.vocab_size)
        if not self._added:
            return self._processor.decode(ids)
        text = ""
        for is_added, run in itertools.groupby(ids, key=self._added.__contains__):
            if is_added:
                text += "".join(self._added[i].content for i in run if not self._added[i].special)
            else:
                # The space that the model adds in front of a text is taken away there alone.
                text += (self._inside if text else self._processor).decode(list(run))
        return text

    def token(self, id: int) -> str:
        (id,) = check_ids([id], self.vocab_size)
        return self._added[id].content if id in self._added else self._processor.id_to_piece(id)

    def token_to_id(self, token: str) -> int | None:
        for index, added in self._added.items():
            if added.content == token:
                return index
        index = self._piece_id(token)
        return None if index in self._added else index

    def token_bytes(self) -> list[bytes]:
        found, processor = [], self._processor
        for id in range(self.vocab_size):
            if id in self._added:
                piece = "" if self._added[id].special else self._added[id].content
            elif processor.is_byte(id):
                found.append(bytes([int(processor.id_to_piece(id)[1:-1], 16)]))
                continue
            elif processor.is_control(id) or processor.is_unknown(id) or processor.is_unused(id):
                piece = ""
            else:
                piece = processor.id_to_piece(id).replace(_SPACE_MARK, " ")
            found.append(b"" if id in self._found else piece.encode())
        return found

    def save(self, directory: pathlib.Path) -> None:
        directory = pathlib.Path(directory)
        (directory / "tokenizer.model").write_bytes(self._model)
        added = {
            str(i): {
                "content": token.content, "lstrip": token.lstrip, "rstrip": token.rstrip,
                "normalized": token.normalized, "single_word": False, "special": token.special,
            }
            for i, token in sorted(self._added.items())
        }  # fmt: skip
        # The generic class makes `transformers` follow the model's own settings; others replace some of them.
        write_config(
            directory,
            self,
            "PreTrainedTokenizerFast",
            add_bos_token=self.add_bos,
            add_eos_token=self.add_eos,
            legacy=self._legacy,
            added_tokens_decoder=added,
        )


def _spans(processor, text: str) -> list[tuple[int, tuple[int, int]]]:
    """(id, (start, end) in characters) of each piece. The bytes of one character all have its span."""
    from sentencepiece import sentencepiece_pb2

    encoded = processor.encode(text, out_type="serialized_proto")
    pieces = sentencepiece_pb2.SentencePieceText.FromString(encoded).pieces
    sizes = itertools.accumulate((len(c.encode()) for c in text), initial=0)
    characters = {size: index for index, size in enumerate(sizes)}
    spans = [(characters[piece.begin], characters[piece.end]) for piece in pieces]
    for index in reversed(range(len(spans) - 1)):
        # All bytes but a character's last have an empty span before it.
        if spans[index][0] == spans[index][1] == spans[index + 1][0] and processor.is_byte(pieces[index].id):
            spans[index] = spans[index + 1]
    return [(piece.id, span) for piece, span in zip(pieces, spans)]
