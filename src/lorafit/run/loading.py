"""A run directory, and the models that its files make."""

from pathlib import Path
from typing import TYPE_CHECKING

from lorafit.run.directory import TEMPLATE_FILE, RunDirectory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafit.data import Seq2SeqTemplate, Template
    from lorafit.models import ResolvedModel
    from lorafit.recipe import ModelSettings


class Run(RunDirectory):
    """A run directory whose model, adapter and tokenizer can be loaded."""

    def load_model(
        self,
        *,
        adapter: Path | None = None,
        merge: bool = False,
        as_trained: bool = True,
        dtype: "torch.dtype | None" = None,
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, Template]":
        """Load the base model with the run's adapter, its tokenizer and the template it was trained with.

        Args:
            adapter: folder of another adapter, in place of the run's best.
            merge: add the adapter to the base weights (faster to run, cannot be taken off again); where they are
                quantized it stays apart, as merging would round them again.
            as_trained: False loads the base weights whole where training held them quantized.
            dtype: of the weights; None is that of the training.

        Returns:
            The model in evaluation mode, its tokenizer, the template.

        Raises:
            RunError: The run has saved no adapter yet, or it has another task.
        """
        resolved, tokenizer, settings = self._base("sft")
        from lorafit.data import Template
        from lorafit.lora import load_adapter, merge_and_unload
        from lorafit.models import load_model

        loading = settings.loading if as_trained else {**settings.loading, "quantize": "none"}
        model = load_model(resolved, **(loading if dtype is None else {**loading, "dtype": dtype}))
        load_adapter(model, adapter or self.adapter)
        source = (self.adapter / TEMPLATE_FILE).read_text(encoding="utf-8")
        if merge and not getattr(model, "is_quantized", False):  # set by transformers where it has loaded it so
            merge_and_unload(model)  # in place
        return model.eval(), tokenizer, Template(tokenizer, source)

    def load_seq2seq(
        self, *, adapter: Path | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, Seq2SeqTemplate]":
        """Load the encoder-decoder of a sequence-to-sequence run with its adapter, tokenizer and template.

        Args:
            adapter: folder of another adapter, in place of the run's best.

        Returns:
            The model in evaluation mode, set to start its answers as in training; its tokenizer; the template.

        Raises:
            RunError: The run has saved no adapter yet, or it has another task.
        """
        resolved, tokenizer, settings = self._base("seq2seq")
        from lorafit.lora import load_adapter
        from lorafit.models import load_model, settle_decoder_start
        from lorafit.train.rows import seq2seq_template

        template = seq2seq_template(self.recipe, tokenizer)
        model = load_model(resolved, seq2seq=True, **settings.loading)
        settle_decoder_start(model, template.target_start, template.target_end)
        load_adapter(model, adapter or self.adapter)
        return model.eval(), tokenizer, template

    def load_classifier(
        self, *, adapter: Path | None = None, as_trained: bool = True, dtype: "torch.dtype | None" = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]":
        """Load the base model of a classifier of texts or tokens with the run's adapter and head.

        Without its adapter the model has the head that training started from.

        Args:
            adapter: folder of another adapter with a head for the same classes, in place of the run's best.
            as_trained: False loads the base weights whole where training held them quantized.
            dtype: of the weights; None is that of the training.

        Returns:
            The model in evaluation mode, its tokenizer, the names of the classes by their ids.

        Raises:
            RunError: The run has saved no adapter yet, or it is no classifier.
        """
        resolved, tokenizer, settings = self._base("classification", "token_classification")
        from transformers import set_seed

        from lorafit.lora import load_adapter
        from lorafit.models import TOKEN_CLASSIFICATION, load_classifier

        per_token = self.recipe.task == TOKEN_CLASSIFICATION
        kind = TOKEN_CLASSIFICATION if per_token else self.problem_type
        loading = settings.loading if as_trained else {**settings.loading, "quantize": "none"}
        set_seed(self.recipe.train.seed)
        loading |= {} if dtype is None else {"dtype": dtype}
        model, _ = load_classifier(resolved, self.labels, kind, **loading)
        load_adapter(model, adapter or self.adapter)
        return model.eval(), tokenizer, self.labels

    def load_tokenizer(self) -> "tuple[PreTrainedTokenizerBase, Template | None]":
        """The tokenizer, and the template that was trained; a classification has none.

        Raises:
            RunError: The run has saved no adapter yet.
        """
        _, tokenizer, _ = self._base("sft", "classification")
        if self.is_classifier:
            return tokenizer, None
        from lorafit.data import Template

        return tokenizer, Template(tokenizer, (self.adapter / TEMPLATE_FILE).read_text(encoding="utf-8"))

    def find_base(self) -> "ResolvedModel":
        """Where the base model lies.

        Raises:
            ModelError: It is there no more.
        """
        from lorafit.models import resolve
        from lorafit.recipe import PICTURES

        base = self.record["model"]
        pipeline = self.recipe.task == PICTURES
        return resolve(base["reference"], revision=base["revision"], pipeline=pipeline)

    def _base(self, *tasks: str) -> "tuple[ResolvedModel, PreTrainedTokenizerBase, ModelSettings]":
        """Base model and tokenizer of a run that has an adapter for one of `tasks`."""
        self.check_has_adapter(*tasks)
        from lorafit.models import load_tokenizer

        settings, resolved = self.recipe.model, self.find_base()
        return resolved, load_tokenizer(resolved, trust_remote_code=settings.trust_remote_code), settings
