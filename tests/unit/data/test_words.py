from __future__ import annotations

import unicodedata

import numpy as np

from plant_dist.data.words import by_word, touched, words_of


def test_words_of_a_text_and_of_its_pieces() -> None:
    text = "Fiebre, 38ºC"
    spans = [(0, 4), (4, 6), (6, 7), (8, 9), (9, 10), (10, 12)]
    word_T, places = words_of(text, spans)
    assert [text[start:end] for start, end in places] == ["Fiebre", ",", "38ºC"]
    assert word_T.tolist() == [0, 0, 1, 2, 2, 2]
    scores = by_word(np.array([0.5, 0.25, 0.0, -1.0, 0.25, 0.5]), word_T)
    assert scores.tolist() == [0.75, 0.0, -0.25]
    assert touched(places, 5, 7).tolist() == [True, True, False]
    assert touched(places, 7, 8).tolist() == [False] * 3
    # A word without a token, such as one beyond where reading ended, is none.
    assert words_of(text, spans[:3])[1].tolist() == [[0, 6], [6, 7]]
    # Some tokenizers count the space before a word as its first character.
    assert words_of("a b", [(0, 1), (1, 3)])[0].tolist() == [0, 1]
    assert words_of("", [])[1].shape == (0, 2)


def test_marks_are_a_part_of_their_word() -> None:
    """Decomposed accents, and the vowel signs of Devanagari."""
    decomposed = unicodedata.normalize("NFD", "infección aguda")
    spans = [(0, 7), (7, 10), (11, 15)]
    word_T, places = words_of(decomposed, spans)
    assert word_T.tolist() == [0, 0, 1]
    assert [unicodedata.normalize("NFC", decomposed[start:end]) for start, end in places] == [
        "infección", "agud",
    ]  # fmt: skip
    hindi = "हिन्दी भाषा"
    spans = [(place, place + 1) for place in range(len(hindi)) if hindi[place] != " "]
    assert [hindi[start:end] for start, end in words_of(hindi, spans)[1]] == hindi.split()


def test_scripts_without_spaces_have_what_their_tokens_hold() -> None:
    text = "高血圧, ไข้ x"
    # One token of two characters, one of one; a comma; a Thai word of one token; Latin.
    spans = [(0, 2), (2, 3), (3, 4), (5, 8), (9, 10)]
    word_T, places = words_of(text, spans)
    assert word_T.tolist() == [0, 1, 2, 3, 4]
    assert [text[start:end] for start, end in places] == ["高血", "圧", ",", "ไข้", "x"]
