from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from schemas.invoice import Invoice

GOOD: dict[str, Any] = Invoice.example | {"due": "2026-04-01"}


def doubts(**changes: Any) -> list[str]:
    return list(Invoice.model_validate(GOOD | changes).violations())


def test_an_invoice_that_adds_up_raises_no_doubt() -> None:
    assert doubts() == []
    assert Invoice.model_validate(GOOD).issued == date(2026, 3, 2)
    assert Invoice.model_validate(GOOD).total == Decimal("54.00")


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"total": "55.00"}, "the net sum with taxes and the total do not agree: 54 by adding up, 55 as written"),
        ({"net": "44.00", "total": "53.00"}, "the lines and the net sum do not agree: 45 by adding up, 44 as written"),
        ({"due": "2026-01-01"}, "due on 2026-01-01, before it was issued on 2026-03-02"),
        (
            {"lines": [{"description": "x", "quantity": "3", "unit_price": "10", "amount": "45"}]},
            "line 1 do not agree: 30 by adding up, 45 as written",
        ),
    ],
)
def test_what_does_not_add_up_is_said(changes: dict[str, Any], doubt: str) -> None:
    assert doubts(**changes) == [doubt]


def test_rounding_of_a_line_is_no_doubt() -> None:
    assert doubts(total="54.04") == []


def test_nothing_is_compared_with_what_was_not_read() -> None:
    assert doubts(lines=[], net=None, taxes=[], total="12", due=None, issued=None) == []
