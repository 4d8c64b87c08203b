"""Customer e-mails in CoNLL's way: who writes (PERSON), and about what (PRODUCT).

    python make_rows.py

writes train.conll and held_out.conll. No name, product or phrase of the second occurs in the first.
"""

import argparse
import random
import re
from pathlib import Path

from lorafit.demo.emails import HELD_OUT, REQUESTS, TRAINING, Pool, compose, draw_facts

WORD = re.compile(r"\w+|[^\w\s]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=400, help="e-mails to train on")
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--output-dir", type=Path, default=Path())
    asked = parser.parse_args()
    for name, pool, count, seed in (("train", TRAINING, asked.train, 0), ("held_out", HELD_OUT, asked.held_out, 1)):
        rng = random.Random(seed)
        text = "\n".join(e_mail(rng, pool) for _ in range(count))
        (asked.output_dir / f"{name}.conll").write_text(text, encoding="utf-8")


def e_mail(rng: random.Random, pool: Pool) -> str:
    """One e-mail, a word and its tag a line."""
    facts = draw_facts(rng, pool, rng.choice(REQUESTS))
    words = WORD.findall(compose(rng, pool, facts))
    tags = ["O"] * len(words)
    for kind, text in (("PERSON", facts.name), ("PRODUCT", facts.product)):
        mark(words, tags, WORD.findall(text), kind)
    return "".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True))


def mark(words: list[str], tags: list[str], found: list[str], kind: str) -> None:
    """Tag every place where `found` stands, in any case of letters."""
    lower, wanted = [word.lower() for word in words], [word.lower() for word in found]
    for start in range(len(words) - len(wanted) + 1):
        if lower[start : start + len(wanted)] == wanted:
            tags[start : start + len(wanted)] = [f"B-{kind}"] + [f"I-{kind}"] * (len(wanted) - 1)


if __name__ == "__main__":
    main()
