"""Answers side by side, with what differs from the reference marked."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from lorafit.metrics.names import spelled, written
from lorafit.report.blocks import Answer, Block, Fold, Sample, Samples, Section, Text

SHOWN, FOLDED = 4, 60
REFERENCES = 3  # of a prompt that are shown at once
WORDS = re.compile(r"\w+|\s+|[^\w\s]")
COMPARED = 1500  # words and signs of an answer: comparing takes the product of both lengths
ALIKE = 0.4  # of a match, from which on single differences say something; below, everything differs
PROMPT_CHARACTERS = 600  # of a prompt: its end is nearest to the answer


def samples_section(samples: Sequence[Mapping[str, Any]]) -> Section | None:
    """The first samples, and more of them folded; None for none."""
    if not samples:
        return None
    views = [sample_view(sample) for sample in samples[: SHOWN + FOLDED]]
    blocks: list[Block] = []
    if any(sample["reference"] for sample in samples):
        blocks.append(
            Text("Marked in an answer: what the reference does not have; struck through: what it lacks.", "muted")
        )
    blocks.append(Samples(views[:SHOWN]))
    if views[SHOWN:]:
        left = len(samples) - len(views)
        title = f"{len(views) - SHOWN} more" + (f" ({left:,} others are in samples.jsonl)" if left else "")
        blocks.append(Fold("more-samples", title, [Samples(views[SHOWN:])]))
    return Section("samples", "Answers", "Answers side by side", blocks)


def sample_view(sample: Mapping[str, Any]) -> Sample:
    """One line of `samples.jsonl`, compared with the reference that is nearest to each answer."""
    references = sample.get("references") or ([] if sample["reference"] is None else [sample["reference"]])
    answers = [
        Answer("reference" if i == 0 else "or", [("same", text)]) for i, text in enumerate(references[:REFERENCES])
    ]
    for name in ("base", "tuned"):
        answers.append(_compared(name, sample[name], references))
    prompt = sample["prompt"].strip()
    short = prompt if len(prompt) <= PROMPT_CHARACTERS else f"... {prompt[-PROMPT_CHARACTERS:]}"
    whole = prompt if short != prompt else ""
    return Sample(short, whole, answers, _scores(sample.get("scores", {})), references[REFERENCES:])


def _compared(name: str, answer: str, references: Sequence[str]) -> Answer:
    if not references:
        return Answer(name, [("same", answer)], "" if answer.strip() else "empty")
    if answer.strip() in [reference.strip() for reference in references]:
        return Answer(name, [("same", answer)], "equal")
    nearest = max(references, key=lambda reference: SequenceMatcher(None, reference, answer).real_quick_ratio())
    pieces = list(marked(answer, nearest))
    unlike = len(pieces) == 1  # nothing is marked, though it differs
    return Answer(name, pieces, "empty" if not answer.strip() else "unlike the reference" if unlike else "")


def marked(answer: str, reference: str) -> Iterator[tuple[str, str]]:
    """The answer in pieces: "same", "extra", and "missing" ones that only the reference has.

    Without the missing ones the pieces joined are the answer. An answer that is long, or quite another, is one piece.
    """
    said, right = WORDS.findall(answer), WORDS.findall(reference)
    if len(said) > COMPARED or len(right) > COMPARED:
        yield "same", answer
        return
    matcher = SequenceMatcher(None, right, said, autojunk=False)
    if matcher.ratio() < ALIKE:
        yield "same", answer
        return
    for operation, first, last, start, end in matcher.get_opcodes():
        lacking, own = "".join(right[first:last]), "".join(said[start:end])
        if operation == "equal":
            yield "same", own
            continue
        if lacking.strip():
            yield "missing", lacking
        if own:
            yield ("extra" if own.strip() else "same"), own


def _scores(scores: Mapping[str, Sequence[float]]) -> str:
    return "; ".join(
        f"{spelled(name)}: base {written(name, base)}, tuned {written(name, tuned)}"
        for name, (base, tuned) in scores.items()
    )
