"""Rules over several settings, and what breaks them."""

import itertools
import re
import typing
from typing import Any

from dreambooth.config.fields import Config, SubjectConfig
from dreambooth.config.keys import subject_key
from dreambooth.config.values import cut
from dreambooth.prompt_words import has_words
from dreambooth.prompts import Name, expand, has_field, template_problem
from dreambooth.questions import problems_of_questions

MAX_NAME_BYTES = 200
DEVICE_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def joint_problems(config: Config) -> typing.Iterator[str]:
    """Yield a message for each rule over several keys that a config breaks."""
    prior, optim = config.prior, config.optim
    for number, subject in enumerate(config.subjects):
        yield from _subject_problems(subject_key(config, number), subject)
    yield from _problems_of_several(config)
    for number, subject in enumerate(config.subjects):
        if subject.kind != "subject":
            yield from _kind_problems(subject_key(config, number), subject.kind, config)
    for key, prompt in _templates(config):
        if problem := template_problem(prompt, len(config.subjects)):
            yield f"{key}: {prompt!r}: {problem}"
    if problem := _name_problem(config.run.name):
        yield f"run.name: {cut(config.run.name)} {problem}"
    if prior.source == "folder" and not prior.folder:
        yield "prior.folder: required when prior.source is 'folder'"
    if prior.source != "folder" and prior.folder:
        yield f"prior.folder: only read when prior.source is 'folder' (it is {prior.source!r})"
    for name in ("text_encoder_lr", "identifier_lr", "text_encoder_stop_step", "text_encoder_stop_drift"):
        if getattr(optim, name) is not None and not config.method.train_text_encoder:
            yield f"optim.{name}: set, but method.train_text_encoder is false"
    if optim.identifier_lr is not None and config.method.name in ("lora", "loha", "lokr", "custom_diffusion"):
        yield f"optim.identifier_lr: {config.method.name} trains no row of the embedding (pivotal does); set it to null"
    if optim.text_encoder_stop_drift is not None and not config.validate.every_steps:
        yield "optim.text_encoder_stop_drift: set, but validate.every_steps is 0: nothing measures the drift"
    yield from _start_word_problems(config)
    if config.method.start is not None and config.method.name in ("full", "custom_diffusion"):
        yield f"method.start: {config.method.name} starts from model.base; set it to null"
    if config.validate.every_steps and not config.validate.prompts:
        yield "validate.prompts: empty; name one, or set validate.every_steps to 0"
    yield from _question_problems(config)
    yield from _timestep_problems(config)
    if optim.warmup_steps >= config.train.max_steps:
        yield f"optim.warmup_steps: {optim.warmup_steps} must be below train.max_steps ({config.train.max_steps})"
    if config.train.ema_decay >= 1:
        yield f"train.ema_decay: {config.train.ema_decay} must be below 1, or nothing is ever learned"
    if config.data.buckets and config.data.resolution % config.data.bucket_step:
        yield f"data.bucket_step: {config.data.bucket_step} must divide data.resolution ({config.data.resolution})"
    if config.data.crop == "subject" and config.data.mask is None:
        yield "data.crop: subject is where data.mask is white, and data.mask is null; set it to auto, alpha or a folder"
    if config.data.caption_dropout > 1:
        yield f"data.caption_dropout: {config.data.caption_dropout} is too large; at most 1"
    if config.method.dropout >= 1:
        yield f"method.dropout: {config.method.dropout} is too large; it must be below 1, where nothing would train"
    if config.data.unmasked_weight > 1:
        yield f"data.unmasked_weight: {config.data.unmasked_weight} is too large; at most 1"
    if config.model.quantize != "none" and config.method.name in ("full", "custom_diffusion"):
        yield (
            f"model.quantize: {config.method.name} trains the base's own weights, which {config.model.quantize} cannot "
            "hold; set it to none, or method.name to lora, loha, lokr, pivotal or textual_inversion"
        )
    yield from _optimizer_problems(config)
    if config.train.offload != "none":
        yield from _offload_problems(config)
    if config.optim.in_backward:
        yield from _in_backward_problems(config)
    if config.train.strategy == "fsdp":
        yield from _fsdp_problems(config)
    if max(optim.beta1, optim.beta2) >= 1:
        yield f"optim.beta1, optim.beta2: {optim.beta1}, {optim.beta2} must be below 1"


