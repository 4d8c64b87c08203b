"""Rows that are generated together: prompts read in chunks, then a token for each at every step."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from lorafit.lora import AdapterRows
from lorafit.serve.cache import Part, bytes_held, empty_cache, joined
from lorafit.serve.job import Job, Row
from lorafit.serve.sampling import next_tokens, token_logprobs
from lorafit.train.loss import evaluating


class Forward:
    """The model, called with left-padded rows of different adapters.

    Args:
        model: A causal language model, with or without adapters.
        adapters: Says which rows are whose.
    """

    def __init__(self, model: PreTrainedModel, adapters: AdapterRows) -> None:
        self.model, self.adapters = model, adapters
        self._takes = set(inspect.signature(model.forward).parameters)

    def __call__(self, input_ids: Tensor, mask: Tensor, cache: Cache, names: Sequence[str | None]) -> Tensor:
        """Logits (rows, vocabulary) of the last column; the cache grows by the new columns.

        Args:
            input_ids: (rows, new columns).
            mask: (rows, all columns so far), 0 at padding.
            cache: Of the columns before.
            names: The adapter of each row, neighbours sorted.
        """
        self.adapters.use(names)
        device = self.model.device
        arguments = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device), "past_key_values": cache}
        if "position_ids" in self._takes:
            positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
            arguments["position_ids"] = positions.to(device)
        if "logits_to_keep" in self._takes:
            arguments["logits_to_keep"] = 1
        return self.model(**arguments, use_cache=True).logits[:, -1]


def bytes_per_token(model: PreTrainedModel) -> int:
    """What keys and values of one token take, tried with one."""
    cache, one = empty_cache(), torch.ones(1, 1, dtype=torch.long)
    with evaluating(model):
        Forward(model, AdapterRows(model))(one, one, cache, [None])
    return bytes_held(cache)


class Prefill:
    """Prompts on their way through the model, some columns at a time; jobs are sorted by adapter.

    Args:
        jobs: Whose prompts are read together.
        chunk: Columns at a time.
    """

    def __init__(self, jobs: Sequence[Job], chunk: int) -> None:
        self.jobs = sorted(jobs, key=lambda job: job.adapter or "")
        self.chunk = chunk
        longest = max(len(job.prompt) for job in self.jobs)
        padding = [longest - len(job.prompt) for job in self.jobs]
        self.input_ids = torch.tensor(
            [[0] * pad + list(job.prompt) for pad, job in zip(padding, self.jobs, strict=True)]
        )
        self.mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        self.cache = empty_cache()
        self.done = 0

    @property
    def row_count(self) -> int:
        """Rows that it will become."""
        return sum(job.n for job in self.jobs)

    def advance(self, forward: Forward, tokenizer: PreTrainedTokenizerBase) -> "Batch | None":
        """Read one chunk; after the last one, the rows with their first tokens."""
        stop = min(self.done + self.chunk, self.input_ids.shape[1])
        names = [job.adapter for job in self.jobs]
        logits = forward(self.input_ids[:, self.done : stop], self.mask[:, :stop], self.cache, names)
        self.done = stop
        if stop < self.input_ids.shape[1]:
            return None
        # asked once: a client may leave between two looks
        wanted = [(i, job) for i, job in enumerate(self.jobs) if job.is_wanted]
        sources = [i for i, job in wanted for _ in range(job.n)]
        rows = [row for _, job in wanted for row in job.rows(tokenizer)]
        if not rows:
            return Batch.empty()
        cache = self.cache
        if sources != [*range(len(self.jobs))]:
            cache = joined([Part(cache, sources, range(len(sources)), 0)])
        batch = Batch(rows, cache, self.mask[sources])
        batch.take(logits[torch.tensor(sources, device=logits.device)])
        return batch


class Batch:
    """Rows with a cache; every one has a last token that the model has not read yet."""

    def __init__(self, rows: list[Row], cache: Cache, mask: Tensor) -> None:
        self.rows, self.cache, self.mask = rows, cache, mask  # mask: (rows, columns), 0 at padding
        self.last: list[int] = []

    @classmethod
    def empty(cls) -> "Batch":
        """No rows."""
        return cls([], empty_cache(), torch.zeros(0, 0, dtype=torch.long))

    def step(self, forward: Forward) -> None:
        """One more token for every row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], 1)
        names = [row.job.adapter for row in self.rows]
        self.take(forward(torch.tensor(self.last)[:, None], self.mask, self.cache, names))

    def take(self, logits: Tensor) -> None:
        """Choose from logits (rows, vocabulary) and tell."""
        tokens = next_tokens(logits, [row.sampling for row in self.rows])
        logprobs = token_logprobs(logits, tokens, [row.job.top_logprobs for row in self.rows])
        for row, token, of_token in zip(self.rows, tokens, logprobs, strict=True):
            row.take(token, of_token)
        self.last = tokens


def regrouped(batches: Sequence[Batch], wanted: Callable[[Row], bool]) -> Batch:
    """The wanted rows of all batches in one, sorted by adapter, without columns that are padding for all."""
    found = [(b, i) for b, batch in enumerate(batches) for i, row in enumerate(batch.rows) if wanted(row)]
    if len(batches) == 1 and len(found) == len(batches[0].rows):
        return batches[0]
    found.sort(key=lambda place: batches[place[0]].rows[place[1]].job.adapter or "")
    parts, lengths = [], []
    for b, batch in enumerate(batches):
        places = [place for place, (own, _) in enumerate(found) if own == b]
        rows = [found[place][1] for place in places]
        if rows:
            lengths.append(int(batch.mask[rows].sum(1).max()))
            parts.append(Part(batch.cache, rows, places, batch.mask.shape[1] - lengths[-1]))
    if not parts:
        return Batch.empty()
    mask = torch.zeros(len(found), max(lengths), dtype=torch.long)
    for place, (b, i) in enumerate(found):
        own = batches[b].mask[i][-max(lengths) :]
        mask[place, max(lengths) - len(own) :] = own
    result = Batch([batches[b].rows[i] for b, i in found], joined(parts), mask)
    result.last = [batches[b].last[i] for b, i in found]
    return result
