"""The kinds of findings in data, and which of them stop a training."""

from dataclasses import dataclass

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Kind:
    """What findings of a kind have in common.

    Attributes:
        severity: `error` (the row cannot be trained, or no training can start) or `warning`.
        title: What was found.
        hint: What to do.
    """

    severity: str
    title: str
    hint: str


KINDS = {
    "file": Kind(ERROR, "cannot be read", "name files that are there, in a known format"),
    "encoding": Kind(ERROR, "not UTF-8, or half a character", "convert the file: iconv -f latin1 -t utf-8"),
    "json": Kind(ERROR, "not JSON", "mend the line, or leave it out with --fix"),
    "row": Kind(ERROR, "no row of named columns", "each row is one object, or a line with a cell for each column"),
    "format": Kind(ERROR, "no known format", "name the columns as one format does; README.md has them"),
    "columns": Kind(ERROR, "a column is not found", "name it, as the line below says"),
    "answer": Kind(ERROR, "no answer", "there is nothing to learn from: leave them out"),
    "text": Kind(ERROR, "empty text", "there is nothing to learn from: leave them out"),
    "label": Kind(ERROR, "no usable label", "a class is a name or a whole number"),
    "tag_count": Kind(ERROR, "not one tag for each word", "words and tags must be as many; mend the row"),
    "exchange": Kind(ERROR, "not one source with one target", "keep one exchange a row, without tools"),
    "new_label": Kind(ERROR, "labels that no training row has", "the classifier cannot learn it"),
    "classes": Kind(ERROR, "too few classes", "a classification needs at least two"),
    "untrained": Kind(ERROR, "no trained token", "the answer is not in the loss, or was cut off whole"),
    "refused": Kind(ERROR, "refused by the chat template", "mend the roles, or give another data.chat_template"),
    "few": Kind(ERROR, "too few rows to hold some out", "add rows, or give a validation file"),
    "picture": Kind(ERROR, "no picture, or a damaged one", "mend or remove them"),
    "caption": Kind(ERROR, "no caption", "add NAME.txt, a line in metadata.jsonl, or diffusion.instance_prompt"),
    "picture_absent": Kind(WARNING, "captions of pictures that are not there", "mend the names in metadata.jsonl"),
    "picture_small": Kind(WARNING, "smaller than what is trained", "they are enlarged and blur: find larger ones"),
    "mixed_formats": Kind(WARNING, "another format than most rows", "one format a data set is easier to trust"),
    "roles": Kind(WARNING, "roles out of order", "user and assistant take turns, after at most one system"),
    "unanswered": Kind(WARNING, "messages after the last answer", "what follows it is not trained"),
    "duplicate": Kind(WARNING, "copies of an earlier row", "each trains its answer once more"),
    "leak": Kind(WARNING, "training rows in the validation files", "the gain would look larger than it is"),
    "near_duplicate": Kind(WARNING, "near copies of an earlier row", "look at a few: they may be one row twice"),
    "near_leak": Kind(WARNING, "training rows nearly in the validation files", "the gain would look too large"),
    "special_tokens": Kind(WARNING, "special tokens as text", "it is read as the token itself"),
    "length": Kind(WARNING, "suspicious lengths", "far longer or shorter than the others"),
    "cut": Kind(WARNING, "start of the prompt cut off", "raise data.max_length to keep it"),
    "answer_cut": Kind(WARNING, "end of the answer cut off", "raise data.max_length to keep it"),
    "text_cut": Kind(WARNING, "end of the text cut off", "raise data.max_length to keep it"),
    "source_cut": Kind(WARNING, "end of the source cut off", "raise data.max_length to keep it"),
    "target_cut": Kind(WARNING, "end of the target cut off", "raise data.max_target_length to keep it"),
    "label_once": Kind(WARNING, "labels of a single row", "one row cannot teach a class, and none measures it"),
    "contradiction": Kind(WARNING, "texts with another label elsewhere", "one of the two is wrong"),
    "no_entity": Kind(WARNING, "no entity where one is likely", "was the tagging forgotten?"),
    "tag_order": Kind(WARNING, "entities that nothing begins", "the others start with B-; mend the tag"),
    "unused_columns": Kind(WARNING, "columns that are not read", "rename them where they should be"),
    "template": Kind(WARNING, "template", "lorafit mends it; other programs may not"),
}
"""By name, in the order in which they are told."""