def _name_problem(name: str) -> str | None:
    """Return why a run's name is no folder name on every system, with room for an ending; None if it is one."""
    if DEVICE_OF_WINDOWS.fullmatch(name):
        return "is a device on Windows, where no folder can have that name; choose another"
    if name.endswith((".", " ")):
        return "ends with a dot or a space, which Windows cuts off; leave it out"
    is_short = len(name.strip()) > 0 and len(name.encode()) <= MAX_NAME_BYTES
    if not is_short or name == ".." or not name.isprintable() or set(name) & set('/\\:*?"<>|'):
        return "must name a folder: short, on one line, without / and the like"
    return None


def _timestep_problems(config: Config) -> typing.Iterator[str]:
    """Yield the settings of timesteps that loss.timesteps does not read."""
    loss = config.loss
    for name, read_by in (
        ("timestep_mean", ("logit_normal",)),
        ("timestep_std", ("logit_normal", "sigmoid")),
        ("timestep_shift", ("logit_normal", "sigmoid", "shifted")),
    ):
        value = getattr(loss, name)
        if value is not None and loss.timesteps not in read_by:
            yield (
                f"loss.{name}: {value:g}, but loss.timesteps is {loss.timesteps}, which does not read it; set it to "
                f"null, or loss.timesteps to {' or '.join(read_by)}"
            )


def _optimizer_problems(config: Config) -> typing.Iterator[str]:
    """Yield the settings that the optimizer does not take, each with the value that it takes."""
    optim, train = config.optim, config.train
    one_rate = "takes one learning rate for all weights together"
    no_stop = "moves weights whose learning rate is 0, too"
    taken: dict[str, tuple[tuple[str, Any, Any, str], ...]] = {
        "adafactor": (
            ("optim.beta1", optim.beta1, 0.9, "keeps no mean gradient"),
            ("optim.beta2", optim.beta2, 0.999, "has a decay rate of its own"),
        ),
        "prodigy": (
            ("optim.text_encoder_lr", optim.text_encoder_lr, None, one_rate),
            ("optim.identifier_lr", optim.identifier_lr, None, one_rate),
            ("optim.text_encoder_stop_step", optim.text_encoder_stop_step, None, no_stop),
            ("optim.text_encoder_stop_drift", optim.text_encoder_stop_drift, None, no_stop),
            ("optim.in_backward", optim.in_backward, False, "takes the gradients of all weights together"),
        ),
        "schedulefree": (
            ("optim.schedule", optim.schedule, "constant", "averages the weights instead of a falling rate"),
            ("train.ema_decay", train.ema_decay, 0, "averages the weights itself"),
            ("optim.text_encoder_stop_step", optim.text_encoder_stop_step, None, no_stop),
            ("optim.text_encoder_stop_drift", optim.text_encoder_stop_drift, None, no_stop),
            ("optim.in_backward", optim.in_backward, False, "counts its steps for all weights together"),
        ),
    }
    for key, value, allowed, reason in taken.get(optim.name, ()):
        if value != allowed:
            yield f"{key}: {value}, but {optim.name} {reason}; set it to {'null' if allowed is None else allowed}"
    if optim.name == "schedulefree" and optim.beta1 == 0:
        yield "optim.beta1: 0, but schedulefree divides by it; use 0.9"


def _offload_problems(config: Config) -> typing.Iterator[str]:
    """Yield the settings with which frozen weights cannot stay in main memory."""
    train = config.train
    if config.method.name == "full":
        yield "train.offload: full trains all weights, which stay on the device; set it to none"
    if train.compile:
        yield "train.compile: a compiled network knows no weights that come and go; set it to false"
    if train.devices * train.num_nodes > 1:
        yield "train.offload: is for one process; set it to none, or train.devices and train.num_nodes to 1"
    if train.offload == "blocks" and not train.gradient_checkpointing:
        yield (
            "train.offload: blocks, without train.gradient_checkpointing backward keeps the weights of all blocks on "
            "the device; set that to true"
        )


def _in_backward_problems(config: Config) -> typing.Iterator[str]:
    train = config.train
    for key, value, needed in (
        ("optim.max_grad_norm", config.optim.max_grad_norm, 0),
        ("train.accumulate", train.accumulate, 1),
        ("train.micro_batch_size", train.micro_batch_size, None),
        ("train.devices", train.devices, 1),
        ("train.num_nodes", train.num_nodes, 1),
    ):
        if value != needed:
            allowed = "null" if needed is None else needed
            yield f"{key}: {value} needs all gradients at once, optim.in_backward frees them; set it to {allowed}"
    if train.precision in ("auto", "16-mixed"):
        yield f"train.precision: {train.precision} may scale gradients, which optim.in_backward cannot; use bf16-mixed"


