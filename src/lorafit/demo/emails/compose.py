"""One e-mail from one set of facts: layout, tone, distractors, typing errors."""

import datetime
import json
import random
import re
from dataclasses import dataclass

from .notation import (
    draw_cents,
    draw_date,
    draw_days,
    draw_order,
    draw_phone,
    pick,
    shuffled,
    write_amount,
    write_date,
    write_order,
)
from .pool import Pool

FIELDS = ("request", "name", "product", "order", "date", "amount")
_LAYOUTS = ("letter", "letter", "note", "list", "reply", "forward")
_TONES = ("plain", "plain", "plain", "plain", "typos", "typos", "lower", "upper")
_WORDS_OR_SLOTS = re.compile(r"\{\w+\}|[A-Za-z]{5,}")


@dataclass(frozen=True)
class Facts:
    """What the order desk needs from one e-mail; None (`cents`) where the customer does not say it.

    `sent` is no part of the answer: the day the customer writes, which other days in the e-mail come before.
    """

    sent: datetime.date
    request: str
    name: str
    product: str
    order: str
    date: datetime.date
    cents: int | None

    def to_json(self) -> str:
        """The answer: one compact line, keys in the order of `FIELDS`, the amount without currency."""
        whole, rest = divmod(self.cents or 0, 100)
        amount = None if self.cents is None else whole + rest / 100 if rest else whole
        values = (self.request, self.name, self.product, self.order, self.date.isoformat(), amount)
        return json.dumps(dict(zip(FIELDS, values, strict=True)), separators=(",", ":"))


def draw_product(rng: random.Random, pool: Pool) -> str:
    """A kind and a thing, such as "red desk lamp", or the thing alone.

    Combined so that few products come twice: a short list can be learnt by heart, where the task is to copy.
    """
    return f"{pick(rng, pool.product_kinds)} {pick(rng, pool.product_things)}".strip()


def draw_facts(rng: random.Random, pool: Pool, request: str) -> Facts:
    """Facts from `pool`'s names and products; one e-mail in eight does not say the amount."""
    sent = draw_date(rng)
    return Facts(
        sent=sent,
        request=request,
        name=f"{pick(rng, pool.first_names)} {pick(rng, pool.last_names)}",
        product=draw_product(rng, pool),
        order=draw_order(rng),
        date=sent + draw_days(rng, 2, 45),
        cents=None if rng.random() < 1 / 8 else draw_cents(rng),
    )


def compose(rng: random.Random, pool: Pool, facts: Facts) -> str:
    """The text of an e-mail that says `facts` once each, among details that do not belong in the answer."""
    layout, tone = pick(rng, _LAYOUTS), pick(rng, _TONES)
    writer = _Writer(rng, pool, facts, typos=tone == "typos")
    parts = _LAYOUT_WRITERS[layout](writer)
    text = "\n".join(part for part in parts if part)
    return {"lower": str.lower, "upper": str.upper}.get(tone, str)(text)


