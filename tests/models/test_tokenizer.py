"""Tokenizers as they were saved; pad tokens by rule."""

from pathlib import Path

import pytest

from lorafit.errors import ModelError
from lorafit.models import load_tokenizer
from lorafit.models.resolve import ResolvedModel


def saved(directory: Path, tokenizer) -> ResolvedModel:
    tokenizer.save_pretrained(directory)
    return ResolvedModel("t", str(directory), None, None, "directory")


def test_a_spare_token_pads_and_the_vocabulary_stays(tmp_path, small_tokenizer):
    tokenizer = load_tokenizer(saved(tmp_path, small_tokenizer()))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|reserved_0|>", "<|endoftext|>")
    assert len(tokenizer) == 263
    assert tokenizer(["hello", "hello world"], padding=True).input_ids[0][-1] == tokenizer.pad_token_id == 262


def tokenizer_with(tokens: list[str], **special: str):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    unknown = special.get("unk_token", tokens[0])
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=unknown))
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.mark.parametrize(
    "tokens, special, want",
    [
        (["a", "<pad>", "</s>", "<unk>"], {"eos_token": "</s>", "unk_token": "<unk>"}, "<pad>"),
        (["a", "</s>", "<unk>"], {"eos_token": "</s>", "unk_token": "<unk>"}, "<unk>"),
        (["a", "</s>", "<s>"], {"eos_token": "</s>", "bos_token": "<s>"}, "</s>"),
        (["a", "<eot>"], {"eos_token": "<eot>", "unk_token": "<eot>", "bos_token": "<eot>"}, "<eot>"),
        (["a", "</s>", "<mine>"], {"eos_token": "</s>", "pad_token": "<mine>"}, "<mine>"),
    ],
)
def test_the_pad_token_is_one_there_is(tmp_path, tokens, special, want):
    tokenizer = load_tokenizer(saved(tmp_path, tokenizer_with(tokens, **special)))
    assert tokenizer.pad_token == want
    assert len(tokenizer) == len(tokens)


def test_a_tokenizer_without_any_end_is_refused(tmp_path):
    with pytest.raises(ModelError, match="neither a pad nor an end token"):
        load_tokenizer(saved(tmp_path, tokenizer_with(["a", "b"])))
