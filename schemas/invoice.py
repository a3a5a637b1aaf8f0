"""The fields of one invoice. Amounts are exact decimals in the currency of the invoice.

    answer: struct<number: string, issued: date32, due: date32, seller: party, buyer: party, currency: string,
      lines: list<struct<description: string, quantity: amount, unit_price: amount, amount: amount>>, net: amount,
      taxes: list<struct<rate: decimal128(6, 3), amount: amount>>, total: amount>

A party is struct<name: string, address: string, tax_id: string>, an amount decimal128(16, 4).
"""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[Decimal, Field(max_digits=16, decimal_places=4)]
Rate = Annotated[Decimal, Field(max_digits=6, decimal_places=3, ge=0)]
ROUNDING_TOLERANCE = Decimal("0.05")  # per rounded amount


class Party(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="as printed")
    address: str | None = Field(
        None, description="on one line", json_schema_extra={"x-compare": {"by": "text", "at_least": 0.8}}
    )
    tax_id: str | None = Field(
        None, description="VAT or tax number, as printed", json_schema_extra={"x-compare": "code"}
    )


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    description: str = Field(
        description="what was sold", json_schema_extra={"x-compare": {"by": "text", "at_least": 0.8}}
    )
    quantity: Amount | None = Field(None, description="how many")
    unit_price: Amount | None = Field(None, description="of one, before tax")
    amount: Amount = Field(description="of the line, before tax")


class Tax(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rate: Rate | None = Field(None, description="in percent")
    amount: Amount = Field(description="of this tax")


class Invoice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = "Read this invoice. Leave out what is not printed on it."
    example: ClassVar[Any] = {
        "number": "2026-0117",
        "issued": "2026-03-02",
        "seller": {"name": "Acme Ltd"},
        "currency": "EUR",
        "lines": [{"description": "Paper, A4", "quantity": "10", "unit_price": "4.50", "amount": "45.00"}],
        "net": "45.00",
        "taxes": [{"rate": "20", "amount": "9.00"}],
        "total": "54.00",
    }

    number: str = Field(description="the invoice's number, as printed", json_schema_extra={"x-compare": "code"})
    issued: date | None = Field(None, description="the invoice's date")
    due: date | None = Field(None, description="when it must be paid")
    seller: Party = Field(description="who asks for money")
    buyer: Party | None = Field(None, description="who shall pay")
    currency: str = Field(pattern="^[A-Z]{3}$", description="as ISO 4217", json_schema_extra={"x-compare": "choice"})
    lines: list[Line] = Field(description="what is charged for, in order")
    net: Amount | None = Field(None, description="the sum before tax")
    taxes: list[Tax] = Field(description="each tax that is charged")
    total: Amount = Field(description="the sum to pay, with taxes")

    def violations(self) -> Iterator[str]:
        if self.issued and self.due and self.due < self.issued:
            yield f"due on {self.due}, before it was issued on {self.issued}"
        for index, line in enumerate(self.lines, 1):
            if line.quantity is not None and line.unit_price is not None:
                yield from _compare_amounts(
                    f"line {index}", line.quantity * line.unit_price, line.amount, rounded_count=1
                )
        net = sum((line.amount for line in self.lines), Decimal(0))
        if self.net is not None and self.lines:
            yield from _compare_amounts("the lines and the net sum", net, self.net, rounded_count=len(self.lines))
        if self.net is not None or self.lines:
            gross = (net if self.net is None else self.net) + sum((tax.amount for tax in self.taxes), Decimal(0))
            yield from _compare_amounts(
                "the net sum with taxes and the total", gross, self.total, rounded_count=len(self.taxes) + 1
            )


def _compare_amounts(subject: str, computed: Decimal, printed: Decimal, *, rounded_count: int) -> Iterator[str]:
    if abs(computed - printed) > ROUNDING_TOLERANCE * rounded_count:
        yield f"{subject} do not agree: {computed.normalize():f} by adding up, {printed.normalize():f} as written"