def _fsdp_problems(config: Config) -> typing.Iterator[str]:
    """Yield the settings that do not work with sharded weights."""
    if config.train.devices * config.train.num_nodes == 1:
        yield "train.strategy: fsdp divides the weights among processes; set train.devices, or use auto"
    if config.method.name != "full":
        yield f"train.strategy: fsdp is for method full; {config.method.name} trains few weights: use ddp"
    for key, is_set in (
        ("optim.name", config.optim.name != "adamw"),  # an 8-bit moment belongs to a block of a whole weight
        ("optim.identifier_lr", config.optim.identifier_lr is not None),
        ("train.ema_decay", config.train.ema_decay > 0),
        ("train.compile", config.train.compile),
        ("data.buckets", config.data.buckets),  # processes would compute different numbers of groups, and wait
    ):
        if is_set:
            yield f"{key}: not possible with train.strategy fsdp; leave it at its default, or use ddp"


def _subject_problems(section: str, subject: SubjectConfig) -> typing.Iterator[str]:
    if subject.kind != "subject" and subject.class_noun:
        yield f"{section}.class_noun: {subject.class_noun!r}, but a {subject.kind} has no class; leave it out"
    if subject.kind == "dataset":
        if subject.identifier:
            yield f"{section}.identifier: {subject.identifier!r}, but a dataset has no name; leave it out"
        return
    if template_problem(subject.prompt) is None and not has_field(subject.prompt, "subject"):
        yield f"{section}.prompt: {subject.prompt!r} must contain {{subject}}"
    is_sound = template_problem(subject.class_prompt) is None
    if is_sound and (not has_field(subject.class_prompt, "class") or has_field(subject.class_prompt, "subject")):
        yield f"{section}.class_prompt: {subject.class_prompt!r} must contain {{class}}, and not {{subject}}"
    for name, text in (("identifier", subject.identifier), ("class_noun", subject.class_noun)):
        if not text.strip() and (name, subject.kind) != ("class_noun", "style"):
            yield f"{section}.{name}: must not be empty"
    if _is_class_noun(subject):
        yield (
            f"{section}.identifier: {subject.identifier!r} is the class noun itself, so nothing would distinguish the "
            "subject from its class; name a rare word: sks"
        )


def _kind_problems(section: str, kind: str, config: Config) -> typing.Iterator[str]:
    """Yield the settings that a style or a data set cannot have."""
    if len(config.subjects) > 1:
        yield f"{section}.kind: {kind}: is learned alone; leave one entry"
    if config.prior.source != "none":
        yield f"prior.source: {config.prior.source}, but subject.kind is {kind}, which has no class; set it to none"
    asked = config.validate.prompts if config.validate.every_steps else []
    own = [] if kind == "dataset" else [(f"{section}.prompt", config.subjects[0].prompt)]
    unknown: tuple[Name, ...] = ("class",) if kind == "style" else ("class", "subject")
    for key, prompt in [*own, *(("validate.prompts", prompt) for prompt in asked)]:
        for name in unknown:
            if template_problem(prompt) is None and has_field(prompt, name):
                yield f"{key}: {prompt!r}: a {kind} has no {{{name}}}; leave it out"
    if config.data.mask == "auto":
        yield f"data.mask: auto finds what a class noun names, and a {kind} has none; set it to null, alpha or a folder"
    learns_word = config.method.name in ("textual_inversion", "pivotal")
    if kind == "style" and learns_word and config.method.start_word is None:
        yield "method.start_word: required for a style: the word that the new one starts from, such as painting"
    if kind == "dataset" and not config.data.captions:
        yield "data.captions: false, but a dataset is learned from its captions; set it to true"
    if kind == "dataset" and learns_word:
        yield f"method.name: {config.method.name} trains an identifier, and a dataset has none; use lora"
    elif kind == "dataset" and config.optim.identifier_lr is not None:
        yield f"optim.identifier_lr: {config.optim.identifier_lr}, but a dataset has no identifier; set it to null"


