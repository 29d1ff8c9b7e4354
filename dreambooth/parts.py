"""From settings to the parts of a run: what `engine.train` puts together. Below this layer nothing sees the config."""

import contextlib
import difflib
import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from dreambooth import sampling
from dreambooth.buckets import Size, make_buckets, nearest_bucket
from dreambooth.captions import Captions, read_captions, without_subjects
from dreambooth.config import Config, subject_key
from dreambooth.data import EncodedPicture, LatentDataset, Sample, by_subject, encode_pictures
from dreambooth.errors import UserError, shown
from dreambooth.export import LearnedSubject, SubjectCard, card_in_file, read_card
from dreambooth.families import Family, clip, evaluation_mode, frozen_copy, load_family
from dreambooth.families.unet import SMALL
from dreambooth.files import with_home, without_home
from dreambooth.images import (
    Look,
    alike,
    is_upscaled,
    list_images,
    load_image,
    load_mask,
    look_at,
    to_images,
    transparency_mask,
)
from dreambooth.methods import MethodSettings, find_method
from dreambooth.methods.adapters import base_beneath
from dreambooth.metrics.encoders import is_at_hand
from dreambooth.metrics.journal import Journal
from dreambooth.metrics.subject import Encoders, SubjectScorer, load_encoders
from dreambooth.metrics.validation import PictureRows, ValidationScorer
from dreambooth.module import DreamBoothModule, Objective
from dreambooth.optim import OptimSettings, import_bitsandbytes
from dreambooth.pictures import model_folder
from dreambooth.prior import GeneratedPrior, PicturePrior, Predict, Prior, make_teacher, prior_fingerprint
from dreambooth.prompts import Prompt, expand, fill_prompt
from dreambooth.randomness import Randomness
from dreambooth.ranks import local_rank, tell
from dreambooth.validation import Looks

AUTO_ENCODERS = {"dino": "facebook/dino-vits16", "clip": "openai/clip-vit-base-patch32"}  # those of the paper
Shape = tuple[int, int, int]  # of latents: (C, H, W)
NUM_FIXED_LOSSES = 20  # (noise, timestep) pairs of eval/loss: two in each tenth of the timesteps


def pick_device(config: Config) -> torch.device:
    """Raises UserError where the wished device, or the precision on it, is not there."""
    has_cuda = torch.cuda.is_available()
    if config.train.device == "cuda" and not has_cuda:
        raise UserError("train.device: 'cuda' is wished, but torch sees no GPU; use cpu or auto")
    device = torch.device("cuda", local_rank()) if has_cuda and config.train.device != "cpu" else torch.device("cpu")
    check_num_processes(config, device)
    if config.train.precision == "16-mixed" and device.type == "cpu":
        raise UserError("train.precision: '16-mixed' needs a GPU; on a CPU use bf16-mixed or 32-true")
    return device


def pick_precision(config: Config, family: Family) -> str:
    """train.precision; for `auto` 16 bits for a large model on a GPU, bfloat16 where that computes with it.

    Else float32: a small model loses more with casts than it wins, and so do most CPUs (not those with AMX).
    """
    if config.train.precision != "auto":
        return config.train.precision
    is_large = sum(weight.numel() for weight in family.denoiser.parameters()) >= SMALL
    if pick_device(config).type == "cpu" or not is_large:
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def check_num_processes(config: Config, device: torch.device) -> None:
    """Raises UserError where there are fewer GPUs than wished, or torchrun has started another number of processes."""
    devices, wished = config.train.devices, config.train.devices * config.train.num_nodes
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise UserError(f"train.devices: {devices} are wished, but torch sees {torch.cuda.device_count()} GPU(s)")
    started = int(os.environ.get("WORLD_SIZE", wished))
    if started != wished:
        raise UserError(
            f"train.devices, train.num_nodes: {devices} x {config.train.num_nodes} processes are wished, but {started} "
            "were started; make both the same"
        )


@dataclass(frozen=True)
class Given:
    """What a run is given beside its base. photos, captions: of each subject. start: `find_start`.

    masks: of all photos, one subject's after the other's; None: all of each counts.
    """

    start: Path | None
    photos: list[list[Path]]
    captions: list[list[str]]
    masks: list[Image.Image] | None


