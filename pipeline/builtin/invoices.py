"""Chance -> a small invoice, typed on a page: every character stands in a place of its own, about a patch wide.

The order of the parts, the words before them, margins, gaps and the size of the scan vary; what is printed is all
that the answer holds. Amounts add up.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipeline.builtin.drawing import Letter, Scene

SELLERS = ("Acme", "Borel", "Cedar", "Delta", "Ember", "Fjord", "Gamma", "Hazel", "Ibis", "Juno", "Kappa", "Lotus")
GOODS = ("Paper", "Ink", "Lamp", "Chair", "Desk", "Cable", "Glue", "Pens", "Toner", "Clips", "Shelf", "Stamp")
CURRENCIES = ("EUR", "USD", "GBP", "CHF")
NUMBER_WORDS, DATE_WORDS, TOTAL_WORDS = ("No ", "Inv ", "Nr "), ("", "Date "), ("Total", "Sum", "To pay")
PITCH, LEADING, COLUMNS = 14, 28, 16  # of a character and of a line, in the model's pixels
NOTHING, SELLER, NUMBER, DATE, CURRENCY, TOTAL, GOOD, AMOUNT = range(8)  # then good and amount of the next line, ...
Mark = tuple[int, str, int, int]  # column, character, field, index in the field


def invoice(chance: random.Random) -> Scene:
    amounts = [
        chance.randrange(100, 9999 if chance.random() < 0.6 else 999) for _ in range(chance.choice((1, 2, 2, 3)))
    ]
    said = {
        "number": str(chance.randrange(1000, 99999)),
        "issued": f"20{chance.randrange(20, 30)}-{chance.randrange(1, 13):02}-{chance.randrange(1, 29):02}",
        "seller": {"name": chance.choice(SELLERS)},
        "currency": chance.choice(CURRENCIES),
        "lines": [{"description": chance.choice(GOODS), "amount": money(amount)} for amount in amounts],
        "taxes": [],
        "total": money(sum(amounts)),
    }
    return printed(chance, said, list(typed(chance, said)))


def money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def typed(chance: random.Random, said: dict[str, Any]) -> Iterator[list[Mark]]:
    """The lines of the page, each as its characters; an empty one is a gap."""
    title = at(chance.choice((0, 2)), said["seller"]["name"], SELLER)
    number = at(0, chance.choice(NUMBER_WORDS)) + at(6 - len(said["number"]) + 5, said["number"], NUMBER)
    word = chance.choice(DATE_WORDS)
    date = at(0, word) + at(len(word) or 1, said["issued"], DATE)
    yield title
    heads = [number, date]
    chance.shuffle(heads)
    yield from heads
    if chance.random() < 0.5:
        yield []
    for index, line in enumerate(said["lines"]):
        sold = at(0, line["description"], GOOD + 2 * index)
        yield sold + at(COLUMNS - len(line["amount"]), line["amount"], AMOUNT + 2 * index)
    if chance.random() < 0.3:
        yield []
    total = at(COLUMNS - len(said["total"]), said["total"], TOTAL)
    yield at(0, chance.choice(TOTAL_WORDS)) + at(COLUMNS - len(said["total"]) - 4, said["currency"], CURRENCY) + total


def printed_fields(said: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """What is read off the page, in the order of the answer."""
    yield from ((NUMBER, said["number"]), (DATE, said["issued"]))
    yield from ((SELLER, said["seller"]["name"]), (CURRENCY, said["currency"]))
    for index, line in enumerate(said["lines"]):
        yield from ((GOOD + 2 * index, line["description"]), (AMOUNT + 2 * index, line["amount"]))
    yield TOTAL, said["total"]


def at(column: int, text: str, field: int = NOTHING) -> list[Mark]:
    return [(column + index, letter, field, index) for index, letter in enumerate(text) if letter != " "]


def printed(chance: random.Random, said: dict[str, Any], lines: list[list[Mark]]) -> Scene:
    scale = chance.uniform(1.0, 2.0)
    margin_x, margin_y = chance.uniform(0, 10) * scale, chance.uniform(0, 10) * scale
    width = round(scale * (PITCH * COLUMNS + chance.uniform(14, 28)))
    height = round(scale * (LEADING * len(lines) + chance.uniform(14, 28)))
    paper = chance.choice(((255, 255, 255), (250, 246, 236), (240, 244, 250)))
    ink = chance.choice(((0, 0, 0), (20, 20, 80), (60, 30, 20)))
    letters = [
        Letter(margin_x + scale * PITCH * (mark[0] + 0.5), margin_y + scale * LEADING * (row + 0.5), *mark[1:])
        for row, line in enumerate(lines)
        for mark in line
    ]

    def draw(_: int) -> Image.Image:
        page = Image.new("RGB", (width, height), paper)
        pen = ImageDraw.Draw(page)
        for letter in letters:
            pen.text((letter.x, letter.y), letter.text, fill=ink, font=font(round(20 * scale)), anchor="mm")
        return page

    return Scene("invoice", said, (width, height), draw, letters=letters)


@functools.lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
