"""The settings of method, loss and optimizer, and the card of the result."""

import logging
from functools import partial
from pathlib import Path

from dreambooth.build.networks import compute_dtype
from dreambooth.config import Config
from dreambooth.config.fields import SubjectConfig
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.generation.models.location import model_folder
from dreambooth.home_folder import with_home, without_home
from dreambooth.methods import default_lr, find_facts
from dreambooth.methods.base import MethodSettings, StartWords
from dreambooth.randomness import Randomness
from dreambooth.subject_info import LearnedSubject, SubjectInfo, card_in_file, read_card
from dreambooth.training.objective import LossSettings
from dreambooth.training.optimizer import OptimSettings
from dreambooth.training.optimizers import import_package

logger = logging.getLogger(__name__)
AUTO = "auto"  # of method.start_word: see `start_words`


def method_settings(
    config: Config, family: Family, randomness: Randomness, start_words: StartWords | None = None
) -> MethodSettings:
    """Return the settings of the method. Raises UserError for those of a text encoder that the base keeps frozen.

    start_words: by subject; None: those that the config names, which do not matter where trained weights are loaded.
    """
    method, subjects = config.method, config.subjects
    if not family.text_encoders:
        check_without_text_encoders(config)
    return MethodSettings(
        train_text_encoder=method.train_text_encoder,
        rank=method.rank,
        alpha=method.alpha,
        dropout=method.dropout,
        dora=method.dora,
        rslora=method.rslora,
        targets=tuple(method.targets),
        words=tuple(subject.identifier for subject in subjects),
        num_vectors=method.num_vectors,
        start_words=named_start_words(config) if start_words is None else start_words,
        trains_identifier_rows_only=config.optim.identifier_lr is not None,
        base_dtype=compute_dtype(config, family),
        start=find_start(config),
        seed=randomness.torch_seed("method"),
    )


def named_start_words(config: Config) -> StartWords:
    """Return the words that the config names for each subject: by default a new word's are its class noun.

    None at all for `auto`, which is chosen where a run begins.
    """
    named, is_new = config.method.start_word, find_facts(config.method.name).adds_tokens
    if named is not None:
        return (() if named == AUTO else tuple(named.split()),) * len(config.subjects)
    return tuple((subject.class_noun,) if is_new else () for subject in config.subjects)


def check_without_text_encoders(config: Config) -> None:
    """Raise UserError for settings that a base whose text encoder never trains cannot follow."""
    if find_facts(config.method.name).adds_tokens:
        raise UserError(
            f"method.name={config.method.name}: learns a new word through the text encoder, and this base's stays "
            "frozen; use lora, loha, lokr or full"
        )
    if config.method.start_word is not None:
        raise UserError("method.start_word: this base's text encoder stays frozen; set it to null")
    for name in ("text_encoder_lr", "identifier_lr", "text_encoder_stop_step", "text_encoder_stop_drift"):
        if (value := getattr(config.optim, name)) is not None:
            raise UserError(f"optim.{name}={value:g}: this base's text encoder stays frozen; set it to null")


def find_start(config: Config) -> Path | None:
    """Return the LoRA file, or the folder of an adapter's own files, that method.start names.

    Raises UserError for one that does not exist, and for another method's.
    """
    start, method = config.method.start, config.method.name
    if start is None:
        return None
    path = Path(with_home(start))
    if not path.exists():
        raise UserError(f"method.start={start}: no such file or folder")
    if path.is_file() and method not in ("lora", "loha", "lokr"):
        raise UserError(f"method.start={start}: is a file; {method} starts from a run or model folder of its own")
    folder = path if path.is_file() else model_folder(str(path))
    card = find_start_card(folder)
    if card is None and not (path.is_file() or method == "lora"):
        raise UserError(f"method.start={start}: no result of {method} (it has no dreambooth.json); name one")
    if card is not None and card.method != method:
        raise UserError(
            f"method.start={start}: was trained with {card.method}, not {method}; set method.name={card.method}"
        )
    return folder


def find_start_card(start: Path) -> SubjectInfo | None:
    """Read the card of the files of method.start; None for a LoRA of other tools."""
    return card_in_file(start) if start.is_file() else read_card(start)


def warn_of_other_base(start: Path | None, base: str, config: Config) -> None:
    """Warn if method.start was trained on another base; with the same shapes that may be intended.

    base: its fingerprint, which says nothing where its weights are quantized.
    """
    card = None if start is None or config.model.quantize != "none" else find_start_card(start)
    if card is not None and card.base_fingerprint not in (None, base):
        logger.warning(
            f"method.start={start}: was trained on another base ({card.base}); on this one it is another model"
        )


def loss_settings(config: Config) -> LossSettings:
    loss = config.loss
    return LossSettings(
        config.prior.weight,
        huber_c=loss.huber_c,
        weighting=loss.weighting,
        gamma=loss.gamma,
        noise_offset=loss.noise_offset,
        input_perturbation=loss.input_perturbation,
        unmasked_weight=config.data.unmasked_weight,
    )


def optim_settings(config: Config) -> OptimSettings:
    optim = config.optim
    lr = default_lr(config.method.name, optim.name) if optim.lr is None else optim.lr
    return OptimSettings(
        name=optim.name,
        in_backward=optim.in_backward,
        lr=lr,
        text_encoder_lr=lr if optim.text_encoder_lr is None else optim.text_encoder_lr,
        identifier_lr=optim.identifier_lr,
        text_encoder_stop_step=optim.text_encoder_stop_step,
        schedule=optim.schedule,
        warmup_steps=optim.warmup_steps,
        max_steps=config.train.max_steps,
        weight_decay=optim.weight_decay,
        betas=(optim.beta1, optim.beta2),
    )


def check_optimizer(config: Config) -> None:
    """Raise UserError for an optimizer that is not installed."""
    import_package(config.optim.name)


def learned_subject(config: Config, subject: SubjectConfig) -> LearnedSubject:
    """Return a subject for a card; of a data set, which has no name, the first prompt that it was validated with."""
    prompt = next(iter(config.validate.prompts), "") if subject.kind == "dataset" else subject.prompt
    class_prompt = subject.class_prompt if subject.kind == "subject" else ""
    return LearnedSubject(subject.identifier, subject.class_noun, prompt, class_prompt)


def subject_card(
    config: Config, step: int, last_step: int, base_fingerprint: str, scores: dict[str, float] | None
) -> SubjectInfo:
    return SubjectInfo(
        subjects=tuple(map(partial(learned_subject, config), config.subjects)),
        resolution=config.data.resolution,
        num_inference_steps=config.validate.num_inference_steps,
        guidance_scale=config.validate.guidance_scale,
        step=step,
        scheduler=config.validate.scheduler,
        last_step=last_step,
        method=config.method.name,
        base=without_home(config.model.base),
        base_config=config.model.config and without_home(config.model.config),
        base_revision=config.model.revision,
        base_variant=config.model.variant,
        base_vae=config.model.vae and without_home(config.model.vae),
        # That of quantized weights is no other program's, nor that of the base which the result is laid over.
        base_fingerprint=base_fingerprint if config.model.quantize == "none" else None,
        scores=scores,
    )
