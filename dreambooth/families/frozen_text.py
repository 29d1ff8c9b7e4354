"""Text encoders that never train: loaded when a prompt is to be encoded that is not kept, and let go afterwards.

A prompt's conditioning is a pure function of the encoder's files, the tokenizer's, the prompt and the number format. It
is kept as a small file under a fingerprint of these, so that a run that goes on loads no text encoder at all.
Shapes: N tokens, D width of the text encoder.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from dreambooth.errors import UserError
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.inspection import check_weights
from dreambooth.families.loading import check_finite, load_part, make_blank
from dreambooth.families.prompt_cache import PromptCache
from dreambooth.families.quantization import num_weights, quantize, stored_tensors
from dreambooth.families.source import ModelSource
from dreambooth.files import atomic_file

logger = logging.getLogger(__name__)


@dataclass
class LazyTextEncoder:
    """Hold a text encoder's place: its folders, and how it is loaded.

    load: reads it in a dtype. make_blank: makes it without numbers (torch's meta device). folders: with its files and
    the tokenizer's. quantize: how its weights are stored (`ModelSource`).
    """

    load: Callable[[torch.dtype], Any]
    make_blank: Callable[[], nn.Module]
    folders: tuple[Path, ...]
    quantize: str | None = None
    module: Any = field(default=None, init=False)
    dtype: torch.dtype | None = field(default=None, init=False)  # that it was loaded in

    def __deepcopy__(self, memo: dict[int, Any]) -> "LazyTextEncoder":
        return self  # it never changes

    def get(self, dtype: torch.dtype, device: torch.device) -> Any:
        """Return the text encoder, loaded if need be.

        It is not cast from one dtype to another: of a T5 in float16, transformers loads the layers that would overflow
        in float32.
        """
        if self.module is None or self.dtype != dtype:
            self.release()
            self.module, self.dtype = self.load(dtype).requires_grad_(False).eval(), dtype
        return self.module.to(device)

    def release(self) -> None:
        """Let go of the weights."""
        self.module = None

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 over the files of the encoder and the tokenizer, and its quantization, hexadecimal."""
        digest = hashlib.sha256((self.quantize or "").encode())
        for path in (path for folder in self.folders for path in sorted(folder.iterdir())):
            if path.suffix in (".safetensors", ".json", ".jinja", ".txt"):
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
                digest.update(hashlib.sha256(path.name.encode()).digest() + content)
        return digest.hexdigest()

    @cached_property
    def blank(self) -> nn.Module:
        """Return it without numbers, quantized as it is stored."""
        blank = self.make_blank()
        if self.quantize is not None:
            quantize(blank, self.quantize)
        return blank

    @property
    def num_weights(self) -> int:
        return num_weights(self.blank)

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of its weights where those that are not quantized have this dtype."""
        own = stored_tensors(self.blank)
        num_bytes = sum(each.numel() * (dtype if each.is_floating_point() else each.dtype).itemsize for each in own)
        wide = getattr(self.blank, "_keep_in_fp32_modules", None) or () if dtype == torch.float16 else ()
        named = self.blank.named_parameters()
        return num_bytes + sum(2 * each.numel() for name, each in named if set(name.split(".")) & set(wide))


def lazy_text_encoder(
    model_class: Any, folder: Path, source: ModelSource, part: str = "text_encoder"
) -> LazyTextEncoder:
    """Return a text encoder of a pipeline, not loaded yet. Raises ModelError for missing or damaged files.

    part: its folder; that of its tokenizer has the same number.
    """
    if source.has_weights:
        check_weights(folder / part)
    return LazyTextEncoder(
        partial(_load, model_class, folder, source, part),
        partial(make_blank, model_class, folder / part),
        (folder / part, folder / part.replace("text_encoder", "tokenizer")),
        source.quantize,
    )


def _load(model_class: Any, folder: Path, source: ModelSource, part: str, dtype: torch.dtype) -> Any:
    """Load a text encoder. Raises ModelError for incomplete or non-finite weights."""
    text_encoder = load_part(model_class, folder, part, source, dtype)
    check_finite(**{part: text_encoder})
    return text_encoder


@dataclass
class FrozenText(PromptCache):
    """The part of a `TextSide` whose text encoder never trains; the subclass says how a prompt is encoded."""

    text_encoder: LazyTextEncoder

    @property
    def frozen_encoders(self) -> tuple[LazyTextEncoder, ...]:
        """Return all text encoders, of which a family may have several."""
        return (self.text_encoder,)

    @property
    def text_encoders(self) -> list[nn.Module]:
        """Return none: a method trains what is here."""
        return []

    def loaded_encoders(self) -> list[Any]:
        """Return all text encoders, loaded if need be, on the transformer's device in its dtype."""
        weight = next(self.denoiser.parameters())
        return [each.get(weight.dtype, weight.device) for each in self.frozen_encoders]

    @property
    def text_digest(self) -> str:
        digests = [each.digest for each in self.frozen_encoders]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def num_text_weights(self) -> int:
        return sum(each.num_weights for each in self.frozen_encoders)

    def num_text_bytes(self, dtype: torch.dtype) -> int:
        return sum(each.num_bytes(dtype) for each in self.frozen_encoders)

    @torch.no_grad()
    def cache_prompts(
        self,
        prompts: Iterable[str],
        encode: Callable[[str], Conditioning] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Encode each prompt by itself, or read it from a folder of earlier ones; then let go of the text encoder."""
        weight = next(self.denoiser.parameters())
        paths = {
            prompt: None if folder is None else folder / f"{self._address(prompt, weight.dtype)}.safetensors"
            for prompt in prompts
        }
        found = {prompt: kept for prompt, path in paths.items() if (kept := read_conditioning(path)) is not None}
        missing = [prompt for prompt in paths if prompt not in found]
        if missing:
            logger.info(f"encoding {len(missing)} prompts with the frozen text encoder")
        for prompt in missing:
            found[prompt] = self.run_text_encoders([prompt]) if encode is None else encode(prompt)
            write_conditioning(found[prompt], paths[prompt])
        self.prompt_cache = {prompt: conditioning.to(weight.device) for prompt, conditioning in found.items()}
        for each in self.frozen_encoders:
            each.release()

    def add_word(self, word: str, num_vectors: int, start_words: Sequence[str]) -> list[list[int]]:
        raise UserError(
            "method.name: a new word is learned through the text encoder, and this family's stays frozen; use lora, "
            "loha, lokr or full"
        )

    def _address(self, prompt: str, dtype: torch.dtype) -> str:
        """Return a name for all that a prompt's conditioning depends on, 32 hexadecimal digits."""
        version = "2" if dtype == torch.float16 else ""  # before it T5 had overflown
        text = "\0".join((type(self).__name__, self.text_digest, f"{dtype}{version}", prompt))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def write_conditioning(conditioning: Conditioning, path: Path | None) -> None:
    """Write the conditioning of one prompt; nowhere where there is no path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: conditioning[name].cpu().contiguous() for name in conditioning}
    with atomic_file(path) as file:
        file.write(save(fields))


def read_conditioning(path: Path | None) -> Conditioning | None:
    """Read the conditioning of one prompt; None where there is none, or a damaged one, which is made again."""
    if path is None or not path.is_file():
        return None
    try:
        return Conditioning(load_file(path))
    except (OSError, SafetensorError) as error:
        logger.warning(f"{path}: cannot be read ({error}); the prompt is encoded again")
        return None
