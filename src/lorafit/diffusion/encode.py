"""Encode pictures and captions once; then the VAE and the text encoders leave memory."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorafit.diffusion.batches import Document, FixedDraw
from lorafit.diffusion.buckets import cut
from lorafit.diffusion.families import TextEncoder
from lorafit.diffusion.load import load_components
from lorafit.diffusion.pictures import open_picture
from lorafit.diffusion.reader import PipelineFiles
from lorafit.diffusion.rows import Fitted
from lorafit.diffusion.store import Store, fingerprint_of, key_of
from lorafit.errors import DataError
from lorafit.train.memory import release_memory


@dataclass(frozen=True)
class Encoded:
    """Pictures and captions as the denoiser reads them, by what they are encoded from.

    Attributes:
        files: of the base model.
        store: where they are.
        flips: whether pictures are mirrored, too.
        dtype: of the text encoders.
        trained: names of the text encoders that are trained: of these the tokens are kept.
    """

    files: PipelineFiles
    store: Store
    flips: bool
    dtype: torch.dtype
    trained: frozenset[str] = frozenset()

    @cached_property
    def fingerprints(self) -> dict[str, list[Any]]:
        """Of the components that encode, by their names."""
        names = ["vae", *(encoder.name for encoder in self.files.encoders)]
        return {name: fingerprint_of(self.files.path / name) for name in names}

    def ensure(
        self, pictures: Iterable[Fitted], captions: Iterable[str], device: torch.device, notice: Callable[[str], None]
    ) -> None:
        """Encode what is not in the store yet.

        Raises:
            DataError: A picture cannot be read any more.
        """
        missing = {key: one for one in pictures if not self.store.has(key := self._latents_key(one))}
        if missing:
            notice(f"Encoding {len(missing):,} pictures.")
            self._encode_pictures(missing, device)
        texts = list(dict.fromkeys(captions))
        for encoder in self.files.encoders:
            left = {key: text for text in texts if not self.store.has(key := self._text_key(encoder, text))}
            if left:
                notice(f"Encoding {len(left):,} captions ({encoder.name}).")
                self._encode_texts(encoder, left, device)
        self.store.prune()

    @torch.no_grad()
    def _encode_pictures(self, missing: dict[str, Fitted], device: torch.device) -> None:
        vae = load_components(self.files.path, ["vae"], torch.float32, device=str(device))["vae"]
        shift, scale = vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor
        for key, one in missing.items():
            pixels = pixels_of(one).to(device)
            found = vae.encode(torch.cat([pixels, pixels.flip(-1)]) if self.flips else pixels).latent_dist
            self.store.put(key, {"mean": (found.mean - shift) * scale, "std": found.std * scale})
        del vae
        release_memory()

    @torch.no_grad()
    def _encode_texts(self, encoder: TextEncoder, missing: dict[str, str], device: torch.device) -> None:
        names = [encoder.tokenizer] if encoder.name in self.trained else [encoder.tokenizer, encoder.name]
        parts = load_components(self.files.path, names, self.dtype, device=str(device))
        for key, text in missing.items():
            tokens = encoder.tokens(parts[encoder.tokenizer], text, self.files.family.text_length)
            if encoder.name in self.trained:
                self.store.put(key, {f"{encoder.name}.ids": tokens})
            else:
                found = encoder.embed(parts[encoder.name], tokens[None].to(device))
                self.store.put(key, {name: value[0] for name, value in found.items()})
        del parts
        release_memory()

    def documents(self, one: Fitted, *, weight: float, levels: Sequence[float] = ()) -> list[Document]:
        """A picture for training, or one for each of the `levels` at which it is measured.

        Args:
            one: was encoded.
            weight: what it counts.
            levels: shares of the noise levels that lie below, in (0, 1).
        """
        latents, texts = self.store.get(self._latents_key(one)), self.texts(one.picture.caption)
        document = Document(latents["mean"], latents["std"], texts, torch.tensor(one.sizes), weight)
        if not levels:
            return [document]
        seed = int.from_bytes(hashlib.sha256(one.picture.identity.encode()).digest()[:6], "big")
        return [
            Document(document.mean, document.std, texts, document.sizes, 1.0, FixedDraw(seed + i, share))
            for i, share in enumerate(levels)
        ]

    def texts(self, caption: str) -> dict[str, Tensor]:
        """What all text encoders said of a caption, or its tokens."""
        found: dict[str, Tensor] = {}
        for encoder in self.files.encoders:
            found |= self.store.get(self._text_key(encoder, caption))
        return found

    def _latents_key(self, one: Fitted) -> str:
        fit = one.fit
        return key_of(
            "latents", one.picture.sha256, fit.size, fit.scaled, fit.place, self.flips, self.fingerprints["vae"]
        )

    def _text_key(self, encoder: TextEncoder, caption: str) -> str:
        reads = "ids" if encoder.name in self.trained else [encoder.reads, str(self.dtype)]
        own = self.fingerprints[encoder.name]
        return key_of("texts", caption, encoder.name, reads, self.files.family.text_length, own)


def pixels_of(one: Fitted) -> Tensor:
    """A picture in its size, (1, 3, height, width), float32 in [-1, 1].

    Raises:
        DataError: It cannot be read any more.
    """
    try:
        image = open_picture(one.picture.file)
    except DataError as error:
        raise DataError(f"{one.picture.where}: {error}") from error
    values = np.asarray(cut(image, one.fit), dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous()
