"""Build a run's objects from its config, for `engine.train`. Code in lower layers never receives the config.

`networks` loads the base, `method` chooses what trains and how, `subjects` and `prompts` read photos and captions,
`pairs` joins two subjects in an image, `prior` builds the class samples, `validation_inputs` the validation's sampler
and scorer, `trainer` the Trainer; `disk_plan` counts the bytes that all of it will write.
"""

from dreambooth.build.disk_plan import DiskNeed, check_disk, disk_need
from dreambooth.build.method import (
    check_optimizer,
    loss_settings,
    method_settings,
    optim_settings,
    subject_card,
    warn_of_other_base,
)
from dreambooth.build.networks import (
    apply_schedule,
    check_can_train,
    check_quantization,
    checkpoint_activations,
    compute_dtype,
    keep_off_device,
    load_base,
    model_source,
    pick_device,
    pick_precision,
    save_memory,
    unused_networks,
)
from dreambooth.build.pairs import show_pairs
from dreambooth.build.prior import (
    in_turn,
    make_generated_prior,
    make_prior,
    num_class_images,
    num_samples_of_run,
    prompts_of_class_images,
)
from dreambooth.build.prompts import (
    cache_prompts,
    captions_of,
    check_wording,
    class_prompts_of,
    subject_prompt,
    validation_prompts,
    wording_warnings,
)
from dreambooth.build.samplers import check_samplers, prior_sampler, validation_sampler
from dreambooth.build.shared import SharedInputs
from dreambooth.build.start_words import choose_start_words, told_start_words
from dreambooth.build.subjects import (
    SubjectData,
    buckets_of,
    encode,
    encode_pairs,
    encode_subjects,
    image_warnings,
    load_subject_data,
    size_of_pairs,
)
from dreambooth.build.trainer import make_callbacks, make_loader, make_loggers, make_trainer, steps_to_take
from dreambooth.build.validation_inputs import (
    build_validation_inputs,
    encode_validation_images,
    find_encoders,
    make_scorer,
    num_validations,
)

__all__ = [
    "DiskNeed",
    "SharedInputs",
    "SubjectData",
    "apply_schedule",
    "buckets_of",
    "build_validation_inputs",
    "cache_prompts",
    "captions_of",
    "check_can_train",
    "check_disk",
    "check_optimizer",
    "check_quantization",
    "check_samplers",
    "check_wording",
    "checkpoint_activations",
    "choose_start_words",
    "class_prompts_of",
    "compute_dtype",
    "disk_need",
    "encode",
    "encode_pairs",
    "encode_subjects",
    "encode_validation_images",
    "find_encoders",
    "image_warnings",
    "in_turn",
    "keep_off_device",
    "load_base",
    "load_subject_data",
    "loss_settings",
    "make_callbacks",
    "make_generated_prior",
    "make_loader",
    "make_loggers",
    "make_prior",
    "make_scorer",
    "make_trainer",
    "method_settings",
    "model_source",
    "num_class_images",
    "num_samples_of_run",
    "num_validations",
    "optim_settings",
    "pick_device",
    "pick_precision",
    "prior_sampler",
    "prompts_of_class_images",
    "save_memory",
    "show_pairs",
    "size_of_pairs",
    "steps_to_take",
    "subject_card",
    "subject_prompt",
    "told_start_words",
    "unused_networks",
    "validation_prompts",
    "validation_sampler",
    "warn_of_other_base",
    "wording_warnings",
]