def find_given(config: Config) -> Given:
    """Raises UserError for what is not there or cannot be used."""
    start, photos = find_start(config), [list_images(subject.images) for subject in config.subjects]
    return Given(start, photos, captions_of(photos, config), load_masks([*chain(*photos)], config))


def load_base(config: Config) -> Family:
    """The base model with the run's noise schedule, on the CPU. Raises ModelError, UserError."""
    model = config.model
    family = load_family(model.base, model.family, model.config, model.revision, model.variant)
    apply_schedule(family, config)
    return family


def apply_schedule(family: Family, config: Config) -> None:
    """Zero terminal SNR (Lin et al. 2023, arXiv 2305.08891, algorithm 1), and sampling that starts from there.

    Raises UserError for a base that predicts the noise, which says nothing of x0 where all is noise.
    """
    if not config.loss.zero_terminal_snr:
        return
    if family.schedule.prediction == "epsilon":
        raise UserError(
            "loss.zero_terminal_snr: this base predicts the noise, and where all is noise nothing can be learned from "
            "it; use a base that predicts v, or loss.noise_offset"
        )
    family.set_scheduler({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})


def read_texts(family: Family, captions: list[list[str]], config: Config, text_trains: bool) -> None:
    """Encode every prompt of the run: to keep, or where the text encoders train to see that they can be.

    captions: of each subject's pictures. Raises UserError, and warns, as `wording_warnings` does.
    """
    for warning in wording_warnings(family, captions, config):
        tell(f"warning: {warning}")
    texts = dict.fromkeys(["", *texts_of(config), *chain(*captions), *chain(*class_prompts_of(captions, config))])
    if text_trains or config.data.shuffle_captions:
        with torch.no_grad():
            for text in texts:
                family.condition([text])
    else:
        family.remember(texts)


def wording_warnings(family: Family, captions: list[list[str]], config: Config) -> Iterator[str]:
    """What may be amiss with identifiers and prompts, once the method has added its words to the family.

    Raises UserError for an identifier that is nothing to the tokenizer, or that a prompt's dropped end holds.
    """
    if not find_method(config.method.name).adds_word:
        for number, subject in enumerate(config.subjects):
            yield from identifier_warnings(family, f"{subject_key(config, number)}.identifier", subject.identifier)
    identifiers = [subject.identifier for subject in config.subjects]
    for key, prompt in dict.fromkeys(keyed_prompts(captions, config)):
        if (warning := sampling.cut_warning(family, f"{key} {prompt!r}", prompt, identifiers)) is not None:
            yield warning


def identifier_warnings(family: Family, key: str, identifier: str) -> Iterator[str]:
    """Raises UserError for one that is no word."""
    ids = family.token_ids(identifier)
    if not ids or set(ids) & set(family.tokenizer.all_special_ids):
        raise UserError(f"{key}: {identifier!r} is no word to this tokenizer; name a rare one: sks")
    better = difflib.get_close_matches(identifier, clip.rare_words(family.tokenizer), n=3, cutoff=0)
    if len(ids) > 1:
        pieces = ", ".join(f"{token!r} {number}" for token, number in zip(_spelled(family, ids), ids, strict=True))
        yield (
            f"{key} {identifier!r} is {len(ids)} tokens to this tokenizer ({pieces}), each with a meaning of its own; "
            f"a rare word that is one token is learned more cleanly: {', '.join(better)}"
        )
    elif clip.is_common(family.tokenizer, ids[0]):
        yield (
            f"{key} {identifier!r} is a common word (token {ids[0]} of {len(family.tokenizer)}, by how often they were "
            f"met), whose meaning the subject has to fight; better a rare one: {', '.join(better)}"
        )


def _spelled(family: Family, ids: list[int]) -> list[str]:
    return [str(token).removesuffix("</w>") for token in family.tokenizer.convert_ids_to_tokens(ids)]


def identifier_last(caption: str, identifier: str) -> str:
    """A caption in that order of its parts (`Captions.shuffle`) in which the identifier comes latest."""
    first, *rest = caption.split(",")
    return ",".join([first, *sorted(rest, key=lambda part: identifier in part)])


