"""Take values of a header as plain texts and numbers; a value of another kind counts as missing.

The header, or the item of a sequence, is as `read_header` gives it, so that no value fails when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def text_in(header: Dataset, keyword: str) -> str:
    """Return the text of an attribute without padding; '' if it has none."""
    value = header.get(keyword)
    return value.strip(" \0") if isinstance(value, str) else ""


def numbers_in(header: Dataset, keyword: str) -> list[float]:
    """Return the numbers of an attribute; an empty list unless all are finite."""
    value: Any = header.get(keyword)
    if value is None or isinstance(value, (bytes, str)):
        return []
    try:
        numbers = [float(number) for number in (value if isinstance(value, Iterable) else [value])]
    except (TypeError, ValueError, OverflowError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def first_number_in(header: Dataset, keyword: str) -> float | None:
    """Return the first number of an attribute; None if it has none."""
    return next(iter(numbers_in(header, keyword)), None)


def number_in(header: Dataset, keyword: str) -> float | None:
    """Return the only number of an attribute; None if it has none or several."""
    numbers = numbers_in(header, keyword)
    return numbers[0] if len(numbers) == 1 else None


def whole_number_in(header: Dataset, keyword: str) -> int | None:
    """Return the only number of an attribute if it is whole; None if it is not."""
    number = number_in(header, keyword)
    return int(number) if number is not None and number.is_integer() else None


def items_in(header: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; an empty list if it is missing or not a sequence."""
    value = header.get(keyword)
    return [] if not value or isinstance(value, (bytes, str)) else list(value)
