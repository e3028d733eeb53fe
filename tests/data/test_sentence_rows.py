"""Plans of sentence rows against slow and plain ones, on documents whose words tell where they come from."""

import numpy as np
import pytest
from numbers_text import CLS, SEP, number_documents, places

from fmjax.data.corpus import TokenizedSplit
from fmjax.data.sentence_rows import (
    FullSentenceRows,
    SentencePairRows,
    plan_contiguous,
    plan_full_sentences,
    plan_sentence_pairs,
)
from fmjax.data.sentences import split_sentences


def tokenized(documents):
    sentences = [sentence for document in documents for sentence in document]
    return TokenizedSplit(
        tokens=np.concatenate(sentences).astype(np.uint16),
        offsets=np.cumsum([0] + [len(s) for s in sentences]),
        documents=np.cumsum([0] + [len(d) for d in documents]),
    )


def rows_of(plan, split):
    rows = FullSentenceRows(split, plan, CLS, SEP)
    return [rows[i]["tokens"].tolist() for i in range(len(rows))]


@pytest.mark.parametrize("length", [3, 9, 16, 40])
def test_full_sentences_are_filled_greedily(length):
    documents = number_documents()
    expected, row = [], []
    for document in documents:
        first = True  # a separator comes before it, unless the row begins here
        for sentence in document:
            for start in range(0, len(sentence), length - 2):
                piece = sentence[start : start + length - 2]
                needed = len(piece) + (first and bool(row))
                if len(row) + needed > length - 2:
                    expected.append(row)
                    row = []
                row = row + ([SEP] if first and row else []) + piece
                first = False
    expected.append(row)
    split = tokenized(documents)
    assert rows_of(plan_full_sentences(split, length), split) == [[CLS, *row, SEP] for row in expected]


@pytest.mark.parametrize("length", [3, 9, 16, 40])
def test_contiguous_rows_are_full(length):
    documents = number_documents()
    split = tokenized(documents)
    rows = rows_of(plan_contiguous(split, length), split)
    assert all(row[0] == CLS and row[-1] == SEP for row in rows)
    text = [row[1:-1] for row in rows]
    assert [i for row in text for i in row if i != SEP] == split.tokens.tolist()
    begins = {document[0][0] for document in documents}
    for row, following in zip(text, [*text[1:], [None]]):
        assert [b for a, b in zip(row, row[1:]) if a == SEP] == [i for i in row[1:] if i in begins]
        # One place less where only a separator would have fitted before the next document.
        assert len(row) == length - 2 or (len(row) == length - 3 and following[0] in begins) or following == [None]


@pytest.fixture(scope="module")
def pairs():
    documents = number_documents(count=60)
    split = tokenized(documents)
    plan = plan_sentence_pairs(split, 32, 0.1, ["seed"])
    return documents, split, plan


def test_pairs_hold_each_sentence_once_in_order(pairs):
    documents, split, plan = pairs
    used = [
        plan.first[i] if plan.is_random[i] else (plan.first[i, 0], plan.second[i, 1]) for i in range(len(plan.first))
    ]
    assert [s for start, end in used for s in range(start, end)] == list(range(len(split.offsets) - 1))
    document_of = np.repeat(np.arange(len(documents)), np.diff(split.documents))
    for first, second, is_random in zip(plan.first, plan.second, plan.is_random):
        assert first[0] < first[1] and second[0] < second[1]
        assert len(set(document_of[first[0] : first[1]])) == len(set(document_of[second[0] : second[1]])) == 1
        follows = second[0] == first[1] and document_of[second[0]] == document_of[first[0]]
        assert follows == (not is_random)
        assert is_random == (document_of[second[0]] != document_of[first[0]])


def test_half_of_the_pairs_are_random_where_there_is_a_choice():
    split = tokenized([[[4 + i, 5 + i] for i in range(0, 4000, 2)]] * 2)
    plan = plan_sentence_pairs(split, 23, 0.1, ["seed"])
    count = len(plan.is_random)
    assert count > 400 and abs(plan.is_random.mean() - 0.5) < 4 * np.sqrt(0.25 / count)
    lengths = 2 * (np.diff(plan.first) + np.diff(plan.second))[:, 0]
    is_full = lengths == 20
    # 0.1 of the lengths drawn are short; of those drawn from 2..20, two give 20 (19 is rounded up to a sentence).
    expected = 0.1 * 17 / 19
    assert abs((~is_full).mean() - expected) < 4 * np.sqrt(expected / count)


def test_pair_rows_say_what_follows_and_lose_tokens_of_the_longer_part(pairs):
    documents, split, plan = pairs
    rows, place = SentencePairRows(split, plan, CLS, SEP, 32, ["seed"]), places(documents)
    cut = [0, 0]
    for i in range(len(rows)):
        row = rows[i]
        tokens = row["tokens"].tolist()
        end = tokens.index(SEP)
        first, second = tokens[1:end], tokens[end + 1 : -1]
        assert tokens[0] == CLS and tokens[-1] == SEP and len(tokens) <= 32 and first and second
        assert row["token_types"].tolist() == [0] * (end + 1) + [1] * (len(second) + 1)
        for part in (first, second):  # a stretch of one document
            assert part == list(range(part[0], part[-1] + 1)) and place[part[0]][0] == place[part[-1]][0]
        follows = place[second[0]][0] == place[first[0]][0]
        assert row["next_sentence_labels"] == (0 if follows else 1) and row["next_sentence_labels"].dtype == np.int32
        whole = [split.tokens[slice(*split.offsets[part[i]])] for part in (plan.first, plan.second)]
        lost = [len(w) - len(part) for w, part in zip(whole, (first, second))]
        expected = [len(part) for part in whole]
        while sum(expected) > 29:
            expected[0 if expected[0] > expected[1] else 1] -= 1
        assert [len(first), len(second)] == expected
        if sum(lost):
            cut[0] += (first[0] - whole[0][0]) + (second[0] - whole[1][0])
            cut[1] += sum(lost)
    assert cut[1] > 100 and abs(cut[0] / cut[1] - 0.5) < 4 * np.sqrt(0.25 / cut[1])


def test_plans_depend_on_their_seed_alone(pairs):
    _, split, plan = pairs
    again, other = (plan_sentence_pairs(split, 32, 0.1, [seed]) for seed in ("seed", "other"))
    np.testing.assert_array_equal(plan.first, again.first)
    np.testing.assert_array_equal(plan.second, again.second)
    assert len(other.first) != len(plan.first) or not np.array_equal(other.first, plan.first)


def test_sentence_rules():
    text = "One two. Three?  “Four!” five\nwraps.\r\n\r\nNew paragraph 3.14 end"
    assert split_sentences(text, "punctuation") == [
        "One two.", " Three?", " “Four!”", " five wraps.", "New paragraph 3.14 end",
    ]  # fmt: skip
    assert split_sentences("a. b.\r\n\n  c\n", "lines") == ["a. b.", "  c"]
    assert split_sentences("a. b.\n", "lines") == ["a.", " b."]
    assert split_sentences(text, "ignore") == [text]