def keyed_prompts(captions: list[list[str]], config: Config) -> Iterator[tuple[str, str]]:
    """Every prompt of the run with where it comes from."""
    for number, own in enumerate(captions):
        key = subject_key(config, number)
        yield f"{key}.class_prompt", class_prompt(config, number)
        if config.data.captions:
            shuffled = [identifier_last(caption, config.subjects[number].identifier) for caption in own]
            yield from (("the caption", caption) for caption in (shuffled if config.data.shuffle_captions else own))
        yield f"{key}.prompt", subject_prompt(config, number)
    yield from (("validate.prompts", prompt.filled) for prompt in validation_prompts(config))


def picture_warnings(looks: Sequence[Look], buckets: list[Size], resolution: int) -> Iterator[str]:
    """What is no reason to refuse pictures, but worth a word."""
    small = [look.path for look in looks if is_upscaled(look.size, nearest_bucket(look.size, buckets))]
    if small:  # enlarging blurs, and blur is learned with the subject
        yield f"smaller than data.resolution ({resolution}), so enlarged: {_named(small)}"
    if moving := [look for look in looks if look.num_frames > 1]:
        frames = ", ".join(f"{shown(look.path.name)} (1 of {look.num_frames})" for look in moving)
        yield f"several pictures in a file, of which the first is taken: {frames}"
    if pairs := alike(looks):
        twice = "; ".join(f"{_named([one])} and {_named([other])}" for one, other in pairs)
        yield f"(nearly) the same picture twice, which then counts twice; leave one out: {twice}"


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(shown(path.name) for path in paths)


def texts_of(config: Config) -> list[str]:
    """Every prompt of a run as the model gets it."""
    numbers = range(len(config.subjects))
    own = [[subject_prompt(config, number), class_prompt(config, number)] for number in numbers]
    return [*chain(*own), *(prompt.filled for prompt in validation_prompts(config))]


def subject_prompt(config: Config, number: int) -> str:
    return fill_prompt(config.subjects[number].prompt, config.subjects, number)


def class_prompt(config: Config, number: int) -> str:
    return fill_prompt(config.subjects[number].class_prompt, config.subjects, number)


def validation_prompts(config: Config) -> list[Prompt]:
    return expand(config.validate.prompts, config.subjects)


def buckets_of(family: Family, config: Config) -> list[Size]:
    """The sizes that pictures are cut to: one square, or with data.buckets several shapes.

    Raises UserError for a resolution, or a step, that does not fit the base.
    """
    data = config.data
    family.latent_shape(data.resolution, data.resolution)
    if not data.buckets:
        return [(data.resolution, data.resolution)]
    if data.bucket_step % family.even_side:
        raise UserError(
            f"data.bucket_step: {data.bucket_step} does not suit this base, whose denoiser halves sides of "
            f"{family.even_side} pixels evenly; use a multiple of {family.even_side}"
        )
    return make_buckets(data.resolution, data.bucket_step)


def tell_buckets(pictures: list[EncodedPicture]) -> None:
    """How many pictures each bucket got."""
    sizes = Counter(tuple(picture.frame_V6[0, 4:].tolist()) for picture in pictures)
    listed = ", ".join(f"{width}x{height} ({count})" for (height, width), count in sorted(sizes.items()))
    tell(f"buckets (and pictures in each): {listed}")


def encode_subjects(family: Family, given: Given, config: Config, randomness: Randomness) -> list[EncodedPicture]:
    """All pictures of all subjects, one subject's after the other's; tells what may be amiss with their sizes."""
    paths = [*chain(*given.photos)]
    for warning in picture_warnings([*map(look_at, paths)], buckets_of(family, config), config.data.resolution):
        tell(f"warning: {warning}")
    subjects = [number for number, own in enumerate(given.photos) for _ in own]
    pictures = encode(family, paths, config, randomness, given.masks, subjects)
    if config.data.buckets:
        tell_buckets(pictures)
    return pictures


