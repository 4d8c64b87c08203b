"""Read a base model's tokenizer through transformers."""

import re
from typing import TYPE_CHECKING

from lorafit.collection import collection_paused
from lorafit.errors import ModelError
from lorafit.models.guard import announce_code
from lorafit.models.resolve import ResolvedModel
from lorafit.models.source import explained, source_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<PAD>", "<|finetune_right_pad_id|>", "<|vision_pad|>")
_SPARE = re.compile(r"reserved|unused|placeholder|extra_0|dummy", re.IGNORECASE)


def load_tokenizer(resolved: ResolvedModel, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Load the tokenizer; a missing pad token is chosen among the tokens it has, never added.

    Args:
        resolved: what `resolve` returned.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        ModelError: not there, not readable, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    if trust_remote_code:
        announce_code(resolved.reference)
    with explained(resolved, "tokenizer"), collection_paused():
        tokenizer = AutoTokenizer.from_pretrained(
            resolved.path, trust_remote_code=trust_remote_code, **source_of(resolved)
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _spare_token(tokenizer)
    return tokenizer


def _spare_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A token to pad with: one made for it, one without a use, the unknown token, or else the end of text.

    Padding with the end of text would teach nothing wrong (padded labels are never trained), but programs that mask
    by token id would drop the real ends.
    """
    vocabulary = tokenizer.get_vocab()
    special = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=vocabulary.__getitem__)
    candidates = [
        *(name for name in _PAD_NAMES if name in vocabulary),
        *(name for name in special if _SPARE.search(name)),
        tokenizer.unk_token,
    ]
    for name in candidates:
        if name is not None and name not in (tokenizer.eos_token, tokenizer.bos_token):
            return str(name)
    if tokenizer.eos_token is None:
        raise ModelError(f"The tokenizer of {tokenizer.name_or_path} has neither a pad nor an end token: set one in it")
    return str(tokenizer.eos_token)
