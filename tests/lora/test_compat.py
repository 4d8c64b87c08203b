"""PEFT's names: the programs that guides teach run with the import line changed."""

import shutil

import pytest
import torch
from datasets import Dataset
from small_models import GROUPED, batch, gpt2, llama, make, output
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lorafit import LoraConfig, PeftModel, attach, get_peft_model
from lorafit.errors import ConfigError

GUIDE = {"r": 8, "lora_alpha": 32, "target_modules": ["c_attn"], "lora_dropout": 0.1, "bias": "none"}


def trainer(model, folder, **settings) -> Trainer:
    rows = Dataset.from_list([{"input_ids": [3 + (i + j) % 50 for j in range(8)]} for i in range(32)])
    rows = rows.add_column("labels", rows["input_ids"][:])  # type: ignore[call-arg, arg-type]
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 3, "save_steps": 5, "logging_steps": 5}
    quiet = {
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "learning_rate": 1e-2,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(output_dir=str(folder), **{**defaults, **quiet, **settings})
    return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)


def test_the_guides_program_saves_an_adapter_only(tmp_path, capsys):
    base = gpt2()
    model = get_peft_model(base, LoraConfig(**GUIDE))
    model.print_trainable_parameters()
    assert "trainable params: 2,048 || all params:" in capsys.readouterr().out
    assert model is base and isinstance(model, PeftModel) and type(model).__name__ == "GPT2LMHeadModel"
    trainer(model, tmp_path).train()
    names = {path.name for path in (tmp_path / "checkpoint-24").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names
    loaded = PeftModel.from_pretrained(make("gpt2"), tmp_path / "checkpoint-24")
    model.eval()
    fresh = gpt2()
    fresh.load_state_dict({key: value for key, value in model.state_dict().items() if "lora_" not in key})
    loaded = PeftModel.from_pretrained(fresh.eval(), tmp_path / "checkpoint-24")
    assert torch.equal(output(loaded, batch("gpt2")), output(model, batch("gpt2")))


def test_trainer_resumes_to_the_same_weights(tmp_path):
    finals = []
    for folder, resume in (("whole", None), ("resumed", "checkpoint-10")):
        torch.manual_seed(0)
        model = get_peft_model(gpt2(), LoraConfig(**GUIDE | {"lora_dropout": 0.0}))
        if resume:
            shutil.copytree(tmp_path / "whole" / resume, tmp_path / folder / resume)
        run = trainer(model, tmp_path / folder)
        run.train(resume_from_checkpoint=str(tmp_path / folder / resume) if resume else None)
        finals.append({name: value for name, value in model.named_parameters() if value.requires_grad})
    assert all(torch.equal(value, finals[1][name]) for name, value in finals[0].items())


def test_trainer_goes_back_to_the_best_checkpoint(tmp_path):
    model = get_peft_model(gpt2(), LoraConfig(**GUIDE))
    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 5}
    run = trainer(model, tmp_path, **settings, metric_for_best_model="eval_loss", greater_is_better=True)
    run.train()
    best = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert run.evaluate()["eval_loss"] == pytest.approx(max(best), rel=1e-5)
    assert best[-1] < max(best)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_through_trainer_gives_the_same_gradients(tmp_path):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        model(**batch("llama")).loss.backward()
        gradients.append([value.grad for value in model.parameters() if value.requires_grad])
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(*gradients, strict=True))


def test_methods_behave_as_pefts(tmp_path):
    model = get_peft_model(make("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    base_class = LlamaForCausalLM
    model.add_adapter("other", LoraConfig(r=3, target_modules=["v_proj"], init_lora_weights=False))
    assert model.active_adapter == "default" and list(model.peft_config) == ["default", "other"]
    first = output(model, batch("llama"))
    with model.disable_adapter():
        base = output(model, batch("llama"))
    model.set_adapter("other")
    assert not torch.equal(output(model, batch("llama")), first)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists() and (tmp_path / "other" / "adapter_config.json").exists()

    loaded = PeftModel.from_pretrained(make("llama"), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    assert loaded.active_adapter == "default"
    assert torch.equal(output(loaded, batch("llama")), first)
    loaded.delete_adapter("other")
    merged = loaded.merge_and_unload()
    assert type(merged) is base_class and not isinstance(merged, PeftModel)
    torch.testing.assert_close(output(merged, batch("llama")), first, rtol=1e-4, atol=1e-5)
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(output(model.unload(), batch("llama")), base)


def test_generate_works(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**GROUPED)), LoraConfig(target_modules="all-linear"))
    answer = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=4, do_sample=False)  # type: ignore[operator]
    assert answer.shape[1] > 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: get_peft_model(model, LoraConfig(), mixed=True), "mixed=True"),
        (lambda model: get_peft_model(model, LoraConfig(), autocast_adapter_dtype=False), "autocast_adapter_dtype"),
        (lambda model: get_peft_model(model, {"r": 3}), "expected a lorafit.LoraConfig"),
        (lambda model: get_peft_model(model, LoraConfig()).save_pretrained("x", safe_serialization=False), "pickle"),
        (lambda model: get_peft_model(get_peft_model(model, LoraConfig()), LoraConfig()), "already"),
    ],
)
def test_what_is_not_supported_is_said(call, message):
    with pytest.raises(ConfigError, match=message):
        call(make("llama"))


def test_deleting_the_active_adapter_activates_the_first_left():
    model = get_peft_model(make("llama"), LoraConfig(target_modules=["q_proj"]))
    model.add_adapter("other", LoraConfig(target_modules=["v_proj"]))
    with pytest.warns(UserWarning, match="'other' is active now"):
        model.delete_adapter("default")
    assert model.active_adapter == "other"


def test_push_to_hub_and_peft_may_pass_their_options(tmp_path):
    get_peft_model(make("llama"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path, max_shard_size="1GB")
    loaded = PeftModel.from_pretrained(make("llama"), tmp_path, low_cpu_mem_usage=True, autocast_adapter_dtype=True)
    assert loaded.active_adapter == "default"


def test_trainer_resumes_merely_attached_models_its_own_way(tmp_path):
    get_peft_model(make("gpt2"), LoraConfig(target_modules=["c_attn"]))  # extends Trainer
    model = gpt2()
    attach(model, LoraConfig(target_modules=["c_attn"]))
    run = trainer(model, tmp_path, max_steps=2, save_steps=1)
    run.train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