def encode(
    family: Family,
    paths: list[Path],
    config: Config,
    randomness: Randomness,
    masks: list[Image.Image] | None = None,
    subjects: Sequence[int] | None = None,
) -> list[EncodedPicture]:
    """subjects: which one each picture shows; None: the first."""
    data = config.data
    return encode_pictures(
        paths,
        family.encode_images,
        buckets=buckets_of(family, config),
        num_crops=data.num_crops if data.crop == "random" else 1,
        flip=data.flip,
        randomness=randomness,
        masks=masks,
        subjects=subjects,
    )


def load_masks(paths: list[Path], config: Config) -> list[Image.Image] | None:
    """What counts of each of the subject's pictures; None: all. Raises UserError for one that is missing or black."""
    if config.data.mask is None:
        return None
    masks = [transparency_mask(path) if config.data.mask == "alpha" else mask_beside(path, config) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        if mask.getextrema()[1] == 0:
            raise UserError(f"{path}: its mask (data.mask: {config.data.mask}) leaves nothing of it")
    return masks


def mask_beside(path: Path, config: Config) -> Image.Image:
    """The mask of a picture in the folder data.mask. Raises UserError where there is none, or of another size."""
    found = sorted(Path(str(config.data.mask)).glob(f"{glob.escape(path.stem)}.*"))
    if len(found) != 1:
        raise UserError(
            f"data.mask: {config.data.mask} holds {len(found)} masks named {path.stem}.*, and {path.name} needs one"
        )
    mask, size = load_mask(found[0]), load_image(path).size
    if mask.size != size:
        raise UserError(f"{found[0]}: {mask.size[0]}x{mask.size[1]} pixels; {path.name} has {size[0]}x{size[1]}")
    return mask


# -------------------------------------------------------------------------------- the class prior


def make_prior(
    family: Family,
    subject: list[EncodedPicture],
    captions: list[list[str]],
    folder: Path,
    config: Config,
    randomness: Randomness,
    base: str,
) -> tuple[Prior | None, Predict | None]:
    """Where class latents come from (None: no prior), and the teacher of their targets (None: the true noise).

    captions: of each subject's pictures. folder: for class latents that are made here. base: fingerprint of the base
    model, which is taken from `family`: call this before anything trains.
    """
    prior, class_prompts = config.prior, class_prompts_of(captions, config)
    if prior.source == "none":
        return None, None
    if prior.source == "folder":
        pictures = encode(family, list_images(str(prior.folder)), config, randomness)
        named = Captions([class_prompts[0][0]] * len(pictures), randomness)
        return PicturePrior(LatentDataset(pictures, named, randomness, "prior")), None
    shapes = shapes_of(subject)
    if prior.source != "teacher":
        return make_generated_prior(
            family, None, in_turn(class_prompts), shapes, folder, config, randomness, base
        ), None
    frozen = untouched_base(family, config)
    teacher = make_teacher(frozen)
    if prior.teacher_latents == "subject":
        named = Captions([*chain(*class_prompts)], randomness)
        return PicturePrior(LatentDataset(subject, named, randomness, "prior")), teacher
    return make_generated_prior(
        family, frozen, in_turn(class_prompts), shapes, folder, config, randomness, base
    ), teacher


def shapes_of(pictures: list[EncodedPicture]) -> list[Shape]:
    """Shapes of latents that class pictures are made in, in turn: those of the subject's; one, where they agree."""
    shapes = [cast(Shape, tuple(picture.mean_VCHW.shape[1:])) for picture in pictures]
    return shapes[:1] if len(set(shapes)) == 1 else shapes


def class_prompts_of(captions: list[list[str]], config: Config) -> list[list[str]]:
    """What pictures of each subject's class are called, one for each of the subject's."""
    if not config.data.captions:
        return [[class_prompt(config, number)] * len(own) for number, own in enumerate(captions)]
    return [[without_subjects(caption, config.subjects) for caption in own] for own in captions]


def in_turn(prompts: list[list[str]]) -> list[str]:
    """The prompts of each class, each once, such that all classes come equally often: a, b, a, b ..."""
    by_class = list(dict.fromkeys(tuple(dict.fromkeys(own)) for own in prompts))
    longest = max(map(len, by_class))
    return [own[turn % len(own)] for turn in range(longest) for own in by_class]


def captions_of(photos: list[list[Path]], config: Config) -> list[list[str]]:
    """What is said of each subject's pictures. Raises UserError for a caption that is missing, or not of it."""
    if not config.data.captions:
        return [[subject_prompt(config, number)] * len(paths) for number, paths in enumerate(photos)]
    return [own_captions(paths, config, number) for number, paths in enumerate(photos)]


def own_captions(paths: list[Path], config: Config, number: int) -> list[str]:
    """Those of one subject's pictures, from files."""
    captions = [fill_prompt(caption, config.subjects, number) for caption in read_captions(paths)]
    identifier = config.subjects[number].identifier
    for path, caption in zip(paths, captions, strict=True):
        if identifier not in caption:
            raise UserError(f"{path.name}: its caption {caption!r} has neither {{subject}} nor {identifier!r}")
    return captions


def untouched_base(family: Family, config: Config) -> Family:
    """The frozen base beside what trains: beneath an adapter, or a copy where every weight may change."""
    if find_method(config.method.name).is_adapter:
        return base_beneath(family)
    return frozen_copy(family, compute_dtype(config, family))


def make_generated_prior(
    family: Family,
    frozen: Family | None,
    prompts: list[str],
    shapes: list[Shape],
    folder: Path,
    config: Config,
    randomness: Randomness,
    base: str,
) -> GeneratedPrior:
    """A prior that the frozen base makes while training runs; with prior.source=ahead before the first step.

    frozen: a copy of the base, if there is one already. prompts: what to make, in turn. shapes: of the latents, a block
    in each in turn.
    """
    prior = config.prior
    settings = prior_sampler(config)
    dtype = compute_dtype(config, family)
    name = prior_fingerprint(
        base=base, prompt=prompts[0] if len(prompts) == 1 else prompts, sampler=str(settings),
        shape=shapes[0] if len(shapes) == 1 else shapes, seed=config.run.seed, dtype=str(dtype),
        num_images=prior.num_images, block_size=prior.batch_size,
    )  # fmt: skip
    num_places = places_of_run(config)
    made = GeneratedPrior(None, prior.num_images, prior.batch_size, folder / name, prompts, num_places)
    if made.is_complete:
        return made
    sampled_with = frozen or untouched_base(family, config)

    def make(indices: list[int]) -> Tensor:
        shape = shapes[indices[0] // prior.batch_size % len(shapes)]  # one a block
        start = sampling.start_from(randomness, "class picture", indices, shape)
        with torch.autocast(pick_device(config).type, enabled=False):  # called within a training step
            return sampling.sample_latents(sampled_with, [prompts[i % len(prompts)] for i in indices], start, settings)

    return GeneratedPrior(make, prior.num_images, prior.batch_size, folder / name, prompts, num_places)


def places_of_run(config: Config) -> int:
    """How many samples of the subject all steps of the run see together."""
    train = config.train
    return train.max_steps * train.batch_size * train.accumulate * train.devices * train.num_nodes


def prior_sampler(config: Config) -> sampling.SamplerSettings:
    """Raises UserError for an unknown scheduler."""
    prior = config.prior
    return sampling.SamplerSettings(
        prior.num_inference_steps, prior.guidance_scale, prior.scheduler, guidance_min_noise=prior.guidance_min_noise
    )


def validation_sampler(config: Config) -> sampling.SamplerSettings:
    """Raises UserError for an unknown scheduler."""
    validate = config.validate
    return sampling.SamplerSettings(validate.num_inference_steps, validate.guidance_scale, validate.scheduler)


def method_settings(config: Config, family: Family, randomness: Randomness) -> MethodSettings:
    method, subjects = config.method, config.subjects
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
        start_words=tuple(method.start_word or subject.class_noun for subject in subjects),
        only_words=config.optim.identifier_lr is not None,
        base_dtype=compute_dtype(config, family),
        start=find_start(config),
        seed=randomness.torch_seed("method"),
    )


def find_start(config: Config) -> Path | None:
    """The LoRA's file, or the folder of an adapter's own files, that method.start names.

    Raises UserError for what is not there, and for another method's.
    """
    start, method = config.method.start, config.method.name
    if start is None:
        return None
    path = Path(with_home(start))
    if not path.exists():
        raise UserError(f"method.start: {start}: there is no such file or folder")
    if path.is_file() and method != "lora":
        raise UserError(f"method.start: {start} is a file, and {method} starts from a run or model folder of its own")
    folder = path if path.is_file() else model_folder(str(path))
    card = find_start_card(folder)
    if card is None and method != "lora":
        raise UserError(f"method.start: {start} is no result of {method} (it has no dreambooth.json)")
    if card is not None and card.method != method:
        raise UserError(f"method.start: {start} was trained with {card.method}, this run is to train with {method}")
    return folder


def find_start_card(start: Path) -> SubjectCard | None:
    """What it says of how it was trained; None for a LoRA of other tools."""
    return card_in_file(start) if start.is_file() else read_card(start)


def tell_other_base(start: Path | None, base: str) -> None:
    """Warn of a start that was trained on other weights: of the same shapes, it may well be what is wished."""
    card = None if start is None else find_start_card(start)
    if card is not None and card.base_fingerprint not in (None, base):
        tell(f"warning: method.start: {start} was trained on another base ({card.base}), and is another model on this")


def make_objective(config: Config) -> Objective:
    loss = config.loss
    return Objective(
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
    lr = find_method(config.method.name).lr if optim.lr is None else optim.lr
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
    """Raises UserError for one that is not installed."""
    if config.optim.name == "adamw8bit":
        import_bitsandbytes()


def save_memory(family: Family, config: Config, text_trains: bool) -> None:
    """Let go of networks that the run has no more use for, and apply the settings that trade time for memory.

    On a GPU the VAE waits beside it.
    """
    if pick_device(config).type == "cuda":
        family.vae.to("cpu")
    for network in done_networks(family, config, text_trains):
        network.to("meta")
    checkpoint_activations(family, config)
    if config.train.compile:
        family.denoiser.compile()


def done_networks(family: Family, config: Config, text_trains: bool) -> list[torch.nn.Module]:
    """What is used no more once pictures and prompts are encoded.

    An adapter's result holds none of the base, so the text encoders are done when all prompts are known by heart, and
    the VAE when no picture is to be decoded.
    """
    if not find_method(config.method.name).is_adapter:
        return []
    knows_texts = not (text_trains or config.data.shuffle_captions)
    text_encoders = family.text_encoders if knows_texts else []
    return text_encoders if config.validate.every_steps else [*text_encoders, family.vae]


def checkpoint_activations(family: Family, config: Config) -> None:
    if not config.train.gradient_checkpointing:
        return
    denoiser: Any = family.denoiser
    denoiser.enable_gradient_checkpointing()
    for text_encoder in family.text_encoders:
        if text_encoder.training:
            checkpoint_text_encoder(text_encoder)


def checkpoint_text_encoder(text_encoder: Any) -> None:
    """transformers renamed the method within its version 5."""
    if hasattr(text_encoder, "activation_checkpointing_enable"):
        text_encoder.activation_checkpointing_enable()
    else:
        text_encoder.gradient_checkpointing_enable()


def compute_dtype(config: Config, family: Family) -> torch.dtype:
    """Of networks that do not train."""
    dtypes = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return dtypes[pick_precision(config, family)]


# -------------------------------------------------------------------------------- validation


def unseen_pictures(family: Family, config: Config, randomness: Randomness) -> list[EncodedPicture] | None:
    """The pictures of validate.images, which are not trained on; None where there are none."""
    if config.validate.images is None:
        return None
    return encode(family, list_images(config.validate.images), config, randomness)


def make_scorer(config: Config, journal: Journal, photos: list[list[Path]]) -> ValidationScorer | None:
    """What scores the validations' pictures; None for a run without validations, or with nothing to measure with.

    photos: of each subject.
    """
    if not config.validate.every_steps or (encoders := find_encoders(config, journal)) is None:
        if config.optim.text_encoder_stop_drift is not None:
            raise UserError(
                "optim.text_encoder_stop_drift: set, but there is nothing to measure the drift with; name an encoder "
                "(validate.dino, validate.clip)"
            )
        return None
    subjects = [SubjectScorer(encoders, [load_image(path) for path in own]) for own in photos]
    return ValidationScorer(subjects, validation_prompts(config))


def find_encoders(config: Config, journal: Journal) -> Encoders | None:
    """Those that validate.dino and validate.clip name; a run that goes on measures with what it began with.

    Raises ModelError for one that is named and not to be had; what `auto` does not find is told and left out.
    """
    validate, device = config.validate, str(pick_device(config))
    names = {"dino": validate.dino, "clip": validate.clip}
    if journal.entries:
        measured_by = journal.entries[0].measured_by or {}
        names = {"dino": measured_by.get("dino"), "clip": measured_by.get("clip_t")}
    names = {part: _auto_encoder(part) if name == "auto" else name for part, name in names.items()}
    if names["dino"] is None and names["clip"] is None:
        return None
    return load_encoders(names["dino"], names["clip"], device, lpips=True)


def _auto_encoder(part: str) -> str | None:
    """The usual encoder, if it can be loaded."""
    name = AUTO_ENCODERS[part]
    if is_at_hand(name):
        return name
    tell(
        f"note: no scores by validate.{part}: {name} is not in the cache and the hub does not answer; "
        "name a folder that has one, or null for none"
    )
    return None


def make_looks(
    family: Family,
    module: DreamBoothModule,
    subject: list[EncodedPicture],
    score: ValidationScorer | None,
    config: Config,
) -> Looks:
    """What a validation looks at. subject: the training pictures, or those of validate.images.

    The loss is of the subjects in turn, and of each one's pictures in turn.
    """
    samples = list(fixed_samples(subject, config))

    def loss() -> float:
        with inference(family, config):
            return module.fixed_loss(samples)

    # A start makes step 0 another model than the base, which is what scores are measured against.
    base = None if config.method.start is None else lambda: validation_pictures(base_beneath(family), config)
    return Looks(lambda: validation_pictures(family, config), loss, score, base)


def fixed_samples(pictures: list[EncodedPicture], config: Config) -> Iterator[Sample]:
    """What the held-out loss is of."""
    numbers = by_subject(pictures)
    for place in range(NUM_FIXED_LOSSES):
        turn, subject = divmod(place, len(numbers))
        picture = pictures[numbers[subject][turn % len(numbers[subject])]]
        yield Sample("validation", place, picture.mean_VCHW[0], subject_prompt(config, subject))


def validation_pictures(family: Family, config: Config) -> PictureRows:
    """A row a prompt, each picture from a seed of its own: always the same, so two validations can be compared.

    Rows do not share seeds: what one noise happens to draw (a robot like the subject) would be counted in all of them.
    """
    validate, settings = config.validate, validation_sampler(config)
    prompts = [prompt.filled for prompt in validation_prompts(config) for _ in range(validate.num_images)]
    seeds = range(len(prompts))
    size = (config.data.resolution, config.data.resolution)
    with at_hand(family.vae, pick_device(config)), inference(family, config):
        batches = sampling.sample_pixels(family, prompts, seeds, size, settings, config.prior.batch_size)
        pictures = [picture for pixels_BCHW in batches for picture in to_images(pixels_BCHW)]
    return [pictures[first : first + validate.num_images] for first in range(0, len(pictures), validate.num_images)]


@contextlib.contextmanager
def at_hand(network: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """A network on the device, and afterwards back where it waits."""
    home = next(network.parameters()).device
    network.to(device)
    try:
        yield
    finally:
        network.to(home)


@contextlib.contextmanager
def inference(family: Family, config: Config) -> Iterator[None]:
    """Evaluation mode, no gradients, and the training's number format."""
    dtype = compute_dtype(config, family)
    autocast = torch.autocast(pick_device(config).type, dtype, enabled=dtype != torch.float32)
    with evaluation_mode(family), torch.no_grad(), autocast:
        yield


def subject_card(
    config: Config, step: int, last_step: int, base_fingerprint: str, scores: dict[str, float] | None
) -> SubjectCard:
    return SubjectCard(
        subjects=tuple(
            LearnedSubject(each.identifier, each.class_noun, each.prompt, each.class_prompt) for each in config.subjects
        ),
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
        base_fingerprint=base_fingerprint,
        scores=scores,
    )
