"""Training a SentencePiece tokenizer on the run's own documents: BPE, byte fallback, lossless."""

import hashlib
import heapq
import io
import re
import sys
import time
from collections.abc import Iterable

from fmjax.data.tokenizer import cut_at_lines
from fmjax.errors import TokenizerError

SAMPLE_BYTES = 64 << 20
SETTINGS_VERSION = 1  # part of the cache key: raise it when what is trained changes
_CHUNK = 4000  # characters a training sentence; merges across chunks are not learned, so not too short


def sample_documents(texts: Iterable[str], limit: int = SAMPLE_BYTES) -> list[str]:
    """A uniform sample of whole documents, at most `limit` UTF-8 bytes (all of them if they fit), in one pass.

    Keeps the documents with the smallest hashes, dropping the largest whenever the limit is passed, so memory is
    bounded by the limit and the sample depends on the texts alone. A document longer than the limit is cut.
    """
    kept: list[tuple[int, int, str, int]] = []  # a heap with the largest hash first
    total = 0
    for order, text in enumerate(texts):
        size = len(text.encode())
        if size > limit:
            text = text.encode()[:limit].decode(errors="ignore")
            size = len(text.encode())
        digest = hashlib.blake2b(text[:4096].encode() + str(order).encode(), digest_size=8).digest()
        heapq.heappush(kept, (-int.from_bytes(digest, "big"), order, text, size))
        total += size
        while total > limit:
            total -= heapq.heappop(kept)[3]
    return [text for _, _, text, _ in sorted(kept, key=lambda entry: entry[1])]


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, progress: bool = False, specials: tuple[str, ...] = ()
) -> bytes:
    """Trains on (a sample of) `texts`; returns the bytes of a `.model` file.

    Ids: 0 unknown (never needed, as bytes are the fallback), 1 begins, 2 ends a document, then `specials`, such as
    "<mask>", which no text is ever encoded as. Text is taken as it is: no normalisation, no space added in front,
    runs of spaces and newlines are pieces of their own, digits are single.

    Raises:
      TokenizerError: the vocabulary is too small for the bytes and characters, or larger than the text yields.
    """
    import sentencepiece

    if vocab_size < 300:
        raise TokenizerError(
            f"data.tokenizer 'train:{vocab_size}': at least 300 pieces are needed (256 bytes, 3 special ones and "
            "some characters); use 'bytes' for less"
        )
    start = time.perf_counter()
    documents = sample_documents(texts)
    if not documents:
        raise TokenizerError("there is no text to train a tokenizer on")
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    if progress:
        print(f"Training a tokenizer of {vocab_size} pieces on {megabytes:.1f} MB of text ...", file=sys.stderr)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(chunk for text in documents for chunk in cut_at_lines(text, _CHUNK)),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=8 * _CHUNK,  # bytes; longer sentences would be skipped
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=list(specials),
            minloglevel=2,
        )
    except RuntimeError as error:
        too_high = re.search(r"value <= (\d+)", str(error))
        too_low = re.search(r"smaller than required_chars\D*(\d+)\D+(\d+)", str(error))
        if too_high:
            hint = f"the text yields at most {too_high[1]} pieces: use 'train:{too_high[1]}' or fewer, or more text"
        elif too_low:
            hint = f"the text's characters alone need {too_low[2]} pieces: use more"
        else:
            hint = str(error)
        raise TokenizerError(f"data.tokenizer 'train:{vocab_size}' on {megabytes:.3g} MB of text: {hint}") from None
    if progress:
        print(f"... done in {time.perf_counter() - start:.1f} s.", file=sys.stderr)
    return model.getvalue()
