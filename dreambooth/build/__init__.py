"""From settings to the parts of a run: what `engine.train` puts together. Below this layer nothing sees the config.

`networks` is the base, `learning` what trains of it and how; `subjects` and `texts` are what it learns from,
`class_prior` what it is not to forget, `validation` what shows how far it is.
"""

from dreambooth.build.class_prior import in_turn, make_generated_prior, make_prior, places_of_run, prior_sampler
from dreambooth.build.method import (
    check_optimizer,
    loss_settings,
    method_settings,
    optim_settings,
    subject_card,
    tell_other_base,
)
from dreambooth.build.networks import (
    apply_schedule,
    checkpoint_activations,
    compute_dtype,
    load_base,
    model_source,
    pick_device,
    pick_precision,
    save_memory,
    unused_networks,
)
from dreambooth.build.prompts import cache_prompts, captions_of, class_prompts_of, subject_prompt, wording_warnings
from dreambooth.build.subjects import (
    SubjectData,
    buckets_of,
    encode,
    encode_subjects,
    load_subject_data,
    picture_warnings,
)
from dreambooth.build.validation import (
    build_validation_inputs,
    find_encoders,
    make_scorer,
    unseen_pictures,
    validation_sampler,
)

__all__ = [
    "SubjectData",
    "apply_schedule",
    "buckets_of",
    "build_validation_inputs",
    "cache_prompts",
    "captions_of",
    "check_optimizer",
    "checkpoint_activations",
    "class_prompts_of",
    "compute_dtype",
    "encode",
    "encode_subjects",
    "find_encoders",
    "in_turn",
    "load_base",
    "load_subject_data",
    "loss_settings",
    "make_generated_prior",
    "make_prior",
    "make_scorer",
    "method_settings",
    "model_source",
    "optim_settings",
    "pick_device",
    "pick_precision",
    "picture_warnings",
    "places_of_run",
    "prior_sampler",
    "save_memory",
    "subject_card",
    "subject_prompt",
    "tell_other_base",
    "unseen_pictures",
    "unused_networks",
    "validation_sampler",
    "wording_warnings",
]
