"""Inputs that several runs have in common, each made once: the base, the encoders, latents and prompt embeddings.

A run of its own shares nothing. The cells of a sweep share a folder, and in each process what is in memory. What is
kept on disk is addressed by a fingerprint of all that it depends on, as class latents are, so results do not change.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dreambooth.build.networks import apply_schedule, load_base, model_source
from dreambooth.checkpointing import InputFingerprints
from dreambooth.config import Config
from dreambooth.data.latents import Encoder
from dreambooth.devices import device_name
from dreambooth.families import Conditioning, Family, ModelSource, load_family
from dreambooth.files import atomic_file
from dreambooth.metrics.reader_scores import ReaderNames
from dreambooth.metrics.subject import Encoders, load_encoders
from dreambooth.run.fingerprints import base_fingerprints

MakeTensors = Callable[[], Mapping[str, Tensor]]


class SharedInputs:
    """Make inputs of runs, and keep them for the next one. folder: of what is kept on disk; None: keep nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._base: tuple[ModelSource, Family] | None = None  # the last one alone: a base has gigabytes
        self._fingerprints: dict[ModelSource, InputFingerprints] = {}
        self._encoders: dict[tuple[Any, ...], Encoders] = {}

    def load_base(self, config: Config) -> Family:
        """Return the base for a run to change, with the run's schedule. Raises ModelError, UserError."""
        if self.folder is None:
            return load_base(config)
        source = model_source(config)
        if self._base is None or self._base[0] != source:
            self._base = None  # let go of it before the next one is loaded
            self._base = source, load_family(source)
        family = copy.deepcopy(self._base[1])
        apply_schedule(family, config)
        return family

    def base_fingerprints(self, family: Family, config: Config) -> InputFingerprints:
        """Return the fingerprints of an untouched base; those of gigabytes are computed once."""
        source = model_source(config)
        if self.folder is None or source not in self._fingerprints:
            self._fingerprints[source] = base_fingerprints(family)
        return {**self._fingerprints[source], **base_fingerprints(family, weights=False)}

    def load_encoders(
        self, dino: str | None, clip: str | None, device: str, lpips: bool, read_by: ReaderNames
    ) -> Encoders:
        """Return the encoders that score; no run changes them."""
        key = (dino, clip, device, lpips, read_by)
        if self.folder is None or key not in self._encoders:
            self._encoders[key] = load_encoders(*key)
        return self._encoders[key]

    def class_latents(self, own: Path) -> Path:
        """Return the folder for class latents. own: the run's, where nothing is shared."""
        return own if self.folder is None else self.folder / "class-latents"

    def prompts(self, own: Path) -> Path:
        """Return the folder for prompts of text encoders that never train. own: the run's, where nothing is shared."""
        return own if self.folder is None else self.folder / "embeddings"

    def image_encoder(self, family: Family, fingerprints: InputFingerprints) -> Encoder:
        """Return what encodes images to latents, or looks them up where the same pixels have been encoded."""
        if self.folder is None:
            return family.encode_images
        autoencoder, device = fingerprints["autoencoder"], _device_name(family)

        def encode(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
            def make() -> Mapping[str, Tensor]:
                mean, std = family.encode_images(pixels_BCHW)
                return {"mean": mean, "std": std}

            pixels = hashlib.sha256(pixels_BCHW.contiguous().numpy().tobytes()).hexdigest()
            found = self._kept(
                "photo-latents", make, autoencoder=autoencoder, pixels=pixels, shape=[*pixels_BCHW.shape], device=device
            )
            return found["mean"], found["std"]

        return encode

    def prompt_encoder(
        self, family: Family, config: Config, fingerprints: InputFingerprints
    ) -> Callable[[str], Conditioning] | None:
        """Return what encodes a prompt by frozen text encoders, or looks it up; None: nothing is shared.

        A run with method.start may begin with other text encoders than the base's, and shares no embeddings. Text
        encoders that never train keep their own (`prompts`).
        """
        if self.folder is None or config.method.start is not None or not family.text_encoders:
            return None
        base, device = fingerprints["base model"], _device_name(family)
        first = next(family.text_encoders[0].parameters())

        def encode(prompt: str) -> Conditioning:
            def make() -> Mapping[str, Tensor]:
                return family.encode_prompts([prompt]).fields

            found = self._kept("embeddings", make, base=base, prompt=prompt, dtype=str(first.dtype), device=device)
            return Conditioning(found).to(first.device)

        return encode

    def _kept(self, kind: str, make: MakeTensors, **depends_on: Any) -> dict[str, Tensor]:
        """Return tensors from disk, or make and keep them. depends_on: all that decides them."""
        assert self.folder is not None
        name = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / kind / f"{name}.safetensors"
        try:
            return load_file(path)
        except (FileNotFoundError, SafetensorError):  # or torn: it is made again
            made = {field: tensor.cpu().contiguous() for field, tensor in make().items()}
            with atomic_file(path) as file:
                file.write(save(made))
            return made


def _device_name(family: Family) -> str:
    """Return the kind of device that the VAE is on: another kind rounds otherwise."""
    device = next(family.vae.parameters()).device
    return device_name(device)