def _start_word_problems(config: Config) -> typing.Iterator[str]:
    """Yield what keeps an identifier's embedding from starting as that of other words."""
    method, kind = config.method, config.subjects[0].kind
    if method.start_word is None:
        return
    if not method.start_word.split():
        yield f"method.start_word: {method.start_word!r} has no word; name one or several, auto, or null"
    if method.name == "full" and not method.train_text_encoder:
        yield "method.start_word: set, but method.train_text_encoder is false"
    if method.name == "full" and kind == "dataset":
        yield "method.start_word: set, but a dataset has no identifier; set it to null"
    # Words of one's own have always been passed over by these methods, and old runs may have some.
    if method.start_word == "auto" and method.name in ("lora", "loha", "lokr", "custom_diffusion"):
        yield f"method.start_word: {method.name} trains no row of the embedding (pivotal does); set it to null"
    if method.start_word == "auto" and config.validate.clip is None:
        yield "method.start_word: auto chooses by validate.clip, which is null; name a CLIP or the words themselves"
    if method.start_word == "auto" and kind == "style":
        yield "method.start_word: auto tells what a subject looks like; name a word for a style, such as painting"


def _question_problems(config: Config) -> typing.Iterator[str]:
    validate = config.validate
    if validate.questions and validate.reader is None:
        yield "validate.questions: set, but validate.reader is null; name a model that answers them"
    if validate.reader is not None and not validate.questions:
        yield "validate.reader: set, but validate.questions is empty; write a question such as 'is there a beach?'"
    is_sound = not any(template_problem(prompt, len(config.subjects)) for prompt in validate.prompts)
    prompts = expand(validate.prompts, config.subjects) if is_sound and validate.questions else []
    asked = [prompt.text for prompt in prompts if prompt.kind == "subject"]
    for problem in problems_of_questions(validate.questions, asked if is_sound else None):
        yield f"validate.questions: {problem}"


def _is_class_noun(subject: SubjectConfig) -> bool:
    identifier, noun = subject.identifier.strip().casefold(), subject.class_noun.strip().casefold()
    return bool(identifier) and identifier == noun


def _templates(config: Config) -> typing.Iterator[tuple[str, str]]:
    """Yield every prompt with its key."""
    for number, subject in enumerate(config.subjects):
        yield f"{subject_key(config, number)}.prompt", subject.prompt
        yield f"{subject_key(config, number)}.class_prompt", subject.class_prompt
    yield from (("validate.prompts", prompt) for prompt in config.validate.prompts)


def _cut_mix_problems(config: Config) -> typing.Iterator[str]:
    """Yield why images of two subjects cannot be made."""
    number, num_subjects = config.data.cut_mix, len(config.subjects)
    if not number:
        return
    if num_subjects == 1:
        yield f"data.cut_mix: {number}, but there is one subject to show with none; set it to 0"
    if config.data.mask is None:
        yield "data.cut_mix: subjects are cut out by data.mask, which is null; set it to auto or alpha, or cut_mix to 0"
    if number < (least := num_subjects * (num_subjects - 1)):
        yield f"data.cut_mix: {number} is too small; {least} show each of {num_subjects} subjects beside each other one"


def _problems_of_several(config: Config) -> typing.Iterator[str]:
    """Yield the problems of several subjects together, and of identifiers as the tokenizer divides words."""
    words = [subject.identifier for subject in config.subjects]
    for number, subject in enumerate(config.subjects):
        other = next((i for i, word in enumerate(words) if has_words(subject.class_noun, word)), None)
        if other is not None and (other != number or not _is_class_noun(subject)):
            yield (
                f"{subject_key(config, other)}.identifier: {words[other]!r} is a word of the class noun "
                f"{subject.class_noun!r}, so nothing would distinguish the subject from its class; name a rare one: sks"
            )
    for (one, word), (other, later) in itertools.combinations(enumerate(words), 2):
        if has_words(word, later) or has_words(later, word):
            yield (
                f"subjects[{other}].identifier: {config.subjects[other].identifier!r} must differ from that of "
                f"subjects[{one}], {config.subjects[one].identifier!r}, and neither may be a part of the other"
            )
    yield from _cut_mix_problems(config)
    if len(words) == 1:
        return
    nouns = list(dict.fromkeys(subject.class_noun for subject in config.subjects))
    if config.prior.source == "folder" and len(nouns) > 1:
        yield f"prior.source: a folder has images of one class, here are {', '.join(nouns)}; use stream or teacher"
    if config.prior.num_images < len(nouns) + bool(config.data.cut_mix):
        listed = ", ".join(nouns) + (", and two in an image" if config.data.cut_mix else "")
        yield f"prior.num_images: {config.prior.num_images} is too small for {len(nouns)} classes: {listed}"
    if config.data.mask not in (None, "alpha", "auto"):
        yield "data.mask: a folder is for one subject, as images of two may share a name; use auto or alpha"
    if config.validate.images is not None:
        yield "validate.images: does not say whose images they are; with several subjects leave it null"
