"""What a training counts on its way."""

from dataclasses import dataclass


@dataclass
class Counters:
    """Sums over the run and, with `new_`, since the last logged step. They live in the checkpoint.

    Attributes:
        tokens: real tokens seen, prompts included, padding never; of pictures these.
        seconds: time in forward and backward, without optimizer, evaluation and saving.
        new_loss: loss summed over trained tokens, in nats.
        new_trained: those tokens.
        new_taken: steps that were taken.
        skipped: steps that were not, as their loss or gradient was not finite.
        skipped_in_a_row: those since the last that was taken.
    """

    tokens: int = 0
    seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0
    new_loss: float = 0.0
    new_trained: int = 0
    new_taken: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def restart(self) -> None:
        """Begin a new logging window."""
        self.new_tokens = self.new_trained = self.new_taken = 0
        self.new_seconds = self.new_loss = 0.0
