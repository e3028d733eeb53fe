"""Training a tokenizer on the run's own documents: SentencePiece, BERT's WordPiece or RoBERTa's byte-level BPE."""

import collections
import hashlib
import heapq
import io
import re
import sys
import time
from collections.abc import Callable, Iterable

from fmjax.data.tokenizers.base import cut_at_lines
from fmjax.data.tokenizers.huggingface import HuggingFaceTokenizer
from fmjax.errors import TokenizerError

SAMPLE_BYTES = 64 << 20
SETTINGS_VERSION = 1  # part of the cache key: raise it when what is trained changes
_CHUNK = 4000  # characters a training sentence; merges across chunks are not learned, so not too short

_BERT_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


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
    documents, megabytes, done = _begin(texts, vocab_size, progress)
    if not any(documents):
        raise TokenizerError(f"data.tokenizer 'train:{vocab_size}': the documents hold no text to train on")
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
    done()
    return model.getvalue()


def train_wordpiece(texts: Iterable[str], vocab_size: int, progress: bool = False) -> HuggingFaceTokenizer:
    """BERT's WordPiece (lower-cased, as bert-base-uncased), trained on (a sample of) `texts`.

    Ids 0..4 are [PAD], [UNK], [CLS], [SEP], [MASK]. The 1,000 most frequent characters are pieces; a word with
    another is [UNK].

    Raises:
      TokenizerError: the vocabulary is too small for the characters, or larger than the text yields.
    """
    from tokenizers import trainers

    from fmjax.data.tokenizers.vocabularies import wordpiece

    special = {name: (token, index) for index, (name, token) in enumerate(_BERT_SPECIAL.items())}
    documents, megabytes, done = _begin(texts, vocab_size, progress)
    model = wordpiece(dict(special.values()), special)
    alphabet = _alphabet(model.normalizer.normalize_str(text) for text in documents)
    options = {"initial_alphabet": alphabet, "limit_alphabet": len(alphabet), "show_progress": False}
    # The library numbers the pieces ##x in an order of its own making, on which merges depend: hence one pass that
    # finds them and one that is given them, in order, as special tokens. The vocabulary alone is kept of it.
    model.train_from_iterator(documents, trainers.WordPieceTrainer(vocab_size=1, **options))
    inside = sorted(piece for piece in model.get_vocab(with_added_tokens=False) if len(piece) == 3)
    first = [*_BERT_SPECIAL.values(), *inside]
    model = wordpiece(dict(special.values()), special)
    model.train_from_iterator(
        documents, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, **options)
    )
    trained = sorted(model.get_vocab().items(), key=lambda entry: entry[1])
    _check_size(len(trained), vocab_size, megabytes, "train_wordpiece")
    done()
    pieces = dict.fromkeys([*_BERT_SPECIAL.values(), *alphabet, *inside, *(piece for piece, _ in trained)])
    model = wordpiece({piece: index for index, piece in enumerate(pieces)}, special)
    specials = {f"{name}_token": token for name, token in _BERT_SPECIAL.items()}
    return HuggingFaceTokenizer(model.to_str(), specials, f"train_wordpiece:{vocab_size}", token_types=True)


def _alphabet(texts: Iterable[str]) -> list[str]:
    """The 1,000 most frequent characters that are no whitespace, in the order of their code points."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(text)
    found = sorted((-count, character) for character, count in counts.items() if not character.isspace())
    return sorted(character for _, character in found[:1000])


def train_bpe(texts: Iterable[str], vocab_size: int, progress: bool = False) -> HuggingFaceTokenizer:
    """RoBERTa's byte-level BPE, trained on (a sample of) `texts`; lossless.

    Ids 0..4 are <s>, <pad>, </s>, <unk>, <mask>, then 256 bytes, then merges.

    Raises:
      TokenizerError: the vocabulary is too small for the bytes, or larger than the text yields.
    """
    from tokenizers import pre_tokenizers, processors, trainers

    from fmjax.data.tokenizers.vocabularies import byte_level

    if vocab_size < 261:
        raise TokenizerError(f"data.tokenizer 'train_bpe:{vocab_size}': 256 bytes and 5 special ones need at least 261")
    documents, megabytes, done = _begin(texts, vocab_size, progress)
    model = byte_level({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(documents, trainer)
    _check_size(model.get_vocab_size(), vocab_size, megabytes, "train_bpe")
    done()
    model.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    specials = {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
        "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>",
    }  # fmt: skip
    return HuggingFaceTokenizer(model.to_str(), specials, f"train_bpe:{vocab_size}")


def _check_size(found: int, wanted: int, megabytes: float, kind: str) -> None:
    """Raises TokenizerError where a vocabulary has not the size that was asked for."""
    hint = f"the text yields at most {found} pieces: use '{kind}:{found}' or fewer, or more text"
    if found > wanted:
        hint = f"the text's characters alone need {found} pieces: use '{kind}:{found}' or more"
    if found != wanted:
        raise TokenizerError(f"data.tokenizer '{kind}:{wanted}' on {megabytes:.3g} MB of text: {hint}")


def _begin(texts: Iterable[str], vocab_size: int, progress: bool) -> tuple[list[str], float, Callable[[], None]]:
    """The sample to train on, its megabytes, and what says that training is done."""
    start = time.perf_counter()
    documents = sample_documents(texts)
    if not documents:
        raise TokenizerError("there is no text to train a tokenizer on")
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    if progress:
        print(f"Training a tokenizer of {vocab_size} pieces on {megabytes:.1f} MB of text ...", file=sys.stderr)

    def done() -> None:
        if progress:
            print(f"... done in {time.perf_counter() - start:.1f} s.", file=sys.stderr)

    return documents, megabytes, done
