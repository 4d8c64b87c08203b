"""Small pipelines with random weights, one for each family, as directories of diffusers' own classes.

Pictures are 32 x 32 and latents 16 x 16. The tokenizers know bytes (CLIP) and letters (T5) and nothing longer, so that
any text has tokens of its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

WIDTH = 32  # of the text encoders
VOCABULARY = 514  # CLIP: 256 bytes, 256 bytes that end a word, and the two ends of a text
LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789,.'-"
PICTURE = 32  # pixels


def clip_tokenizer() -> transformers.CLIPTokenizer:
    """A byte a token."""
    # CLIP's printable stand-ins for bytes: those that print stand for themselves, the others follow after 255.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> transformers.T5Tokenizer:
    """A letter a token; what it does not know becomes <unk>."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter.replace(" ", "\u2581"), -2.0) for letter in LETTERS),
    ]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)


def clip(*, projection: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=WIDTH, max_position_embeddings=77, bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config)


def t5() -> transformers.T5EncoderModel:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
    return transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu"))


def vae(channels: int, **settings: Any) -> diffusers.AutoencoderKL:
    """Halves the sides."""
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64), norm_num_groups=8, latent_channels=channels, sample_size=PICTURE,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **settings,
    )  # fmt: skip


def unet(**settings: Any) -> diffusers.UNet2DConditionModel:
    values: dict[str, Any] = {
        "sample_size": PICTURE // 2, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": WIDTH,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**values | settings)


def stable_diffusion_1() -> diffusers.StableDiffusionPipeline:
    """SD 1.x: a UNet that predicts the noise."""
    return _stable_diffusion(unet(), "epsilon")


def stable_diffusion_2() -> diffusers.StableDiffusionPipeline:
    """SD 2.x: a UNet that predicts v, with linear projections around its transformers."""
    return _stable_diffusion(unet(use_linear_projection=True, attention_head_dim=(4, 8)), "v_prediction")


def _stable_diffusion(denoiser: diffusers.UNet2DConditionModel, prediction: str) -> diffusers.StableDiffusionPipeline:
    return diffusers.StableDiffusionPipeline(
        unet=denoiser, vae=vae(4), text_encoder=clip(), tokenizer=clip_tokenizer(),
        scheduler=_ddim(prediction), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _ddim(prediction: str) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False, prediction_type=prediction,
    )  # fmt: skip


def stable_diffusion_xl() -> diffusers.StableDiffusionXLPipeline:
    """SDXL: two text encoders, the pooled text and the picture's size as further conditions."""
    denoiser = unet(
        layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=(2, 4),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
        use_linear_projection=True, cross_attention_dim=2 * WIDTH, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=denoiser, vae=vae(4, scaling_factor=0.13025), text_encoder=clip(), text_encoder_2=clip(projection=True),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), scheduler=scheduler,
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3() -> diffusers.StableDiffusion3Pipeline:
    """SD3: a transformer on both streams, flow matching, three text encoders; its last block has no text stream."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=PICTURE // 2, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH, out_channels=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=_flow_vae(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip(projection=True), tokenizer=clip_tokenizer(), text_encoder_2=clip(projection=True),
        tokenizer_2=clip_tokenizer(), text_encoder_3=_wide_t5(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def _wide_t5() -> transformers.T5EncoderModel:
    """As wide as the two CLIPs together, as in SD3."""
    sizes = {"d_model": 2 * WIDTH, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
    return transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu"))


def flux() -> diffusers.FluxPipeline:
    """FLUX: two-stream and one-stream blocks, rotary positions, guidance as an input, latents in 2 x 2 patches."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.FluxPipeline(
        transformer=transformer, vae=_flow_vae(), scheduler=scheduler, text_encoder=clip(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def _flow_vae() -> diffusers.AutoencoderKL:
    return vae(16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)


FAMILIES: dict[str, Callable[[], diffusers.DiffusionPipeline]] = {
    "sd1": stable_diffusion_1,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
}


def make(family: str, seed: int = 0) -> diffusers.DiffusionPipeline:
    """The pipeline of a family, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = FAMILIES[family]()
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(family: str, directory: Path, seed: int = 0) -> Path:
    """A family's pipeline as a directory with `model_index.json` and safetensors."""
    make(family, seed).save_pretrained(directory, safe_serialization=True)
    return directory
