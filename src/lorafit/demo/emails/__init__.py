"""A seeded writer of messy customer e-mails and of the JSON an order desk needs from them.

The task: read an e-mail and answer with one line of JSON that has the six keys of `FIELDS`. What makes it
more than copying: the request (one of five) has to be understood; the name may stand in a greeting, a
signature or a header, and be in capitals; dates and sums come in many notations and leave in one; and
every e-mail holds details that look like answers and are not (other orders, earlier dates, postage,
colleagues, a quoted reply). An unsaid amount is null.

Names, products and phrasings of the two sides come from disjoint pools, so a held-out e-mail can only be
answered by reading it.
"""

import random

from .compose import FIELDS, Facts, compose, draw_facts
from .held_out_pool import HELD_OUT
from .pool import REQUESTS, Pool
from .training_pool import TRAINING

INSTRUCTION = (
    "Answer this e-mail with one line of JSON: request (cancel, refund, exchange, invoice or delivery), name, "
    "product, order, date (wanted by, YYYY-MM-DD), amount (paid; null if unsaid)."
)

__all__ = ["FIELDS", "HELD_OUT", "INSTRUCTION", "REQUESTS", "TRAINING", "Facts", "Pool", "write_rows"]


def write_rows(pool: Pool, count: int, *, seed: int) -> list[dict[str, str]]:
    """`count` rows `{"prompt": instruction and e-mail, "completion": JSON}`, the five requests equally often.

    The same arguments give the same rows in every process and Python version.
    """
    rng = random.Random(f"{seed}/{pool.product_things[0]}")  # the two sides draw from different streams
    rows = []
    for index in range(count):
        facts = draw_facts(rng, pool, REQUESTS[index % len(REQUESTS)])
        prompt = f"{INSTRUCTION}\n\n{compose(rng, pool, facts)}"
        rows.append({"prompt": prompt, "completion": facts.to_json()})
    return rows
