"""ROUGE-1, -2 and -L F scores (Lin 2004) as rouge-score computes them, by the reference that suits best.

rouge-score reads Latin letters and digits only: for other scripts chrF says more.
"""

from collections.abc import Mapping, Sequence

from rouge_score.rouge_scorer import RougeScorer

NAMES = {"rouge_l": "rougeL", "rouge1": "rouge1", "rouge2": "rouge2"}


class Rouge:
    """`rouge_l`, `rouge1` and `rouge2`, means over answers in [0, 1]."""

    figures: Mapping[str, str] = dict.fromkeys(NAMES, "ratio")

    def __init__(self) -> None:
        self.scorer = RougeScorer(list(NAMES.values()))

    def statistics(self, answer: str, references: Sequence[str]) -> dict[str, list[float]]:
        """The F score of each, of 1."""
        found = self.scorer.score_multi(list(references), answer)
        return {name: [found[theirs].fmeasure, 1.0] for name, theirs in NAMES.items()}


metric = Rouge
