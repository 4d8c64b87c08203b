"""`task: text_to_image`: what differs from the other tasks on the way from a recipe to an adapter."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import set_seed

from lorafit.diffusion.batches import Document
from lorafit.diffusion.encode import Encoded
from lorafit.diffusion.families import Family
from lorafit.diffusion.load import load_components
from lorafit.diffusion.loss import PictureLoss, shares_of, tried
from lorafit.diffusion.model import TextToImageModel
from lorafit.diffusion.prepare import PreparedPictures, prepare_pictures
from lorafit.diffusion.process import levels_of, process_of
from lorafit.diffusion.reader import PipelineFiles
from lorafit.diffusion.rows import Fitted
from lorafit.diffusion.samples import DrawSamples, prompts_of
from lorafit.diffusion.store import Store, pictures_directory
from lorafit.errors import ConfigError
from lorafit.lora import LoraConfig, attach, load_adapter
from lorafit.models import ResolvedModel, dtype_on, pick_device
from lorafit.recipe import Recipe
from lorafit.run import Run
from lorafit.train.fast import FastPath, choose_update
from lorafit.train.saving import Saving

CLIP_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
TRIED_PICTURES = 2


class TextToImage:
    """A denoiser, learning a style or a subject from pictures."""

    pipeline: ClassVar[bool] = True

    def settled(self, recipe: Recipe, resolved: ResolvedModel) -> Recipe:
        """Nothing: a picture is brought to a size that the recipe or the model tells."""
        return recipe

    def reader(self, resolved: ResolvedModel, recipe: Recipe) -> PipelineFiles:
        """The pipeline's files; settings that its family does not know are refused here, before any work."""
        files = PipelineFiles.of(resolved)
        check_settings(recipe, files.family)
        return files

    def prepare(self, recipe: Recipe, tokenizer: PipelineFiles) -> PreparedPictures:
        """Pictures with their captions and sizes."""
        return prepare_pictures(recipe, tokenizer)

    def adapted_model(
        self,
        resolved: ResolvedModel,
        recipe: Recipe,
        tokenizer: PipelineFiles,
        rows: PreparedPictures,
        notice: Callable[[str], None] = lambda line: None,
    ) -> TextToImageModel:
        """The denoiser with a fresh adapter; before it is loaded the VAE and the text encoders have done their work."""
        encode(recipe, tokenizer, rows, notice)
        model = load_trained(recipe, tokenizer, resolved.reference)
        set_seed(recipe.train.seed)
        attach(model, lora_config(recipe, tokenizer.family))
        return model

    def check_lengths(
        self, resolved: ResolvedModel, recipe: Recipe, model: TextToImageModel, rows: PreparedPictures
    ) -> None:
        """Every picture is brought to a size that the model takes."""

    def loss(self, model: TextToImageModel, recipe: Recipe, rows: PreparedPictures) -> PictureLoss:
        """The squared error of what is predicted of latents with noise."""
        settings, files = recipe.diffusion, rows.files
        levels = levels_of(settings.timestep_sampling, settings.logit_mean, settings.logit_std, flow=files.family.flow)
        return PictureLoss(model, process_of(files.path, files.family), levels, settings)

    def fast_path(self, loss: PictureLoss, rows: PreparedPictures, notice: Callable[[str], None]) -> FastPath:
        """LoRA layers as one operation, where that is exact on the first pictures."""
        count = min(TRIED_PICTURES, len(rows.train))
        documents = [rows.train[i]["documents"][0] for i in range(count)]
        return choose_update(loss, tried(documents), notice)

    def rates(self, recipe: Recipe) -> dict[str, float]:
        """That of the text encoders."""
        rate = recipe.diffusion.text_encoder_learning_rate
        return {} if rate is None else {"text_encoder": rate, "text_encoder_2": rate}

    def callbacks(
        self,
        run: Run,
        model: TextToImageModel,
        recipe: Recipe,
        rows: PreparedPictures,
        saving: Saving,
    ) -> list[Any]:
        """Samples at each evaluation."""
        return [DrawSamples(run, model, recipe, rows, saving)] if prompts_of(recipe, rows) else []

    def beside_adapter(self, rows: PreparedPictures) -> dict[str, str]:
        """Nothing: what drew the samples stands in the recipe."""
        return {}


