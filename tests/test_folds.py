"""Folds: no text is held out while one that contains it is trained on."""

import numpy as np

from llmembed.folds import deal_folds, find_wholes

TEXTS = [
    "a fine film",
    "fine film",
    "FINE  film",
    "A fine film indeed",
    "a refined filmmaker",
    "film",
    "of its own",
    "",
]


def test_a_text_belongs_to_the_longest_one_that_contains_its_words():
    assert find_wholes(TEXTS).tolist() == [3, 3, 3, 3, 4, 3, 6, 7]


def test_real_texts_that_contain_each_other_are_found(pydocs):
    texts = pydocs.texts()
    wholes = find_wholes(texts)
    spoken = [f" {' '.join(text.casefold().split())} " for text in texts]
    longest = sorted(range(len(texts)), key=lambda row: len(spoken[row]), reverse=True)
    for row in range(0, len(texts), 7):
        assert wholes[row] == next(other for other in longest if spoken[row] in spoken[other])


def test_parts_are_held_out_with_their_whole():
    generator = np.random.default_rng(0)
    sentences = [" ".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz"), 12)) for _ in range(300)]
    phrases = [" ".join(sentence.split()[start : start + 6]) for sentence in sentences for start in (0, 3, 6)]
    codes = np.array([sentence[0] < "n" for sentence in sentences]).astype(int)
    wholes = find_wholes([*phrases, *sentences])
    assert wholes[:900].tolist() == [900 + number // 3 for number in range(900)]
    fold = deal_folds(np.concatenate([codes.repeat(3), codes]), wholes, folds=3, seed=1)
    np.testing.assert_array_equal(fold[:900], fold[900:].repeat(3))
    assert np.bincount(fold).tolist() == [400, 400, 400]
    for held in range(3):
        assert abs(np.mean(codes[fold[900:] == held]) - np.mean(codes)) < 0.02


def test_folds_of_unrelated_texts_differ_by_seed_alone():
    codes = np.array([0, 1] * 50)
    first, again, other = (deal_folds(codes, np.arange(100), folds=5, seed=seed) for seed in (0, 0, 1))
    assert np.bincount(first).tolist() == [20] * 5
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
