"""Which answers the invoice schema doubts."""

from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from schemas.invoice import Invoice

VALID_INVOICE: dict[str, Any] = Invoice.example | {"due": "2026-04-01"}


def list_violations(**changes: Any) -> list[str]:
    return list(Invoice.model_validate(VALID_INVOICE | changes).violations())


def test_a_consistent_invoice_has_no_violations() -> None:
    assert list_violations() == []
    assert Invoice.model_validate(VALID_INVOICE).issued == date(2026, 3, 2)
    assert Invoice.model_validate(VALID_INVOICE).total == Decimal("54.00")


@pytest.mark.parametrize(
    ("changes", "violation"),
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
def test_sums_that_do_not_agree_are_violations(changes: dict[str, Any], violation: str) -> None:
    assert list_violations(**changes) == [violation]


def test_rounding_is_no_violation() -> None:
    assert list_violations(total="54.04") == []


def test_missing_values_are_not_compared() -> None:
    assert list_violations(lines=[], net=None, taxes=[], total="12", due=None, issued=None) == []
