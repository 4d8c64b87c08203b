"""How a metric is read: which direction is better, and how its figure is written."""

SMALLER_IS_BETTER = {"loss", "perplexity", "mean_absolute_error"}
PERCENT = {
    "accuracy",
    "token_accuracy",
    "word_accuracy",
    "exact_match",
    "valid_json",
    "field_accuracy",
}
"""Shares that are written as percentages, and their differences as points."""
SPELLED = {"bleu": "BLEU", "chrf": "chrF", "macro_f1": "macro F1", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2"}
SPELLED |= {"micro_f1": "micro F1", "entity_f1": "entity F1", "r2": "R²", "pearson": "Pearson's r"}
SPELLED |= {"rouge_l": "ROUGE-L", "valid_json": "valid JSON"}


def better(name: str, difference: float) -> bool:
    """Whether a change by `difference` is a gain."""
    return difference < 0 if name in SMALLER_IS_BETTER else difference > 0


def spelled(name: str) -> str:
    """The metric's name for a person."""
    return SPELLED.get(name, name.replace("_", " "))


def written(name: str, value: float, sign: str = "") -> str:
    """A figure for a person; `sign` "+" shows the sign of a difference."""
    if name in PERCENT:
        return f"{100 * value:{sign}.1f} %"
    if name in ("bleu", "chrf"):
        return f"{value:{sign}.1f}"
    return f"{value:{sign}.3f}" if abs(value) < 1000 else f"{value:{sign},.0f}"
