"""The share of answers that are a reference, white space around them apart."""

from collections.abc import Mapping, Sequence


class ExactMatch:
    """`exact_match` in [0, 1]."""

    figures: Mapping[str, str] = {"exact_match": "ratio"}

    def statistics(self, answer: str, references: Sequence[str]) -> dict[str, list[float]]:
        """1 of 1, or 0 of 1."""
        return {"exact_match": [float(answer.strip() in {reference.strip() for reference in references}), 1.0]}


metric = ExactMatch
