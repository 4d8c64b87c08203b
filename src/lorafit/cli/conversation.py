"""What `generate` and `chat` share: a run's model, its template, and the messages so far."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.data import Seq2SeqTemplate, Template
from lorafit.errors import DataError
from lorafit.evaluate.generate import Sampling, stream
from lorafit.lora import disabled
from lorafit.models import context_length
from lorafit.run import Run


@dataclass
class Conversation:
    """Messages in turn, answered by the tuned model or, with `use_base`, by the model it was made from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template | Seq2SeqTemplate
    system: str | None = None
    use_base: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def open(cls, run: Path, *, system: str | None) -> Conversation:
        """Load a run's model; raises RunError where `run` is none."""
        opened = Run.open(run)
        load = opened.load_seq2seq if opened.recipe.task == "seq2seq" else opened.load_model
        conversation = cls(*load(), system=system)
        conversation.reset()
        return conversation

    @property
    def name(self) -> str:
        """Which model answers."""
        return "base" if self.use_base else "tuned"

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system is not None else []

    def answer(self, text: str, *, on_text: Callable[[str], None], max_new_tokens: int, sampling: Sampling) -> str:
        """Answer `text` in the light of what was said before; an answer that is interrupted is not remembered.

        Raises:
            DataError: the conversation leaves no room for an answer in the model's context.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self.template.prompt_ids(messages)
        context = context_length(self.model)
        if context is not None and not self.model.config.is_encoder_decoder:  # which reads and writes so many each
            if len(prompt) >= context:
                raise DataError(
                    f"the conversation is {len(prompt)} tokens long and the model reads {context} with its answer: "
                    "start anew (/reset in a chat) or shorten it"
                )
            max_new_tokens = min(max_new_tokens, context - len(prompt))
        with disabled(self.model) if self.use_base else contextlib.nullcontext():
            answer = stream(
                self.model,
                self.tokenizer,
                prompt,
                on_text,
                stop_token_ids=self.template.stop_token_ids,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
            )
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer
