"""Corpus chrF (Popović 2015) as sacrebleu computes it: an F score over characters, for any language."""

from collections.abc import Mapping, Sequence

from sacrebleu.metrics.chrf import CHRF


class Chrf:
    """`chrf` in [0, 100]."""

    figures: Mapping[str, str] = {"chrf": "chrf"}

    def __init__(self) -> None:
        self.chrf = CHRF()

    def statistics(self, answer: str, references: Sequence[str]) -> dict[str, list[float]]:
        """N-grams of the answer, of the best reference and of both, for each order."""
        # sacrebleu gives these in no public method; its own bootstrap sums the same numbers.
        [counts] = self.chrf._extract_corpus_statistics([answer], [[reference] for reference in references])
        return {"chrf": counts}


metric = Chrf
