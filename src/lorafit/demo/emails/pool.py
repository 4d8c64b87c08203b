"""What one side of the split may say: its names, its products and its phrasings."""

from dataclasses import dataclass

REQUESTS = ("cancel", "refund", "exchange", "invoice", "delivery")


@dataclass(frozen=True)
class Pool:
    """The vocabulary and the sentence templates of one side (training or held out).

    Templates hold slots. True ones: `{name}`, `{product}`, `{order}`, `{date}`, `{amount}`. Distractors,
    which never belong in the answer: `{other_name}`, `{other_product}`, `{other_order}`, `{other_date}`,
    `{other_amount}` and `{phone}`. `{subject}` is filled with one of `subjects`.

    Attributes:
        first_names: Given names, for customers and for the colleagues who are mentioned.
        last_names: Family names.
        product_kinds: What stands before a thing to make a product of it; may be empty.
        product_things: Lower-case things, for the product and for those mentioned in passing.
        asks: For each of `REQUESTS`, sentences that ask for it; each has `{product}`, some have `{order}`.
        order_lines: Sentences that give the order number, for asks that do not.
        date_lines: Sentences that give the day the customer wants it done by.
        amount_lines: Sentences that give the price paid.
        asides: Sentences that hold only distractors, or nothing at all.
        greetings: First lines; those with `{name}` introduce the customer.
        closings: Last lines before the name.
        signature_tails: What follows the name in a signature; may be empty.
        quotes: The shop's earlier message, quoted below a reply.
        quote_headers: The line above a quote.
        forwards: What a colleague of the shop writes above a forwarded e-mail, with the header that follows.
        subjects: Subject lines.
        bullets: Labels of a list, as (order, date, amount).
    """

    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    product_kinds: tuple[str, ...]
    product_things: tuple[str, ...]
    asks: dict[str, tuple[str, ...]]
    order_lines: tuple[str, ...]
    date_lines: tuple[str, ...]
    amount_lines: tuple[str, ...]
    asides: tuple[str, ...]
    greetings: tuple[str, ...]
    closings: tuple[str, ...]
    signature_tails: tuple[str, ...]
    quotes: tuple[str, ...]
    quote_headers: tuple[str, ...]
    forwards: tuple[str, ...]
    subjects: tuple[str, ...]
    bullets: tuple[tuple[str, str, str], ...]

    def templates(self) -> list[str]:
        """Every sentence template of this side, in a fixed order (for the test that the sides share none)."""
        asks = [ask for request in REQUESTS for ask in self.asks[request]]
        labels = [label for triple in self.bullets for label in triple]
        return [
            *asks, *self.order_lines, *self.date_lines, *self.amount_lines, *self.asides, *self.greetings,
            *self.closings, *self.signature_tails, *self.quotes, *self.quote_headers, *self.forwards,
            *self.subjects, *labels,
        ]  # fmt: skip
