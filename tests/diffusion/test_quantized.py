"""A FLUX transformer in 4 bits: loaded, trained, and what the adapter computes over it."""

import pytest
import torch
from picture_runs import adapted, prepared, recipe_of

from lorafit.errors import ModelError
from lorafit.lora import adapter_tensors, disabled
from lorafit.lora.base_weight import read_weight, weights_in
from lorafit.train import train

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_gradients_over_a_quantized_transformer_are_those_over_its_weights_as_they_read(quantize, base, pictures):
    model, rows, loss = adapted(recipe_of(base("flux"), pictures, f"model.quantize={quantize}"))
    quantized = [module for module in model.modules() if type(module.__dict__["_parameters"].get("weight")) not in
                 (torch.nn.Parameter, type(None))]  # fmt: skip
    assert sum(weights_in(module.weight) for module in quantized) > 0.5 * sum(map(weights_in, model.parameters()))
    batch = loss.collator(10_000, 2, packed=False, share_prefix=False)([rows.train[0], rows.train[1]])
    (pair,) = batch["micro_batches"]
    torch.manual_seed(0)
    loss(pair).sum().backward()
    gradients = {key: value.grad for key, value in adapter_tensors(model).items()}

    whole, _, plain_loss = adapted(recipe_of(base("flux"), pictures))
    names = {id(module): name for name, module in model.named_modules()}
    with torch.no_grad():
        for module in quantized:
            whole.get_submodule(names[id(module)]).weight.copy_(read_weight(module))
    torch.manual_seed(0)
    plain_loss(pair).sum().backward()
    for key, value in adapter_tensors(whole).items():
        error = (gradients[key] - value.grad).norm() / value.grad.norm()
        assert error < (1e-4 if quantize == "nf4" else 0.05), f"{key}: {error:.1e}"


def test_a_run_in_four_bits_learns_and_leaves_the_base_alone(base, pictures, tmp_path):
    recipe = recipe_of(base("flux"), pictures, "model.quantize=nf4", output_dir=str(tmp_path / "run"))
    trained = train(recipe, on_notice=lambda line: None)
    losses = [line["eval_loss"] for line in trained.run.metrics() if "eval_loss" in line]
    assert losses[-1] < losses[0] and trained.run.record["plan"]["quantize"] == "nf4"
    rows = prepared(recipe)
    assert len(rows.train) == 8
    with disabled(trained.model):
        assert not any(parameter.requires_grad for parameter in trained.model.parameters())


def test_weights_that_are_no_pickle_are_asked_for(base, pictures, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(base("flux"), copy)
    for file in (copy / "transformer").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(ModelError, match="no weights in safetensors"):
        adapted(recipe_of(copy, pictures))
