"""Small models on disk: a saved checkpoint, and the same weights as a GGUF file."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def vocabulary() -> tuple[list[str], list[str]]:
    """Byte-level tokens with a few merges, then the special ones (Qwen's name for the end: its class would add it)."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w"]
    tokens = [
        *bytes_to_unicode().values(),
        *(merge.replace(" ", "") for merge in merges),
        "<|endoftext|>",
        "<|reserved_0|>",
    ]
    return tokens, merges


def small_model(dtype: torch.dtype = torch.float32, tied: bool = False) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(vocabulary()[0]), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-6,
        tie_word_embeddings=tied, eos_token_id=261, bos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).to(dtype).to(torch.float32)
    for weight in model.parameters():  # biases and norms start as constants, which would hide a mix-up
        weight.data += torch.randn_like(weight).mul(0.1).to(dtype).float()
        weight.data = weight.data.to(dtype).float()
    return model.eval()


def small_tokenizer() -> PreTrainedTokenizerFast:
    tokens, merges = vocabulary()
    core = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", additional_special_tokens=["<|reserved_0|>"]
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "small"
    small_model().save_pretrained(directory)
    small_tokenizer().save_pretrained(directory)
    return directory


def write_gguf(
    file: Path,
    model: Qwen2ForCausalLM,
    *,
    quantize: gguf.GGMLQuantizationType | None = None,
    drop: str = "nothing",
    extra: dict[str, Any] | None = None,
) -> Path:
    """The model as llama.cpp would write it; matrices quantized where asked for, one tensor left out."""
    tokens, merges = vocabulary()
    config = model.config
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_name("Small")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(261)
    for key, value in (extra or {}).items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if (config.tie_word_embeddings and name == "lm_head.weight") or name == drop:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None
        data = weight.numpy()
        if quantize is not None and data.ndim == 2:
            writer.add_tensor(target, gguf.quantize(data, quantize), raw_dtype=quantize)
        else:
            writer.add_tensor(target, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(name="small_model")
def _small_model():
    return small_model


@pytest.fixture(name="small_tokenizer")
def _small_tokenizer():
    return small_tokenizer


@pytest.fixture(name="write_gguf")
def _write_gguf():
    return write_gguf
