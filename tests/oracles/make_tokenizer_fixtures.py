"""Writes tokenizers.json: tiny vocabularies in the files of published families, and what `transformers` makes of them.

Needs the `oracle` extra (transformers). Run from anywhere: python make_tokenizer_fixtures.py [CASE ...], which makes
these cases alone anew.
Each case has the files of a Hugging Face folder, and for the texts below the ids of `transformers` without and with
special tokens, of pairs, and the decoded texts. What fmjax saves of each must give `transformers` the ids of fmjax.
"""

import base64
import io
import json
import pathlib
import sys
import tempfile

import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from fmjax.data.tokenizers.loading import load_tokenizer

HERE = pathlib.Path(__file__).parent

CORPUS = [
    "The quick brown fox jumps over the lazy dog. A naïve café owner said hello to the world, the world hello.",
    "def add(first, second):\n    return first + second\n\nfor index in range(10):\n    print(add(index, 12))\n",
    "Der schnelle braune Fuchs springt über den faulen Hund. Zwei Männer stehen vor einem Haus, ein Mann fährt Rad.",
    "日本語のテスト。中文字符。 Привет, мир! Здравствуйте. مرحبا بالعالم 😀",
    "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her red ball.",
    "user system assistant: What's the capital of France? I don't know; they've said: London. INST [INST] [/INST]",
] * 3

TEXTS = [
    "", " ", "   ", "\n", "\n\n  \n", "\t\tx\t", "\r\n", "a\x00b\x07",
    "Hello, world!", " Hello  world ", "  two", "end  ",
    "naïve café e\u0301 Å ﬁ ² ß İ", "ÜBER Männer", "日本語テスト 中文\u3000字", "😀👩‍👩‍👧!",
    "Привет мир", "مرحبا", "\u200b\ufeffx\u00ad",
    "don't I'll they've", "1234567890 3.14", "def f(x):\n    return x + 1\n", "antidisestablishmentarianism" * 4,
    "a\u2581b", "\U0010ffff", "[MASK] the [SEP]", "a <mask> b", "<s>[INST] hi [/INST] yes </s>", "x<|endoftext|>y",
    "<|im_start|>user\nhi<|im_end|>\n", "<bos><start_of_turn>user\nhi<end_of_turn>\n", "<unk> <pad>",
]  # fmt: skip
PAIRS = [(8, 19), (12, 14), (21, 8), (1, 25)]


def sentencepiece_model(size, **options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=size, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.995, minloglevel=2,
        **options,
    )  # fmt: skip
    return model.getvalue()


def train(tokenizer, trainer):
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(size, special):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return train(
        tokenizer,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )


def vocabulary_files(tokenizer) -> dict:
    model = json.loads(tokenizer.to_str())["model"]
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    return {"vocab.json": json.dumps(model["vocab"], ensure_ascii=False), "merges.txt": "#version: 0.2\n" + merges}


def bert(**options):
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=options["do_lower_case"])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    train(tokenizer, trainers.WordPieceTrainer(vocab_size=330, special_tokens=special, show_progress=False))
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    return {
        "vocab.txt": "\n".join(pieces) + "\n",
        "config.json": json.dumps({"model_type": "bert"}),
        "tokenizer_config.json": json.dumps(options),
    }


def gpt2(**options):
    files = vocabulary_files(byte_level(340, ["<|endoftext|>"]))
    files |= {"config.json": json.dumps({"model_type": "gpt2"})}
    return files | ({"tokenizer_config.json": json.dumps(options)} if options else {})


def roberta():
    mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    return vocabulary_files(byte_level(340, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])) | {
        "config.json": json.dumps({"model_type": "roberta"}),
        "special_tokens_map.json": json.dumps({"mask_token": mask}),
    }


def openai_gpt():
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    files = vocabulary_files(train(tokenizer, trainer))
    return files | {"config.json": json.dumps({"model_type": "openai-gpt"})}


CLIP_WORDS = (
    r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
)


def clip():
    """As OpenAI's: the bytes, the bytes that end a word, what they merge to, and the two special tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    train(tokenizer, trainers.BpeTrainer(vocab_size=250, end_of_word_suffix="</w>", show_progress=False))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return {
        "vocab.json": json.dumps({piece: i for i, piece in enumerate(pieces)}, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in merges),
        "config.json": json.dumps({"model_type": "clip"}),
    }


def clip_json():
    """The same as the `tokenizer.json` that is published beside it."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_files(clip(), folder)
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        files = {name: (folder / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")}
    return files | {"config.json": json.dumps({"model_type": "clip"})}


def siglip():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="unigram", vocab_size=200, minloglevel=2,
        hard_vocab_limit=False, unk_id=2, eos_id=1, pad_id=0, bos_id=-1, num_threads=1,
    )  # fmt: skip
    return {
        "spiece.model": model.getvalue(),
        "config.json": json.dumps({"model_type": "siglip"}),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "SiglipTokenizer"}),
    }


def llama2(legacy):
    """A base model's SentencePiece, to which a chat model added ChatML's tokens."""
    added = {"<|im_start|>": 420, "<|im_end|>": 421, "<note>": 422}
    config = {
        "add_bos_token": True, "add_eos_token": False, "legacy": legacy, "bos_token": "<s>", "eos_token": "<|im_end|>",
        "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|im_start|>", "</s>"],
    }  # fmt: skip
    return {
        "tokenizer.model": sentencepiece_model(420, split_digits=True),
        "config.json": json.dumps({"model_type": "llama"}),
        "added_tokens.json": json.dumps(added),
        "tokenizer_config.json": json.dumps(config),
    }


