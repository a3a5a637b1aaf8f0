"""How far two texts are apart: edit distance, ANLS, and the forms in which texts are compared."""

from __future__ import annotations

import unicodedata
from collections import defaultdict

ANLS_THRESHOLD = 0.5  # a similarity below it counts as 0


def compute_edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements from one text to the other (Levenshtein).

    A column of the table of distances is kept as the bits of two integers (Myers, Hyyrö), so a page of text takes
    milliseconds.

    >>> compute_edit_distance("kitten", "sitting"), compute_edit_distance("", "abc")
    (3, 3)
    """
    if not one or not other:
        return len(one) + len(other)
    places: dict[str, int] = defaultdict(int)
    for index, letter in enumerate(one):
        places[letter] |= 1 << index
    every_bit = (1 << len(one)) - 1
    last_bit = 1 << (len(one) - 1)
    rises, falls, distance = every_bit, 0, len(one)  # between neighbours in the column
    for letter in other:
        equal = places.get(letter, 0)
        diagonal = ((((equal & rises) + rises) ^ rises) | equal | falls) & every_bit
        right_rises, right_falls = falls | (every_bit & ~(diagonal | rises)), diagonal & rises
        distance += bool(right_rises & last_bit) - bool(right_falls & last_bit)
        right_rises, right_falls = (right_rises << 1) | 1, right_falls << 1
        rises, falls = (right_falls | ~(diagonal | right_rises)) & every_bit, right_rises & diagonal & every_bit
    return distance


def compute_similarity(one: str, other: str) -> float:
    """1 for texts that differ only in case and white space, 0 for texts without anything in common.

    >>> compute_similarity("Total  due", "total due"), compute_similarity("abcd", "abcx")
    (1.0, 0.75)
    """
    one, other = (" ".join(text.lower().split()) for text in (one, other))
    longest = max(len(one), len(other))
    return 1 - compute_edit_distance(one, other) / longest if longest else 1.0


def compute_anls(one: str, other: str) -> float:
    """Average normalised Levenshtein similarity, the usual mark for text read from documents."""
    similarity = compute_similarity(one, other)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def normalize_text(text: str) -> str:
    """
    >>> normalize_text(" Straße\\n 7 ")
    'strasse 7'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalize_code(text: str) -> str:
    """Letters and digits only: people print spaces and dashes in numbers as they like.

    >>> normalize_code("DE 123-456")
    'de123456'
    """
    return "".join(letter for letter in normalize_text(text) if letter.isalnum())
