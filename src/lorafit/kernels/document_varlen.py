"""Attention within documents by torch's variable-length kernel (FlashAttention), on CUDA."""

import functools
import inspect

import torch
from torch import Tensor

try:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and later
except ImportError:
    varlen_attn = None

NEEDED = {"scale", "window_size", "enable_gqa"}  # arguments; the first versions had not all of them
LARGEST_HEAD = 256


@functools.lru_cache(maxsize=1)
def is_offered() -> bool:
    """Whether this torch has the kernel, with windows and grouped queries."""
    return (
        varlen_attn is not None
        and inspect.signature(varlen_attn).parameters.keys() >= NEEDED
        and torch.backends.cuda.is_flash_attention_available()
    )


def can_attend(query: Tensor, value: Tensor, softcap: float | None, dropout: float) -> bool:
    """Whether the kernel computes just this, forward and backward: half precision, no soft cap, no dropout."""
    d = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and softcap is None
        and not dropout
        and d == value.shape[-1]
        and d % 8 == 0
        and d <= LARGEST_HEAD
        and is_offered()
        and _runs_backward(torch.cuda.get_device_capability(query.device), d)
    )


def _runs_backward(capability: tuple[int, int], d: int) -> bool:
    """Ampere or later; its small relatives have too little shared memory for the backward of some head sizes."""
    small = capability in ((8, 6), (8, 7), (8, 9)) or capability[0] == 12
    return capability >= (8, 0) and not (small and 192 < d <= 224)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    scaling: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    """(1, heads, tokens, d) and (1, key heads, tokens, d) to (1, tokens, heads, d)."""
    assert varlen_attn is not None
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (tokens, heads, d)
    back = -1 if window is None else window - 1  # the kernel does not count the token itself; -1: all
    bounds, longest = _bounds(lengths, query.device), max(lengths)
    output = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(back, 0 if causal else back),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(output, Tensor)
    return output[None]


@functools.lru_cache(maxsize=16)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where documents begin, and the end: (documents + 1,), int32. Made once for all layers."""
    bounds = torch.zeros(len(lengths) + 1, dtype=torch.int32, pin_memory=device.type == "cuda")
    torch.cumsum(torch.tensor(lengths, dtype=torch.int32), 0, out=bounds[1:])
    return bounds.to(device, non_blocking=True)
