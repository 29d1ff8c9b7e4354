"""From settings to the parts of a run: what `engine.train` puts together. Below this layer nothing sees the config.

`networks` is the base, `learning` what trains of it and how; `subjects` and `texts` are what it learns from,
`class_prior` what it is not to forget, `validation` what shows how far it is.
"""

from dreambooth.build.class_prior import in_turn, make_generated_prior, make_prior, places_of_run, prior_sampler
from dreambooth.build.method import check_optimizer, loss_settings, method_settings, optim_settings, subject_card, tell_other_base
from dreambooth.build.networks import apply_schedule, checkpoint_activations, compute_dtype, unused_networks, load_base, pick_device, pick_precision, save_memory
from dreambooth.build.subjects import SubjectData, buckets_of, encode, encode_subjects, load_subject_data, picture_warnings
from dreambooth.build.prompts import captions_of, class_prompts_of, cache_prompts, subject_prompt, wording_warnings
from dreambooth.build.validation import find_encoders, build_validation_inputs, make_scorer, unseen_pictures, validation_sampler

__all__ = [
    "SubjectData",
    "apply_schedule",
    "buckets_of",
    "captions_of",
    "check_optimizer",
    "checkpoint_activations",
    "class_prompts_of",
    "compute_dtype",
    "unused_networks",
    "encode",
    "encode_subjects",
    "find_encoders",
    "load_subject_data",
    "in_turn",
    "load_base",
    "make_generated_prior",
    "build_validation_inputs",
    "loss_settings",
    "make_prior",
    "make_scorer",
    "method_settings",
    "optim_settings",
    "pick_device",
    "pick_precision",
    "picture_warnings",
    "places_of_run",
    "prior_sampler",
    "cache_prompts",
    "save_memory",
    "subject_card",
    "subject_prompt",
    "tell_other_base",
    "unseen_pictures",
    "validation_sampler",
    "wording_warnings",
]
