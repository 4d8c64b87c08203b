"""A tiny model, its rows and a finished run, made on the spot and shared by the tests of evaluate, export and cli."""

import json
import os
import signal
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes run tests, and threads that wait for a core cost more
hypothesis.settings.register_profile("lorafit", deadline=None)  # a busy machine is no defect
hypothesis.settings.load_profile("lorafit")


@pytest.fixture(scope="session", autouse=True)
def auto_is_float32():
    """Tests compare numbers: they are computed alike on every processor, also on those that multiply bfloat16 fast."""
    from lorafit.models import devices

    asked = devices._cpu_multiplies_bf16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_cpu_multiplies_bf16", lambda *cpuinfo: asked(*cpuinfo) if cpuinfo else False)
        yield


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard():
    """A shell starts background jobs with SIGINT ignored, nohup with SIGHUP; lorafit leaves an ignored one ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGHUP, before[1])


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama in bfloat16 with a byte-level tokenizer without a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("model") / "tiny-llama"
    specials = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=2048
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 rows of prompt and completion; the answers are all alike, so a few steps lower the loss."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"Greet guest {number}.", "completion": f"Hello, guest {number}!"} for number in range(48)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def tiny_run(tiny_model_directory: Path, tiny_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps, evaluated."""
    from lorafit.cli.main import main

    directory = tmp_path_factory.mktemp("runs") / "tiny"
    command = ["train", "--model", str(tiny_model_directory), "--data", str(tiny_rows), "--output-dir", str(directory)]
    settings = ["train.max_steps=12", "train.learning_rate=0.02", "lora.r=4", "evaluate.max_new_tokens=16"]
    assert main([*command, *(word for setting in settings for word in ("--set", setting))]) == 0
    return directory
