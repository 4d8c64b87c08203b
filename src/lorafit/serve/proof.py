"""Before an adapter is served: in a batch beside others it must say what it says alone."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorafit.errors import AdapterError
from lorafit.evaluate.decoding import decoding
from lorafit.lora import AdapterRows, set_adapter
from lorafit.serve.batch import Forward
from lorafit.serve.cache import empty_cache
from lorafit.train.loss import ROUNDING, evaluating

COLUMNS = 6  # of the trial; its second row begins with padding


def check_rows(model: PreTrainedModel, adapter: str, name: str) -> None:
    """Compare the logits of a mixed batch with those of the adapter by itself.

    What would differ: models that mix the rows of a batch (experts that take tokens out of their rows), and layers that
    a batch cannot tell apart.

    Args:
        model: With the adapter, none active; it is the same afterwards.
        adapter: Its name on the model.
        name: What users call it.

    Raises:
        AdapterError: They differ by more than rounding.
    """
    ids = (torch.arange(COLUMNS) * 7 + 3) % model.config.get_text_config().vocab_size
    shorter = torch.cat([ids[:2] * 0, ids[2:]])
    both, mask = torch.stack([ids, shorter]), torch.ones(2, COLUMNS, dtype=torch.long)
    mask[1, :2] = 0
    rows = AdapterRows(model)
    with evaluating(model), decoding(model):
        try:
            base_first = Forward(model, rows)(both, mask, empty_cache(), [None, adapter])
            adapter_first = Forward(model, rows)(both, mask, empty_cache(), [adapter, None])
        finally:
            rows.clear()
        device = model.device
        wide, narrow = ids[None].to(device), ids[None, 2:].to(device)
        set_adapter(model, adapter)
        try:
            tuned = [model(input_ids=one, use_cache=False).logits[:, -1] for one in (wide, narrow)]
        finally:
            set_adapter(model, [])
        base = [model(input_ids=one, use_cache=False).logits[:, -1] for one in (wide, narrow)]
    mixed = torch.cat([base_first, adapter_first])
    alone = torch.cat([base[0], tuned[1], tuned[0], base[1]])
    if (error := _difference(mixed, alone)) > ROUNDING[model.dtype]:
        raise AdapterError(
            f"{name}: in a batch beside the base model its logits differ by {error:.2g} (relative) from those alone, "
            f"more than rounding ({ROUNDING[model.dtype]:.2g}): this model or adapter cannot share a batch"
        )


def _difference(ours: Tensor, own: Tensor) -> float:
    ours, own = ours.cpu().double(), own.cpu().double()
    return float((ours - own).norm() / own.norm().clamp_min(1e-30))
