"""From settings to the parts of a run: what `engine.train` puts together. Below this layer nothing sees the config.

`networks` is the base, `learning` what trains of it and how; `subjects` and `texts` are what it learns from,
`class_prior` what it is not to forget, `validation` what shows how far it is.
"""

from dreambooth.build.class_prior import in_turn, make_generated_prior, make_prior, places_of_run, prior_sampler
from dreambooth.build.method import check_optimizer, make_objective, method_settings, optim_settings, subject_card, tell_other_base
from dreambooth.build.networks import apply_schedule, checkpoint_activations, compute_dtype, done_networks, load_base, pick_device, pick_precision, save_memory
from dreambooth.build.subjects import Given, buckets_of, encode, encode_subjects, find_given, picture_warnings
from dreambooth.build.prompts import captions_of, class_prompts_of, read_texts, subject_prompt, wording_warnings
from dreambooth.build.validation import find_encoders, make_looks, make_scorer, unseen_pictures, validation_sampler

__all__ = [
    "Given",
    "apply_schedule",
    "buckets_of",
    "captions_of",
    "check_optimizer",
    "checkpoint_activations",
    "class_prompts_of",
    "compute_dtype",
    "done_networks",
    "encode",
    "encode_subjects",
    "find_encoders",
    "find_given",
    "in_turn",
    "load_base",
    "make_generated_prior",
    "make_looks",
    "make_objective",
    "make_prior",
    "make_scorer",
    "method_settings",
    "optim_settings",
    "pick_device",
    "pick_precision",
    "picture_warnings",
    "places_of_run",
    "prior_sampler",
    "read_texts",
    "save_memory",
    "subject_card",
    "subject_prompt",
    "tell_other_base",
    "unseen_pictures",
    "validation_sampler",
    "wording_warnings",
]
