"""A tokenizer whose words are numbers, and documents of them in which every word occurs once."""

import json
import random

PAD, CLS, SEP, MASK, WORDS = 0, 1, 2, 3, 4
SPECIALS = (PAD, CLS, SEP, MASK)


class NumberTokenizer:
    """The word "17" is the id 17."""

    vocab_size = 6000
    bos_id = eos_id = None
    pad_id, cls_id, sep_id, mask_id = SPECIALS
    fingerprint = "numbers"

    def encode(self, text):
        return [int(word) for word in text.split()]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


def number_documents(count=40, seed=0, longest=12):
    """Documents as lists of sentences, each a list of ids; the ids count through all of them."""
    rng, following, documents = random.Random(seed), WORDS, []
    below = lambda limit: int(rng.random() * limit)  # Python promises `random()` alone to stay the same
    for _ in range(count):
        sentences = []
        for _ in range(2 + below(13)):
            length = 1 + below(longest)
            sentences.append(list(range(following, following + length)))
            following += length
        documents.append(sentences)
    assert following < NumberTokenizer.vocab_size
    return documents


def write_documents(path, documents):
    texts = ["\n".join(" ".join(map(str, sentence)) for sentence in document) for document in documents]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def places(documents):
    """Id to (document, sentence)."""
    return {i: (d, s) for d, document in enumerate(documents) for s, words in enumerate(document) for i in words}
