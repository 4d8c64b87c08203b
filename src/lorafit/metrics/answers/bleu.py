"""Corpus BLEU (Papineni et al. 2002) as sacrebleu computes it, with all references of a prompt."""

from collections.abc import Mapping, Sequence

from sacrebleu.metrics.bleu import BLEU

from lorafit.errors import ConfigError


class Bleu:
    """`bleu` in [0, 100].

    Args:
        tokenizer: sacrebleu's name of one; `13a` is its default, `zh` separates Chinese characters.
    """

    figures: Mapping[str, str] = {"bleu": "bleu"}

    def __init__(self, tokenizer: str = "13a") -> None:
        if tokenizer not in BLEU.TOKENIZERS:
            known = ", ".join(sorted(BLEU.TOKENIZERS))
            raise ConfigError(f"evaluate.metrics bleu:{tokenizer}: sacrebleu's tokenizers are {known}")
        self.bleu = BLEU(tokenize=tokenizer, force=True)

    def statistics(self, answer: str, references: Sequence[str]) -> dict[str, list[float]]:
        """Length of answer and closest reference, then right and all n-grams of the orders 1 to 4."""
        score = self.bleu.corpus_score([answer], [[reference] for reference in references])
        return {"bleu": [score.sys_len, score.ref_len, *score.counts, *score.totals]}


metric = Bleu
