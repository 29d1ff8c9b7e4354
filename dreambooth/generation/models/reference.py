"""Name a model to sample from: MODEL itself, and the LoRAs and embeddings on top of it."""

from dataclasses import dataclass

from dreambooth.errors import UserError

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class LoraRef:
    """A LoRA, LoHa or LoKr over a model. file: its file, or a run or model folder. weight: 1 is as it was trained.

    sha256: of the file, once it has been read.
    """

    file: str
    weight: float = 1.0
    sha256: str | None = None


@dataclass(frozen=True)
class EmbeddingRef:
    """A learned embedding. word: what stands for it in a prompt; None: the file's own word, else the file's name.

    sha256: of the file; it and the word are known once it has been read.
    """

    file: str
    word: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ModelRef:
    """Hold a MODEL argument and its loading options.

    base: the adapter's base model, if it has moved. config: the folder or hub id with a single file's configs and
    tokenizer. revision: of a hub id. variant: which of the weights; of an adapter both are its base's. dtype: of
    denoiser and text encoders; None: on a GPU float16, of transformers bfloat16; else float32. vae: replaces the
    model's own VAE. loras, embeddings: applied on top. quantize: how the weights are stored, None: in the dtype.
    """

    name: str
    base: str | None = None
    config: str | None = None
    revision: str | None = None
    variant: str | None = None
    dtype: str | None = None
    vae: str | None = None
    loras: tuple[LoraRef, ...] = ()
    embeddings: tuple[EmbeddingRef, ...] = ()
    quantize: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (None, *DTYPES):
            raise UserError(f"dtype={self.dtype}: must be one of {', '.join(DTYPES)}")
