"""The inputs of validations: images from fixed seeds, the scorer of them, and the loss of fixed samples."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from dreambooth.build.networks import inference, on_device, pick_device
from dreambooth.build.prompts import subject_prompt, validation_prompts
from dreambooth.build.samplers import validation_sampler
from dreambooth.build.subjects import encode
from dreambooth.config import Config
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import list_images
from dreambooth.data.images import to_images
from dreambooth.data.latents import EncodedImage, Encoder, Sample, by_subject
from dreambooth.distributed import is_first
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.generation import sampler
from dreambooth.methods.adapters import frozen_base
from dreambooth.metrics.encoders import is_available
from dreambooth.metrics.reader_scores import ReaderNames
from dreambooth.metrics.subject import Encoders, SubjectScorer, load_encoders
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.metrics.validation_scores import ImageRows, ValidationScorer
from dreambooth.randomness import Randomness
from dreambooth.status_line import STATUS_LINE, ProgressDisplay
from dreambooth.training.objective import fixed_loss
from dreambooth.training.validation import ValidationInputs

logger = logging.getLogger(__name__)
# Of DINO, CLIP, device, whether LPIPS too, and the models that read.
LoadEncoders = Callable[[str | None, str | None, str, bool, ReaderNames], Encoders]

AUTO_ENCODERS = {"dino": "facebook/dino-vits16", "clip": "openai/clip-vit-base-patch32"}  # those of the paper
NUM_FIXED_LOSSES = 20  # (noise, timestep) pairs of eval/loss: two in each tenth of the timesteps


def encode_validation_images(
    family: Family, config: Config, randomness: Randomness, encoder: Encoder | None = None
) -> list[EncodedImage] | None:
    """Encode the images of validate.images, which are not trained on; None where there are none.

    encoder: encodes pixels; None: the family does.
    """
    if config.validate.images is None:
        return None
    return encode(family, list_images(config.validate.images), config, randomness, encoder=encoder)


def make_scorer(
    config: Config, validation_log: ValidationLog, photos: list[list[Path]], load: LoadEncoders = load_encoders
) -> ValidationScorer | None:
    """Make the scorer of validation images; None for a run without validations, or without encoders to measure with.

    photos: of each subject. load: loads encoders, or has them.
    """
    if not config.validate.every_steps or (encoders := find_encoders(config, validation_log, load)) is None:
        if config.optim.text_encoder_stop_drift is not None:
            raise UserError(
                f"optim.text_encoder_stop_drift={config.optim.text_encoder_stop_drift}: there is nothing to measure "
                "the drift with; name an encoder (validate.dino, validate.clip)"
            )
        if (config.validate.matcher or config.validate.reader) and config.validate.every_steps:
            raise UserError(
                "validate.matcher, validate.reader: score beside a DINO or a CLIP, and neither is here; name one "
                "(validate.dino, validate.clip)"
            )
        return None
    subjects = [
        SubjectScorer(encoders, [load_image(path) for path in own], subject.class_noun)
        for own, subject in zip(photos, config.subjects, strict=True)
    ]
    return ValidationScorer(subjects, validation_prompts(config))


def find_encoders(config: Config, validation_log: ValidationLog, load: LoadEncoders = load_encoders) -> Encoders | None:
    """Load the encoders that validate.dino and validate.clip name; a resumed run measures with those it began with.

    Raises ModelError for one that is named and cannot be loaded; what `auto` does not find is reported and left out.
    """
    validate, device = config.validate, str(pick_device(config))
    names = {"dino": validate.dino, "clip": validate.clip}
    if validation_log.entries:
        measured_by = validation_log.entries[0].measured_by or {}
        begun = {"dino": measured_by.get("dino"), "clip": measured_by.get("clip_t")}
        names = {part: begun[part] if name == "auto" else name for part, name in names.items()}
    names = {part: auto_encoder(part) if name == "auto" else name for part, name in names.items()}
    if names["dino"] is None and names["clip"] is None:
        return None
    read_by = ReaderNames(validate.matcher, validate.reader, tuple(validate.questions))
    return load(names["dino"], names["clip"], device, False, read_by)


def auto_encoder(part: str) -> str | None:
    """Return the usual encoder, if it can be loaded."""
    name = AUTO_ENCODERS[part]
    if is_available(name):
        return name
    logger.info(
        f"note: no scores by validate.{part}: {name} is not in the cache and the hub does not answer; "
        "name a folder that has one, or null for none"
    )
    return None


def build_validation_inputs(
    family: Family,
    subject: list[EncodedImage],
    score: ValidationScorer | None,
    config: Config,
    randomness: Randomness,
) -> ValidationInputs:
    """Build the inputs of validations. subject: the training images, or those of validate.images.

    The loss is of the subjects in turn, and of each one's images in turn.
    """
    samples = list(fixed_samples(subject, config))

    def loss() -> float:
        with inference(family, config):
            return fixed_loss(family, samples, randomness, pick_device(config))

    # With method.start step 0 is not the base, which scores are measured against.
    base = None if config.method.start is None else lambda: sample_validation_images(frozen_base(family), config)
    prompts = [prompt.filled for prompt in validation_prompts(config)]
    return ValidationInputs(prompts, lambda: sample_validation_images(family, config), loss, score, base)


def num_validations(config: Config) -> int:
    """Return how many validations a run has, that of the untouched base among them."""
    every_steps = config.validate.every_steps
    return 1 + config.train.max_steps // every_steps if every_steps else 0


def fixed_samples(images: list[EncodedImage], config: Config) -> Iterator[Sample]:
    """Yield the samples of the fixed loss, their latents the VAE's means."""
    numbers = by_subject(images)
    for index in range(NUM_FIXED_LOSSES):
        turn, subject = divmod(index, len(numbers))
        image = images[numbers[subject][turn % len(numbers[subject])]]
        yield Sample("validation", index, image.mean_VCHW[0], subject_prompt(config, subject))


def sample_validation_images(family: Family, config: Config) -> ImageRows:
    """Sample a row of images for each prompt, each from its own seed, always the same: validations can be compared.

    Rows do not share seeds: a coincidence of one noise (a robot like the subject) would else count in all of them.
    """
    validate, settings = config.validate, validation_sampler(config)
    prompts = [prompt.filled for prompt in validation_prompts(config) for _ in range(validate.num_images)]
    seeds = range(len(prompts))
    size = (config.data.resolution, config.data.resolution)
    images: list[Image.Image] = []
    display = ProgressDisplay("validating", logger.info)

    def report(step: int, num_steps: int) -> None:
        under_way = min(config.prior.batch_size, len(prompts) - len(images))
        fraction = (len(images) + under_way * step / num_steps) / len(prompts)
        if is_first() and display.is_due(fraction):
            image = f"image {len(images) + under_way}/{len(prompts)}"
            display.show(fraction, [image, f"step {step}/{num_steps}", display.time_left(fraction)])

    with on_device(family.vae, pick_device(config)), inference(family, config), STATUS_LINE:
        for pixels_BCHW in sampler.sample_pixels(
            family, prompts, seeds, size, settings, config.prior.batch_size, report
        ):
            images += to_images(pixels_BCHW)
    return [images[first : first + validate.num_images] for first in range(0, len(images), validate.num_images)]
