"""The samplers of validation and of the class prior, and whether a base can take their steps."""

from dreambooth.config import Config
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.generation.schedulers import check_sampler
from dreambooth.generation.settings import SamplerSettings


def validation_sampler(config: Config) -> SamplerSettings:
    """Return how validation samples. Raises UserError for an unknown scheduler."""
    validate = config.validate
    try:
        return SamplerSettings(validate.num_inference_steps, validate.guidance_scale, validate.scheduler)
    except UserError as error:
        raise UserError(f"validate.{error}") from error


def prior_sampler(config: Config) -> SamplerSettings:
    """Return how class images are sampled. Raises UserError for an unknown scheduler."""
    prior, min_noise = config.prior, config.prior.guidance_min_noise
    try:
        return SamplerSettings(
            prior.num_inference_steps, prior.guidance_scale, prior.scheduler, guidance_min_noise=min_noise
        )
    except UserError as error:
        raise UserError(f"prior.{error}") from error


def check_samplers(family: Family, config: Config) -> None:
    """Raise UserError for sampler steps that are impossible on the base's schedule, before the first is taken."""
    used, prior = {}, config.prior
    if config.validate.every_steps:
        used["validate"] = validation_sampler(config)
    if prior.source in ("stream", "ahead") or (prior.source == "teacher" and prior.teacher_latents == "class"):
        used["prior"] = prior_sampler(config)
    for section, settings in used.items():
        if settings.guidance_scale < family.guidance.none:
            raise UserError(
                f"{section}.guidance_scale={settings.guidance_scale:g}: must be at least {family.guidance.none:g}, "
                "which is no guidance of this base"
            )
        if family.guidance.is_input and settings.guidance_min_noise:
            raise UserError(
                f"{section}.guidance_min_noise={settings.guidance_min_noise:g}: this base reads the guidance scale "
                "itself, and no step is cheaper without; set it to 0"
            )
        try:
            check_sampler(family, settings)
        except UserError as error:
            raise UserError(f"{section}.{error}") from error