class _Writer:
    """Fills templates of one pool for one e-mail."""

    def __init__(self, rng: random.Random, pool: Pool, facts: Facts, *, typos: bool):
        self.rng, self.pool, self.facts, self.typos = rng, pool, facts, typos

    def write(self, templates: tuple[str, ...]) -> str:
        """One of `templates`, filled."""
        return self.fill(pick(self.rng, templates))

    def fill(self, template: str) -> str:
        """`template` with its slots filled and, in a hasty e-mail, letters swapped in its own words."""
        return _WORDS_OR_SLOTS.sub(lambda match: self._word_or_slot(match[0]), template)

    def _word_or_slot(self, text: str) -> str:
        if text.startswith("{"):
            return self._slot(text[1:-1])
        if self.typos and self.rng.random() < 0.2:
            at = 1 + int(self.rng.random() * (len(text) - 2))
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        return text

    def _slot(self, slot: str) -> str:
        rng, pool, facts = self.rng, self.pool, self.facts
        if slot == "name":
            return facts.name
        if slot == "product":
            return facts.product
        if slot == "order":
            return write_order(rng, facts.order)
        if slot == "date":
            return write_date(rng, facts.date)
        if slot == "amount" and facts.cents is not None:
            return write_amount(rng, facts.cents)
        if slot == "subject":
            return self.write(pool.subjects)
        if slot == "phone":
            return draw_phone(rng)
        if slot == "other_name":
            first = pick(rng, [first for first in pool.first_names if first not in facts.name])
            return first if rng.random() < 0.5 else f"{first} {pick(rng, pool.last_names)}"
        if slot == "other_product":
            return pick(rng, [thing for thing in pool.product_things if thing not in facts.product])
        if slot == "other_order":
            return write_order(rng, draw_order(rng))
        if slot == "other_date":
            return write_date(rng, facts.sent - draw_days(rng, 1, 60))
        if slot == "other_amount":
            return write_amount(rng, draw_cents(rng))
        raise KeyError(f"{slot!r} in a template of the demo is not a slot, or its fact is unsaid")

    def ask(self, *, listed: bool = False) -> list[str]:
        """The request and, where its sentence lacks it and no list gives it, the order number."""
        asks = self.pool.asks[self.facts.request]
        if listed:
            return [self.write(tuple(ask for ask in asks if "{order}" not in ask))]
        ask = pick(self.rng, asks)
        return [self.fill(ask)] if "{order}" in ask else [self.fill(ask), self.write(self.pool.order_lines)]

    def details(self) -> list[str]:
        """Date and amount, where it is said, and in every other e-mail an aside, in any order."""
        said = [self.write(self.pool.date_lines)]
        said += [self.write(self.pool.amount_lines)] if self.facts.cents else []
        return shuffled(self.rng, [*said, *self.asides(int(self.rng.random() < 0.5))])

    def asides(self, count: int) -> list[str]:
        """`count` different asides."""
        return [self.fill(aside) for aside in shuffled(self.rng, self.pool.asides)[:count]]

    def greeting(self) -> str:
        """A first line that does not introduce the customer."""
        return self.write(tuple(line for line in self.pool.greetings if "{name}" not in line))

    def introduction(self) -> str:
        """A first line that does."""
        return self.write(tuple(line for line in self.pool.greetings if "{name}" in line))

    def signature(self) -> str:
        """The customer's name and what some have below it."""
        return "\n".join(line for line in (self.facts.name, self.write(self.pool.signature_tails)) if line)


def _letter(writer: _Writer) -> list[str]:
    body = [*writer.ask(), *writer.details()]
    if writer.rng.random() < 0.3:  # the reason comes before the request
        body = [*body[2:], *body[:2]]
    return [writer.greeting(), " ".join(body), writer.write(writer.pool.closings), writer.signature()]


def _note(writer: _Writer) -> list[str]:
    return [" ".join([writer.introduction(), *writer.ask(), *writer.details()])]


def _list(writer: _Writer) -> list[str]:
    order, date, amount = pick(writer.rng, writer.pool.bullets)
    lines = [f"{order}: {{order}}", f"{date}: {{date}}"]
    lines += [f"{amount}: {{amount}}"] if writer.facts.cents else []
    bullet = pick(writer.rng, ("- ", "* ", ""))
    items = [bullet + writer.fill(line) for line in shuffled(writer.rng, lines)]
    return [writer.greeting(), *writer.ask(listed=True), *items, *writer.asides(1), writer.signature()]


def _reply(writer: _Writer) -> list[str]:
    quote = [writer.write(writer.pool.quote_headers), "> " + writer.write(writer.pool.quotes)]
    return [" ".join([*writer.ask(), *writer.details()]), writer.signature(), *quote]


def _forward(writer: _Writer) -> list[str]:
    return [writer.write(writer.pool.forwards), "", " ".join([*writer.ask(), *writer.details()])]


_LAYOUT_WRITERS = {"letter": _letter, "note": _note, "list": _list, "reply": _reply, "forward": _forward}
