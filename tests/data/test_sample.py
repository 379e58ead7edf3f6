"""The embedded sentences: enough of them, balanced, varied, and apart."""

import re
from collections import Counter, defaultdict

import pytest

from lora_pl.data.sources import read_split
from lora_pl.data.tasks import GLUE_TASKS

TRAIN = read_split("sample", GLUE_TASKS["sst2"], "train")
VALIDATION = read_split("sample", GLUE_TASKS["sst2"], "validation")


def words(sentence: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9']+", sentence.lower()))


def grams(sentence: str, n: int) -> set[tuple[str, ...]]:
    all_words = words(sentence)
    return {all_words[i : i + n] for i in range(len(all_words) - n + 1)} or {all_words}


def test_size_and_balance():
    assert len(TRAIN) >= 1000
    assert len(VALIDATION) >= 300
    for split in (TRAIN, VALIDATION):
        assert sum(split.labels) == pytest.approx(len(split) / 2, rel=0.02)
        assert split.blank == 0


def test_many_ways_of_writing():
    sentences = TRAIN.texts[0]
    lengths = [len(words(sentence)) for sentence in sentences]
    assert sum(length <= 6 for length in lengths) > 0.1 * len(sentences)
    assert sum(length >= 18 for length in lengths) > 0.1 * len(sentences)
    shares = {
        r"n't|\bnot\b|\bnever\b|\bno\b": 0.1,  # negation
        r"\bbut\b|\bthough\b|\bdespite\b|\bwhile\b": 0.08,  # contrast
        r"\blike\b|\bas .* as\b|\bthan\b": 0.04,  # comparison
        r"[!?]": 0.01,
        r"^[A-Z]": 0.1,  # ordinary typography
        r" [,.]": 0.3,  # tokenized typography
        r"\b(i|I|we|We|my|My)\b": 0.03,  # first person
    }
    for pattern, share in shares.items():
        assert sum(bool(re.search(pattern, sentence)) for sentence in sentences) >= share * len(sentences), pattern


def test_negation_alone_does_not_tell_the_label():
    negated = [y for s, y in zip(*TRAIN.texts, TRAIN.labels, strict=True) if re.search(r"n't|\bnot\b|\bnever\b", s)]
    assert 0.3 < sum(negated) / len(negated) < 0.7


def test_no_template_carries_more_than_a_few():
    sentences = [*TRAIN.texts[0], *VALIDATION.texts[0]]
    openings = Counter(words(sentence)[:4] for sentence in sentences if len(words(sentence)) >= 6)
    phrases = Counter(gram for sentence in sentences for gram in grams(sentence, 5))
    assert openings.most_common(1)[0][1] <= 8, openings.most_common(3)
    assert phrases.most_common(1)[0][1] <= 8, phrases.most_common(3)


def test_no_sentence_stands_twice():
    counts = Counter(map(words, [*TRAIN.texts[0], *VALIDATION.texts[0]]))
    assert [sentence for sentence, n in counts.items() if n > 1] == []


def test_no_near_duplicate_crosses_from_training_to_validation():
    """Near: a quarter of two sentences' word triples, taken together, is common to both."""
    by_gram = defaultdict(set)
    train = [grams(sentence, 3) for sentence in TRAIN.texts[0]]
    for index, own in enumerate(train):
        for gram in own:
            by_gram[gram].add(index)
    near = []
    for sentence in VALIDATION.texts[0]:
        own = grams(sentence, 3)
        common = Counter(index for gram in own for index in by_gram.get(gram, ()))
        near += [(sentence, TRAIN.texts[0][i]) for i, n in common.items() if n / len(own | train[i]) >= 0.25]
    assert near == []


@pytest.mark.shared
def test_no_sentence_is_from_sst2(shared):
    real = {words(s) for split in ("train", "validation")
            for s in read_split(str(shared / "glue"), GLUE_TASKS["sst2"], split).texts[0]}  # fmt: skip
    ours = {words(sentence) for sentence in [*TRAIN.texts[0], *VALIDATION.texts[0]]}
    assert ours & real == set()
