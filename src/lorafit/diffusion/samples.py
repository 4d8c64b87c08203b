"""Pictures drawn on the way, by the base model and the tuned one from the same noise."""

import json
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from lorafit.diffusion.load import load_components, load_pipeline, quiet
from lorafit.diffusion.model import TextToImageModel
from lorafit.diffusion.prepare import PreparedPictures, resolution_of
from lorafit.files import write_atomically
from lorafit.lora import disabled
from lorafit.recipe import Recipe
from lorafit.run import Run
from lorafit.train.average import averaged
from lorafit.train.callbacks import best_evaluation
from lorafit.train.loss import evaluating
from lorafit.train.memory import release_memory
from lorafit.train.random_states import random_states, restore_random_states
from lorafit.train.saving import Saving

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER, LIST = "samples", "samples.jsonl"


def prompts_of(recipe: Recipe, rows: PreparedPictures) -> list[str]:
    """What is drawn: the recipe's prompts, or the first captions of held-out pictures, else of the training's."""
    if recipe.diffusion.sample_prompts:
        return recipe.diffusion.sample_prompts
    pictures = rows.held_out.pictures or rows.train.pictures
    captions = list(dict.fromkeys(one.picture.caption for one in pictures))
    return captions[: recipe.evaluate.samples]


class DrawSamples(TrainerCallback):
    """Draws all prompts at each evaluation, once by the base model, and lists them in `samples.jsonl`.

    A line is `{"prompt", "seed", "step", "base", "tuned"}`, the last two names of files in the run's folder. Nothing is
    left of the drawing: the random generators go on as if there had been none.
    """

    def __init__(
        self,
        run: Run,
        model: TextToImageModel,
        recipe: Recipe,
        rows: PreparedPictures,
        saving: Saving,
    ) -> None:
        self.run, self.model, self.recipe, self.rows, self.saving = run, model, recipe, rows, saving
        self.prompts = prompts_of(recipe, rows)

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        """Draw."""
        states = random_states()
        try:
            with evaluating(self.model), averaged(self.model), quiet():
                self.draw(state.global_step)
        finally:
            restore_random_states(states)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Draw where nothing was held out; then list the pictures of the adapter that is kept."""
        best = best_evaluation(state)
        if best is None and state.global_step >= state.max_steps:
            self.on_evaluate(args, state, control)
        elif best is not None and self.recipe.train.load_best_model_at_end:
            self.list(best[0])

    def draw(self, step: int) -> None:
        """The tuned model's pictures of a step, and the base model's where they are not there yet."""
        self.saving(lambda: (self.run.directory / FOLDER).mkdir(exist_ok=True))
        pipeline = self.pipeline()
        for i, prompt in enumerate(self.prompts):
            base, tuned = self.files_of(i, step)
            if not (self.run.directory / base).exists():
                with disabled(self.model):
                    self.save(self.picture(pipeline, prompt), base)
            self.save(self.picture(pipeline, prompt), tuned)
        del pipeline
        release_memory()
        self.list(step)

    def list(self, step: int) -> None:
        """Write `samples.jsonl` with the pictures of a step."""
        lines = []
        for i, prompt in enumerate(self.prompts):
            base, tuned = self.files_of(i, step)
            seed = self.recipe.diffusion.sample_seed
            lines.append({"prompt": prompt, "seed": seed, "step": step, "base": base, "tuned": tuned})
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self.saving(lambda: write_atomically(self.run.directory / LIST, text))

    @staticmethod
    def files_of(number: int, step: int) -> tuple[str, str]:
        """Where the pictures of a prompt lie, of the base model and of a step."""
        return f"{FOLDER}/base-{number + 1:02d}.png", f"{FOLDER}/step-{step:06d}-{number + 1:02d}.png"

    def save(self, image: "Image", name: str) -> None:
        """Write a picture whole or not at all."""
        file = self.run.directory / name
        temporary = file.with_name(f".{file.name}")

        def write() -> None:
            image.save(temporary, format="PNG")
            os.replace(temporary, file)

        self.saving(write)

    def pipeline(self) -> Any:
        """Diffusers' own, with the model's denoiser, the VAE for now, and no text encoder: texts are encoded."""
        files, device = self.rows.files, self.model.device
        absent = {name: None for encoder in files.family.encoders for name in (encoder.name, encoder.tokenizer)}
        dtype = self.model.dtype
        vae = load_components(files.path, ["vae"], dtype, device=str(device))["vae"]
        return load_pipeline(files.path, dtype, **absent, **{files.family.denoiser: self.model.denoiser, "vae": vae})

    def texts(self, text: str) -> dict[str, Tensor]:
        """What text encoders say of a text, as a batch of one."""
        assert self.rows.encoded is not None, "texts are encoded before the first step"
        kept = self.rows.encoded.texts(text)
        return self.model.texts({name: value[None].to(self.model.device) for name, value in kept.items()})

    def picture(self, pipeline: Any, prompt: str) -> "Image":
        """One picture."""
        settings, family = self.recipe.diffusion, self.rows.files.family
        texts, away = map(self.texts, (prompt, settings.negative_prompt))
        side = resolution_of(self.recipe, self.rows.files) // self.rows.files.multiple * self.rows.files.multiple
        guidance = settings.sample_guidance
        options: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
        drawn = pipeline(
            **family.prompt(texts, away, pipeline, nothing=not settings.negative_prompt),
            **options,
            num_inference_steps=settings.sample_steps,
            height=side,
            width=side,
            generator=torch.Generator().manual_seed(settings.sample_seed),
        )
        return drawn.images[0]