def gemma_model():
    model = sentencepiece_model(
        430, add_dummy_prefix=False, allow_whitespace_only_pieces=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        bos_piece="<bos>", eos_piece="<eos>", control_symbols=["<start_of_turn>", "<end_of_turn>"],
        user_defined_symbols=["\n\n", "<table>"],
    )  # fmt: skip
    config = {"add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    return {"tokenizer.model": model, "tokenizer_config.json": json.dumps(config)}


def gemma_json():
    """As published: a BPE with byte fallback, spaces as U+2581, <bos> by the post-processor."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = special + [f"<0x{byte:02X}>" for byte in range(256)]
    train(tokenizer, trainers.BpeTrainer(vocab_size=430, special_tokens=pieces, limit_alphabet=60, show_progress=False))
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] in special]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    names = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
    config = {f"{name}_token": token for name, token in names.items()} | {"tokenizer_class": "PreTrainedTokenizerFast"}
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config)}


def modern_byte_level(regex, special, config, normalizer=None, bos=None):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    train(tokenizer, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(special)
    byte = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        byte = processors.Sequence([byte, template])
    tokenizer.post_processor = byte
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config)}


def llama3():
    regex = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": special[4],
        "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip
    files = modern_byte_level(regex, special, config, bos=special[0])
    return files | {"generation_config.json": json.dumps({"eos_token_id": [341, 344]})}


def with_options(files, **options):
    """The files with further keys in tokenizer_config.json."""
    config = json.loads(files["tokenizer_config.json"]) | options
    return files | {"tokenizer_config.json": json.dumps(config)}


def qwen3():
    regex = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "unk_token": None, "add_bos_token": False,
    }  # fmt: skip
    return modern_byte_level(regex, special, config, normalizer=normalizers.NFC())


def marian():
    models_, pieces = {}, {"</s>": 0, "<unk>": 1}
    for side, size in (("source", 120), ("target", 130)):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS[:3] if side == "source" else CORPUS[2:5]), model_writer=model,
            model_type="unigram", vocab_size=size, hard_vocab_limit=False,
            normalization_rule_name="identity", minloglevel=2, num_threads=1,
        )  # fmt: skip
        models_[f"{side}.spm"] = model.getvalue()
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        for index in range(3, processor.get_piece_size() - 5):  # a few pieces are left out, as pruned vocabularies do
            pieces.setdefault(processor.id_to_piece(index), len(pieces))
    for piece in (">>fra<<", ">>deu<<", "<pad>"):
        pieces[piece] = len(pieces)
    return models_ | {
        "vocab.json": json.dumps(pieces, ensure_ascii=False),
        "config.json": json.dumps({"model_type": "marian"}),
        "tokenizer_config.json": json.dumps({"source_lang": "eng", "target_lang": "deu"}),
    }


CASES = {
    "bert": lambda: bert(do_lower_case=True),
    "bert_cased": lambda: bert(do_lower_case=False, strip_accents=True, tokenize_chinese_chars=False),
    "gpt2": gpt2,
    "opt": lambda: gpt2(tokenizer_class="GPT2Tokenizer", add_bos_token=True),
    "opt_ends": lambda: gpt2(tokenizer_class="GPT2Tokenizer", add_bos_token=True, add_eos_token=True),
    "roberta": roberta,
    "openai_gpt": openai_gpt,
    "clip": clip,
    "clip_json": clip_json,
    "siglip": siglip,
    "llama2": lambda: llama2(legacy=True),
    "llama2_not_legacy": lambda: llama2(legacy=False),
    "gemma_model": gemma_model,
    "gemma": gemma_json,
    "llama3": llama3,
    "llama3_flags": lambda: with_options(llama3(), add_bos_token=False, add_eos_token=True),
    "qwen3": qwen3,
    "qwen3_flags": lambda: with_options(qwen3(), add_bos_token=True, add_eos_token=True, bos_token="<|endoftext|>"),
    "marian": marian,
}


def write_files(files, folder):
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def as_json(content):
    return {"base64": base64.b64encode(content).decode()} if isinstance(content, bytes) else content


def reference(files, texts):
    with tempfile.TemporaryDirectory() as folder:
        write_files(files, pathlib.Path(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        pairs = [tokenizer(texts[i], texts[j]) for i, j in PAIRS]
        return {
            "class": type(tokenizer).__name__,
            "vocab_size": len(tokenizer),
            "special_tokens": {key: str(token) for key, token in tokenizer.special_tokens_map.items()},
            "ids": ids,
            "with_special": [tokenizer(text)["input_ids"] for text in texts],
            "pairs": [pair["input_ids"] for pair in pairs],
            "token_types": [pair.get("token_type_ids") for pair in pairs],
            "decoded": [tokenizer.decode(i, skip_special_tokens=True) for i in ids],
        }


def check_saved(name, files):
    """Raises AssertionError where `transformers` reads other ids from what fmjax saved than fmjax gives."""
    with tempfile.TemporaryDirectory() as published, tempfile.TemporaryDirectory() as saved:
        write_files(files, pathlib.Path(published))
        ours = load_tokenizer(published)
        ours.save(pathlib.Path(saved))
        theirs = transformers.AutoTokenizer.from_pretrained(saved)
        named = ["<s>", "<|im_", "_of_turn>"] if "tokenizer.model" in files else []
        for text in TEXTS:
            # Neither holds where tests/data/tokenizers/test_published.py says that SentencePiece and they part ways.
            is_apart = (name == "llama2_not_legacy" and text[:1] == " ") or (name == "gemma_model" and "\u2581" in text)
            is_named = any(token in text for token in (*ours.control_tokens, *named))
            if not is_apart and not is_named and not (name == "marian" and "<" in text):
                assert theirs(text)["input_ids"] == ours.encode_pair(text)[0], (name, text)
        assert len(theirs) == ours.vocab_size
        assert {key: str(token) for key, token in theirs.special_tokens_map.items()} == ours.special_tokens


def main():
    path, wanted = HERE / "tokenizers.json", sys.argv[1:] or CASES
    before = json.loads(path.read_text()) if path.exists() else {}
    known, cases = before.get("cases", {}), {}
    for name, make in CASES.items():
        if name not in wanted:
            cases[name] = known[name]
            continue
        files = make()
        check_saved(name, files)
        texts = [*TEXTS, ">>fra<<Hello world"] if name == "marian" else TEXTS
        cases[name] = {"files": {file: as_json(content) for file, content in files.items()}, **reference(files, texts)}
        if name == "marian":
            with tempfile.TemporaryDirectory() as folder:
                write_files(files, pathlib.Path(folder))
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
                cases[name]["target_ids"] = [tokenizer(text_target=text)["input_ids"] for text in texts]
        print(name, cases[name]["class"], cases[name]["vocab_size"])
    versions = {module.__name__: module.__version__ for module in (transformers, tokenizers, sentencepiece)}
    if len(wanted) < len(CASES):
        versions = before["versions"] | {name: versions for name in wanted}
    fixture = {"versions": versions, "texts": TEXTS, "pairs_of": PAIRS, "cases": cases}
    path.write_text(json.dumps(fixture, ensure_ascii=True, separators=(",", ":")))
    print(versions, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
