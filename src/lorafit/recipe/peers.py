"""What a key that is absent means to LLaMA-Factory, axolotl and TRL, and which keys give away whose file it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    """Another trainer.

    Attributes:
        name: As people know it.
        marks: Keys that only its files have.
        defaults: What it does where a key is absent and lorafit would do something else, by our setting.
    """

    name: str
    marks: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)


_TRAINER = {  # transformers.TrainingArguments
    "train.per_device_train_batch_size": 8,
    "train.per_device_eval_batch_size": 8,
    "train.lr_scheduler_type": "linear",
    "train.warmup_steps": 0,
}

LLAMA_FACTORY = Peer(
    "LLaMA-Factory",
    frozenset({"stage", "finetuning_type", "cutoff_len", "lora_target", "lora_rank", "template", "dataset_dir"}),
    {**_TRAINER, "train.learning_rate": 5e-5, "lora.r": 8},
)
AXOLOTL = Peer(
    "axolotl",
    frozenset({"base_model", "sequence_len", "micro_batch_size", "datasets", "adapter", "lora_target_linear"}),
    {"train.num_train_epochs": 1.0, "train.per_device_train_batch_size": 1, "data.max_length": 512},
)
TRL = Peer(
    "TRL",
    frozenset({"dataset_name", "use_peft", "lora_target_modules", "dataset_text_field", "max_seq_length"}),
    {
        **_TRAINER,
        "train.learning_rate": 2e-5,
        "data.max_length": 1024,
        "lora.lora_dropout": 0.05,
        "lora.target_modules": None,
    },
)
PEERS = (LLAMA_FACTORY, AXOLOTL, TRL)

SECRETS = ("token", "api_key", "password", "secret")
"""Parts of the names of keys whose values are shown to nobody."""


def peer_of(keys: Iterable[str]) -> Peer:
    """Whose file has these keys: the trainer with most marks among them; TRL for the plain names of transformers."""
    found = set(keys)
    return max(reversed(PEERS), key=lambda peer: len(peer.marks & found))


def is_secret(key: str) -> bool:
    """Whether a key's value may be a secret."""
    words = key.lower()
    return any(words == part or words.endswith(f"_{part}") for part in SECRETS)
