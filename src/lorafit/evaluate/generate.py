"""Answers of a model: batched generation with left padding and the KV cache, and streaming for a chat."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from lorafit.evaluate.decoding import decoding
from lorafit.models import context_length
from lorafit.train.loss import evaluating


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
        top_p: sample only among the likeliest tokens that together hold this probability, in (0, 1].
        seed: of the sampling.
        num_beams: above 1, the likeliest of so many continuations kept side by side (beam search).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42
    num_beams: int = 1


GREEDY = Sampling()


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_token_ids: Collection[int],
    max_new_tokens: int = 128,
    sampling: Sampling = GREEDY,
    batch_size: int = 16,
    on_rows: Callable[[int], None] = lambda done: None,
    streamer: TextStreamer | None = None,
) -> list[list[int]]:
    """Continue every prompt until a stop token or `max_new_tokens`.

    Prompts of similar length share a batch; in float32 each answer equals the one that its prompt gets alone.

    An encoder-decoder reads a prompt with its encoder, and its decoder starts as its `generation_config` says. What
    else stands there holds too (words never said, n-grams never repeated), but lengths and search are the arguments'.

    Args:
        model: a causal language model or an encoder-decoder.
        prompts: token ids of each prompt, none empty.
        stop_token_ids: any of these ends an answer and is not part of it.
        max_new_tokens: the longest answer, in tokens.
        sampling: greedy unless a temperature is given.
        batch_size: prompts generated together.
        on_rows: told how many answers each batch has finished.
        streamer: receives the tokens as they come; for a single prompt.

    Returns:
        The new token ids of each prompt, in the order of `prompts`.
    """
    stops = sorted(stop_token_ids)
    pad = stops[0] if stops else 0  # masked beside the prompts, cut off behind the answers
    encodes, config = model.config.is_encoder_decoder, _generation_config(model, sampling, max_new_tokens, stops, pad)
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    with evaluating(model), _seeded(sampling), decoding(model):
        for start in range(0, len(prompts), batch_size):
            batch = by_length[start : start + batch_size]
            input_ids, attention_mask = _padded([prompts[index] for index in batch], pad, left=not encodes)
            output = model.generate(  # pyright: ignore[reportCallIssue]  # a mixin's method, which pyright loses
                input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=config,
                streamer=streamer,
            )
            before = 1 if encodes else input_ids.shape[1]
            for index, ids in zip(batch, output[:, before:].tolist(), strict=True):
                end = next((at for at, token in enumerate(ids) if token in stop_token_ids), len(ids))
                answers[index] = ids[:end]
            on_rows(len(batch))
    return answers


def _generation_config(
    model: PreTrainedModel, sampling: Sampling, max_new_tokens: int, stops: list[int], pad: int
) -> GenerationConfig:
    """The arguments of `generate` as transformers has them."""
    encodes = model.config.is_encoder_decoder
    context = context_length(model) if encodes else None  # of the answer alone
    return GenerationConfig(
        max_new_tokens=max_new_tokens if context is None else min(max_new_tokens, context),
        min_length=0 if encodes else None,
        do_sample=sampling.temperature > 0,
        num_beams=sampling.num_beams,
        temperature=sampling.temperature or 1.0,
        top_p=sampling.top_p,
        top_k=50 if sampling.temperature == 0 else 0,  # transformers' neutral value of each kind: no top-k
        eos_token_id=stops or None,
        pad_token_id=pad,
        use_cache=True,
    )


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    on_text: Callable[[str], None],
    *,
    stop_token_ids: Collection[int],
    max_new_tokens: int = 512,
    sampling: Sampling = GREEDY,
) -> str:
    """Continue one prompt, calling `on_text` with each word as it is finished.

    Returns:
        The whole answer.
    """
    ids = generate(
        model,
        [prompt],
        stop_token_ids=stop_token_ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        streamer=_Words(tokenizer, on_text),
    )[0]
    return text_of(tokenizer, ids)


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Tokens as a person reads them, without special ones."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text


@contextmanager
def _seeded(sampling: Sampling) -> Iterator[None]:
    """Sampling draws from its own seed and leaves the caller's random state as it was."""
    with torch.random.fork_rng(enabled=sampling.temperature > 0):
        if sampling.temperature > 0:
            torch.manual_seed(sampling.seed)
        yield


class _Words(TextStreamer):
    """transformers' streamer, handing its text to a function in place of printing it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(text)


def _padded(prompts: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (prompts, longest): padded on the left all prompts end in the same column."""
    longest = max(map(len, prompts))
    input_ids, attention_mask = torch.full((len(prompts), longest), pad), torch.zeros(len(prompts), longest).long()
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), None) if left else slice(len(prompt))
        input_ids[row, place], attention_mask[row, place] = torch.tensor(prompt), 1
    return input_ids, attention_mask
