"""What a tuned classifier is measured against: an answer that needs no model."""

from dataclasses import dataclass

from lorafit.metrics import Measured, Scores, better, spelled, written
from lorafit.run import Run


@dataclass(frozen=True)
class Beside:
    """One such answer.

    Attributes:
        name: of the answer: "the commonest class".
        answer: the same as it begins a sentence: "Always answering LOC".
        metric: by which both are measured.
        measured: of the answer (as `base`) and of the tuned model.
    """

    name: str
    answer: str
    metric: str
    measured: Measured

    @classmethod
    def of(cls, run: Run, name: str, answer: str, metric: str, scores: Scores) -> "Beside":
        """With the interval that the run's recipe asks for."""
        recipe = run.recipe
        measured = scores.measured(samples=recipe.evaluate.bootstrap_samples, seed=recipe.train.seed)
        return cls(name, answer, metric, measured)

    @property
    def is_beaten(self) -> bool:
        """Whether the tuned model is better beyond chance, or as good as can be: nothing beats an error of zero."""
        found = self.measured
        perfect = found.base == 0 and better(self.metric, -1)
        return perfect or (found.beyond_chance and better(self.metric, found.difference))

    @property
    def sentence(self) -> str:
        """Both figures in words."""
        answer, tuned = (written(self.metric, value) for value in (self.measured.base, self.measured.tuned))
        return f"{self.answer} gives {spelled(self.metric)} {answer}, the tuned model {tuned}."