def check_settings(recipe: Recipe, family: Family) -> None:
    """Refuse settings that the family of the model does not read.

    Raises:
        ConfigError: All of them.
    """
    settings, problems = recipe.diffusion, []
    if family.flow and settings.min_snr_gamma is not None:
        problems.append(
            "diffusion.min_snr_gamma is for models that predict noise or v, and this one's is flow matching"
        )
    if not family.guided and settings.guidance != 1.0:
        problems.append("diffusion.guidance is for distilled models (FLUX), and this one is told none")
    if problems:
        raise ConfigError("; ".join(f"{problem}: leave it out" for problem in problems))
    levels_of(settings.timestep_sampling, settings.logit_mean, settings.logit_std, flow=family.flow)


def trained_encoders(recipe: Recipe, files: PipelineFiles) -> frozenset[str]:
    """Names of the text encoders that get an adapter."""
    if recipe.diffusion.text_encoder_learning_rate is None:
        return frozenset()
    return frozenset(encoder.name for encoder in files.encoders if encoder.trainable)


def encoded_of(recipe: Recipe, files: PipelineFiles, notice: Callable[[str], None]) -> Encoded:
    """Where pictures and captions are kept as the recipe has them encoded."""
    device = pick_device(recipe.model.device)
    return Encoded(
        files,
        Store(pictures_directory() if recipe.data.cache else None, notice),
        recipe.diffusion.random_flip,
        dtype_on(recipe.model.dtype, device),
        trained_encoders(recipe, files),
    )


def encode(recipe: Recipe, files: PipelineFiles, rows: PreparedPictures, notice: Callable[[str], None]) -> None:
    """Encode all pictures and captions of these rows, and let the rows read them."""
    rows.encoded = encoded = encoded_of(recipe, files, notice)
    pictures = [*rows.train.pictures, *rows.train.prior, *rows.held_out.pictures]
    captions = [*(one.picture.caption for one in pictures), *prompts_of(recipe, rows), recipe.diffusion.negative_prompt]
    encoded.ensure(pictures, captions, pick_device(recipe.model.device), notice)
    rows.train.read = rows.held_out.read = partial(_documents, encoded, recipe)


def _documents(encoded: Encoded, recipe: Recipe, one: Fitted, prior: bool, measured: int) -> list[Document]:
    weight = recipe.diffusion.prior_loss_weight if prior else 1.0
    return encoded.documents(one, weight=weight, levels=shares_of(measured) if measured else ())


def load_trained(recipe: Recipe, files: PipelineFiles, reference: str) -> TextToImageModel:
    """The denoiser, and the text encoders that are trained."""
    settings, family = recipe.model, files.family
    device = pick_device(settings.device)
    dtype = dtype_on(settings.dtype, device)
    quantize = "none" if settings.quantize == "auto" else settings.quantize
    parts = load_components(files.path, [family.denoiser], dtype, quantize=quantize, device=str(device))
    names = [encoder.name for encoder in files.encoders if encoder.name in trained_encoders(recipe, files)]
    return TextToImageModel(family, parts | load_components(files.path, names, dtype, device=str(device)), reference)


def lora_config(recipe: Recipe, family: Family) -> LoraConfig:
    """The recipe's `lora` section; names of a denoiser's layers are joined by those of trained text encoders."""
    config = LoraConfig.from_dict({**recipe.lora.model_dump(), "task_type": None})
    targets = config.target_modules
    if targets is None:
        targets = list(family.targets)
    if isinstance(targets, list) and recipe.diffusion.text_encoder_learning_rate is not None:
        targets = [*targets, *(name for name in CLIP_TARGETS if name not in targets)]
    return replace(config, target_modules=targets)


def load_tuned(
    run: Run,
    *,
    adapter: Path | None = None,
    folders: Sequence[str] = (),
    notice: Callable[[str], None] = lambda line: None,
) -> tuple[TextToImageModel, PreparedPictures]:
    """A run's tuned model, and pictures to measure it on, encoded.

    Args:
        run: of this task, with an adapter.
        adapter: folder of another one, in place of the run's best.
        folders: of other pictures than those that the run held out.
        notice: takes a line for the user before long work.

    Raises:
        RunError: The run has saved no adapter yet, or it has another task.
    """
    run.check_has_adapter("text_to_image")
    recipe, resolved = run.recipe, run.find_base()
    files = PipelineFiles.of(resolved)
    rows = prepare_pictures(recipe, files, folders=folders)
    encode(recipe, files, rows, notice)
    model = load_trained(recipe, files, resolved.reference)
    load_adapter(model, adapter or run.adapter)
    return model.eval(), rows
