"""A training step beside diffusers' own with PEFT's adapter: the same latents, texts, noise and noise levels."""

from typing import Any

import diffusers
import peft
import pytest
import small_pipelines
import torch
from picture_runs import adapted, recipe_of
from torch import Tensor

from lorafit.diffusion.batches import PictureBatch
from lorafit.lora import adapter_tensors, save_adapter

FAMILIES = list(small_pipelines.FAMILIES)
GAMMA = 5.0


def diffusers_loss(pipeline: Any, family: str, batch: PictureBatch, captions: list[str], drawn: tuple) -> Tensor:
    """A step as diffusers' training examples compute it, by the pipeline's own encoding of texts."""
    latents, noise, levels = drawn
    latents, noise = latents.double(), noise.double()
    if family in ("sd3", "flux"):
        return flow_loss(pipeline, family, captions, latents, noise, levels)
    scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    noisy = scheduler.add_noise(latents, noise, levels)
    more = {}
    if family == "sdxl":
        hidden, _, pooled, _ = pipeline.encode_prompt(captions, device="cpu", do_classifier_free_guidance=False)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": batch.sizes.double()}}
    else:
        hidden, _ = pipeline.encode_prompt(captions, "cpu", 1, False)
    predicted = pipeline.unet(noisy, levels, encoder_hidden_states=hidden, return_dict=False, **more)[0]
    is_v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, levels) if is_v else noise
    snr = scheduler.alphas_cumprod[levels] / (1 - scheduler.alphas_cumprod[levels])
    weights = torch.minimum(snr, torch.full_like(snr, GAMMA)) / (snr + 1 if is_v else snr)
    return ((predicted - target).square().mean(dim=(1, 2, 3)) * weights).mean()


def flow_loss(pipeline: Any, family: str, captions: list[str], latents: Tensor, noise: Tensor, levels: Tensor):
    scheduler = pipeline.scheduler
    index = len(scheduler.timesteps) - 1 - levels  # schedulers begin with the most noise
    timesteps, sigmas = scheduler.timesteps[index], scheduler.sigmas[index].double()[:, None, None, None]
    noisy = (1 - sigmas) * latents + sigmas * noise
    if family == "sd3":
        hidden, _, pooled, _ = pipeline.encode_prompt(captions, None, None, do_classifier_free_guidance=False)
        predicted = pipeline.transformer(noisy, hidden, pooled, timesteps, return_dict=False)[0]
        return (predicted - (noise - latents)).square().mean()
    hidden, pooled, text_ids = pipeline.encode_prompt(captions, None)
    count, channels, height, width = latents.shape
    packed = diffusers.FluxPipeline._pack_latents(noisy, count, channels, height, width)
    places = diffusers.FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float64)
    predicted = pipeline.transformer(
        hidden_states=packed, timestep=timesteps / 1000, guidance=torch.ones(count), pooled_projections=pooled,
        encoder_hidden_states=hidden, txt_ids=text_ids.double(), img_ids=places, return_dict=False,
    )[0]  # fmt: skip
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    predicted = diffusers.FluxPipeline._unpack_latents(predicted, height * scale, width * scale, scale)
    return (predicted - (noise - latents)).square().mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("encoders", [False, True], ids=["denoiser", "with text encoders"])
def test_gradients_are_those_of_diffusers_with_peft(family, encoders, base, pictures, tmp_path):
    sets = ["diffusion.text_encoder_learning_rate=1e-4"] if encoders else []
    sets += ["diffusion.min_snr_gamma=5.0"] if family not in ("sd3", "flux") else []
    recipe = recipe_of(base(family), pictures, "diffusion.random_flip=true", "diffusion.noise_offset=0.1", *sets)
    model, rows, loss = adapted(recipe)
    model.double()
    save_adapter(model, tmp_path)
    step = loss.collator(10_000, 4, packed=False, share_prefix=False)([rows.train[i] for i in range(4)])
    (batch,) = step["micro_batches"]
    captions = [rows.train.picture(i).picture.caption for i in range(4)]

    torch.manual_seed(11)
    drawn = loss.draw(batch)
    torch.manual_seed(11)
    ours = loss(batch).sum() / step["trained"]
    ours.backward()
    gradients = {key: value.grad for key, value in adapter_tensors(model).items()}

    pipeline = small_pipelines.make(family)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.double()
    holder = torch.nn.Module()
    for name in model._modules:
        holder.add_module(name, getattr(pipeline, name))
    holder.config = {"model_type": "diffusion"}
    tuned = peft.PeftModel.from_pretrained(holder, tmp_path, is_trainable=True)
    theirs = diffusers_loss(pipeline, family, batch, captions, drawn)
    theirs.backward()
    expected = {name.replace(".default", ""): p.grad for name, p in tuned.named_parameters() if p.requires_grad}

    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert set(gradients) == set(expected) and any(".text_encoder." in key for key in gradients) == encoders
    unread = {key for key, value in expected.items() if value is None}
    for key, value in expected.items():
        if key in unread:
            assert gradients[key] is None, key
        else:
            assert value.norm() > 0, key
            error = (gradients[key].double() - value.double()).norm() / value.double().norm()
            assert error < 1e-5, f"{key}: {error:.1e}"
