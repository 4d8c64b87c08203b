"""How people write dates, sums and order numbers, and the one notation that the answer wants.

Draws use only `Random.random`, the one method whose stream Python promises to keep between versions.
"""

import datetime
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_LETTERS = "BCDFGHJKLMNPRSTVWXZ"


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`, each equally likely."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """`items` in a random order (Fisher-Yates)."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        result[last], result[other] = result[other], result[last]
    return result


def draw_date(rng: random.Random) -> datetime.date:
    """A day in 2023 to 2026."""
    return datetime.date(2023, 1, 1) + datetime.timedelta(days=int(rng.random() * 4 * 365))


def draw_days(rng: random.Random, low: int, high: int) -> datetime.timedelta:
    """`low` to `high` days, both possible."""
    return datetime.timedelta(days=low + int(rng.random() * (high - low + 1)))


def write_date(rng: random.Random, day: datetime.date) -> str:
    """`day` in one of the notations of customers, never one that could mean another day."""
    month = _MONTHS[day.month - 1]
    ordinal = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th") if day.day not in (11, 12, 13) else "th"
    notations = [
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{day.day}{ordinal} of {month} {day.year}",
        f"{day.day} {month[:3]} {day.year}",
        f"{month[:3]} {day.day}{ordinal} {day.year}",
        f"{day.day:02}.{day.month:02}.{day.year}",  # with full stops the day is always first
        day.isoformat(),
    ]
    if day.day > 12:  # 14/03 can only be a day and a month, 04/03 cannot be told
        notations.append(f"{day.day}/{day.month:02}/{day.year}")
    return pick(rng, notations)


def draw_cents(rng: random.Random) -> int:
    """A price in cents: half below 100, half up to 2,500; one in three without cents."""
    whole = 5 + int(rng.random() * (95 if rng.random() < 0.5 else 2495))
    return whole * 100 + (0 if rng.random() < 1 / 3 else 10 + int(rng.random() * 90))


def write_amount(rng: random.Random, cents: int) -> str:
    """`cents` in one of the notations of customers: comma or point, grouped or not, any currency."""
    whole, rest = divmod(cents, 100)
    english, continental = f"{whole:,}", f"{whole:,}".replace(",", ".")
    if rest == 0:
        notations = [
            f"${english}", f"£{english}.00", f"EUR {continental},00", f"{whole} euros", f"{whole},- EUR",
            f"{whole} dollars",
        ]  # fmt: skip
    else:
        notations = [
            f"${english}.{rest:02}", f"£{english}.{rest:02}", f"EUR {continental},{rest:02}",
            f"{continental},{rest:02} €", f"{whole}.{rest:02} USD", f"{whole},{rest:02} euro",
        ]  # fmt: skip
    return pick(rng, notations)


def draw_order(rng: random.Random) -> str:
    """An order number in the answer's notation, such as KX-48213."""
    return pick(rng, _LETTERS) + pick(rng, _LETTERS) + f"-{10000 + int(rng.random() * 90000)}"


def write_order(rng: random.Random, order: str) -> str:
    """`order` as customers type it: with a hash, another sign for the hyphen or none, in lower case."""
    others = [order.replace("-", mark) for mark in ("", " ", "/")]
    return pick(rng, [order, order, f"#{order}", order.lower(), *others])


def draw_phone(rng: random.Random) -> str:
    """A telephone number of no real subscriber (it starts with 555 or 0555)."""
    digits = f"{int(rng.random() * 10_000_000):07}"
    long = [f"0555 {digits[:6]}", f"+1 555 {digits[:3]} {digits[3:]}", f"(0555) {digits}"]
    return pick(rng, [f"555-{digits[:4]}", *long])
