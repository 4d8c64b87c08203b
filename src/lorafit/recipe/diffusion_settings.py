"""The settings of pictures: task `text_to_image` alone reads them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lorafit.recipe.kinds import Place, Settings, one_or_list


class DiffusionSettings(Settings):
    """Pictures, their noise, and what is drawn on the way."""

    resolution: Annotated[int, Field(ge=16)] | None = Field(
        default=None,
        description="Side of a square picture in training, in pixels; others have about as many pixels. null is the "
        "model's own: 512 for Stable Diffusion 1.x, 1024 for SDXL, Stable Diffusion 3 and FLUX.",
    )
    buckets: bool = Field(
        default=True,
        description="Keep about each picture's proportions, in sizes that several share; false cuts all to squares.",
    )
    random_flip: bool = Field(
        default=False,
        description="Mirror every other picture by chance. Both orientations are encoded beforehand; leave it off "
        "where left and right differ (text, faces).",
    )
    instance_prompt: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description='Caption of every picture that has none of its own, such as "a photo of sks dog" (DreamBooth, '
        "arXiv 2208.12242).",
    )
    class_folder: Place | None = Field(
        default=None,
        description="Folder of pictures of the subject's class in general, trained beside so that the model keeps "
        "knowing it (prior preservation).",
    )
    class_prompt: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description='Caption of the pictures in class_folder, such as "a photo of a dog".'
    )
    prior_loss_weight: float = Field(
        default=1.0, gt=0, description="What a picture of class_folder counts beside one of the subject."
    )
    text_encoder_learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Peak rate of adapters in the CLIP text encoders, a tenth of train.learning_rate or so; null "
        "leaves these as they are, and they leave memory when all captions are encoded.",
    )
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Weigh noise levels by min(SNR, gamma) (arXiv 2303.09556), 5 as there; learns faster. null weighs "
        "all alike. Not for models of flow matching (Stable Diffusion 3, FLUX).",
    )
    noise_offset: float = Field(
        default=0.0,
        ge=0,
        description="Noise added to a whole channel of a picture, so that very dark and very bright ones are learned; "
        "0.05 to 0.1 where wanted.",
    )
    timestep_sampling: Literal["auto", "uniform", "logit_normal"] = Field(
        default="auto",
        description="How noise levels are drawn: uniform, or logit_normal, which favours the middle ones (arXiv "
        "2403.03206). auto is logit_normal for models of flow matching, else uniform.",
    )
    logit_mean: float = Field(
        default=0.0, description="logit_normal: its mean before the logistic function; above 0 favours much noise."
    )
    logit_std: float = Field(default=1.0, gt=0, description="logit_normal: its width.")
    guidance: float = Field(
        default=1.0,
        ge=0,
        description="The guidance that a distilled model (FLUX.1 dev) is told in training; others do not read it.",
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Keep the moving average of the adapter over the steps in place of its last state, such as 0.99; "
        "early on it averages over fewer steps. It is what is evaluated and saved. null keeps none.",
    )
    validation_timesteps: int = Field(
        default=8,
        ge=1,
        description="Noise levels, with a noise of its own each, that every held-out picture is measured at: the same "
        "at every evaluation.",
    )
    sample_prompts: Annotated[list[str], BeforeValidator(one_or_list)] = Field(
        default_factory=list,
        description="Drawn at each evaluation by the tuned model, and once by the base model, from the same noise. "
        "Empty takes the first captions (evaluate.samples of them).",
    )
    negative_prompt: str = Field(default="", description="What the samples stay away from; FLUX does not read it.")
    sample_steps: int = Field(default=25, ge=1, description="Denoising steps of a sample.")
    sample_guidance: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="How closely samples follow their prompt; null is the pipeline's own."
    )
    sample_seed: int = Field(default=0, ge=0, lt=2**32, description="Of the samples' noise.")

    @model_validator(mode="after")
    def _prior_is_whole(self) -> DiffusionSettings:
        if (self.class_folder is None) != (self.class_prompt is None):
            raise ValueError("class_folder and class_prompt belong together: give both, or none")
        if self.class_folder is None and self.prior_loss_weight != 1.0:
            raise ValueError("prior_loss_weight is for the pictures of class_folder: give that, or leave it out")
        if self.timestep_sampling == "uniform" and (self.logit_mean, self.logit_std) != (0.0, 1.0):
            raise ValueError("logit_mean and logit_std are for timestep_sampling logit_normal: leave them out")
        return self
