"""How the decoder of an encoder-decoder starts to write: in training by the model's own shift, in generation alike."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorafit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def settle_decoder_start(model: "PreTrainedModel", target_start: Sequence[int], target_end: Sequence[int]) -> None:
    """Let generation start as training does: by the model's own shift of labels, and with what each target begins with.

    `model.generation_config` then holds `decoder_start_token_id` and `forced_bos_token_id`, for lorafit and for
    transformers' own `generate`.

    Args:
        model: an encoder-decoder with a head.
        target_start: special tokens that every target begins with, as the tokenizer makes them.
        target_end: those that end it.

    Raises:
        ModelError: The model shifts its labels in a way of its own, or targets begin with several special tokens.
    """
    if len(target_start) > 1:
        raise ModelError(
            f"targets begin with {len(target_start)} special tokens; transformers starts the answers of a "
            f"{type(model).__name__} with one at most"
        )
    first = shifted_start(model)
    config: Any = model.generation_config
    config.decoder_start_token_id = target_end[-1] if first is None else first
    config.forced_bos_token_id = target_start[0] if target_start else None


def shifted_start(model: "PreTrainedModel") -> int | None:
    """The token that the model puts before its labels; None where it is their last one, wrapped around (mBART).

    What a model does to its labels stands in its code, so it is tried on two targets.

    Raises:
        ModelError: It does something else to them.
    """
    import torch

    decoder: Any = model.get_decoder()
    seen: list[list[int]] = []
    hook = decoder.register_forward_pre_hook(
        lambda module, arguments, keywords: seen.append(keywords["input_ids"][0].tolist()), with_kwargs=True
    )
    targets = [[6, 5, 7], [6, 5, 4]]
    try:
        with torch.no_grad():
            for target in targets:
                ids = torch.tensor([target], device=model.device)
                model(input_ids=ids, labels=ids)
    except (ValueError, TypeError) as error:  # how transformers' models refuse labels, or know no such argument
        raise ModelError(f"a {type(model).__name__} cannot start a target: {error}") from error
    finally:
        hook.remove()
    starts = [ids[0] for ids in seen]
    if [ids[1:] for ids in seen] == [target[:-1] for target in targets]:
        if starts[0] == starts[1]:
            return starts[0]
        if starts == [target[-1] for target in targets]:
            return None
    raise ModelError(
        f"a {type(model).__name__} makes its decoder's input of the labels in an unknown way: {targets[0]} became "
        f"{seen[0]}"
    )
