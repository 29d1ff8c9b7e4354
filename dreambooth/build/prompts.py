"""The prompts and captions of a run with the subjects' names in them, and warnings about them."""

import difflib
import logging
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch

from dreambooth.config import Config, subject_key
from dreambooth.data.captions import read_captions, without_subjects
from dreambooth.data.image_folder import ImageFolder
from dreambooth.errors import UserError, escaped
from dreambooth.families import Conditioning, Family
from dreambooth.generation.prompting.prompt_reading import cut_warning
from dreambooth.methods import find_facts
from dreambooth.prompt_words import foreign_syntax_warning, has_words
from dreambooth.prompts import Prompt, expand, fill_prompt, template_problem

logger = logging.getLogger(__name__)


def check_wording(family: Family, captions: list[list[str]], config: Config) -> None:
    """Raise UserError, and warn, as `wording_warnings` does."""
    for warning in wording_warnings(family, captions, config):
        logger.warning(warning)


def cache_prompts(
    family: Family,
    captions: list[list[str]],
    config: Config,
    text_trains: bool,
    encode: Callable[[str], Conditioning] | None,
    folder: Path,
) -> None:
    """Encode every prompt of the run: into the cache or, where the text encoders train, to fail early.

    captions: of each subject's images, and of data.cut_mix. encode: encodes a prompt for the cache; None: the text
    encoders do. folder: for prompts that text encoders which never train have encoded.
    """
    prompts = dict.fromkeys(["", *texts_of(config), *chain(*captions), *chain(*class_prompts_of(captions, config))])
    if text_trains or config.data.shuffle_captions:
        with torch.no_grad():
            for prompt in prompts:
                family.encode_prompts([prompt])
    else:
        family.cache_prompts(prompts, encode, folder)


def wording_warnings(family: Family, captions: list[list[str]], config: Config) -> Iterator[str]:
    """Yield warnings of identifiers and prompts, once the method has added its tokens to the family.

    Raises UserError for an identifier that has no token, or that stands in the dropped end of a prompt.
    """
    if not find_facts(config.method.name).adds_tokens:
        for number, subject in enumerate(config.subjects):
            if subject.kind == "dataset":
                continue
            yield from identifier_warnings(family, f"{subject_key(config, number)}.identifier", subject.identifier)
    identifiers = [subject.identifier for subject in config.subjects]
    for key, prompt in dict.fromkeys(keyed_prompts(captions, config)):
        if (warning := cut_warning(family, f"{key} {prompt!r}", prompt, identifiers)) is not None:
            yield warning
        if (warning := foreign_syntax_warning(f"{key} {prompt!r}", prompt)) is not None:
            yield warning


def identifier_warnings(family: Family, key: str, identifier: str) -> Iterator[str]:
    """Yield warnings of an identifier that is no rare word. Raises UserError for one that has no token."""
    ids = family.tokenize(identifier)
    if not ids or set(ids) & set(family.tokenizer.all_special_ids):
        raise UserError(f"{key}: {identifier!r} is no word to this tokenizer; name a rare one: sks")
    suggestions = difflib.get_close_matches(identifier, family.rare_words(), n=3, cutoff=0)
    if len(ids) > 1:
        pieces = ", ".join(f"{token!r} {number}" for token, number in zip(_spelled(family, ids), ids, strict=True))
        yield (
            f"{key} {identifier!r} is {len(ids)} tokens to this tokenizer ({pieces}), each with a meaning of its own; "
            f"a rare word of one token is learned more cleanly: {', '.join(suggestions)}"
        )
    elif family.is_common_token(ids[0]):
        yield (
            f"{key} {identifier!r} is a common word (token {ids[0]} of {len(family.tokenizer)}, by how often they were "
            f"met), whose meaning the subject has to fight; better a rare one: {', '.join(suggestions)}"
        )


def _spelled(family: Family, ids: list[int]) -> list[str]:
    return [str(token).removesuffix("</w>").removeprefix("Ġ") for token in family.tokenizer.convert_ids_to_tokens(ids)]


def identifier_last(caption: str, identifier: str) -> str:
    """Return a caption in that order of its parts (`Captions.shuffle`) in which the identifier comes latest."""
    first, *rest = caption.split(",")
    return ",".join([first, *sorted(rest, key=lambda part: has_words(part, identifier))])


def keyed_prompts(captions: list[list[str]], config: Config) -> Iterator[tuple[str, str]]:
    """Yield every prompt of the run with the key or caption that it comes from."""
    num_subjects = len(config.subjects)
    for number, own in enumerate(captions[:num_subjects]):
        key, kind = subject_key(config, number), config.subjects[number].kind
        if kind == "subject":
            yield f"{key}.class_prompt", class_prompt(config, number)
        if config.data.captions:
            shuffled = [identifier_last(caption, config.subjects[number].identifier) for caption in own]
            yield from (("the caption", caption) for caption in (shuffled if config.data.shuffle_captions else own))
        if kind != "dataset":
            yield f"{key}.prompt", subject_prompt(config, number)
    for caption in chain(*captions[num_subjects:]):
        words = [subject.identifier for subject in config.subjects] if config.data.shuffle_captions else []
        yield from (("data.cut_mix", each) for each in [identifier_last(caption, word) for word in words] or [caption])
    yield from (("validate.prompts", prompt.filled) for prompt in validation_prompts(config))


def texts_of(config: Config) -> list[str]:
    """Return every prompt of a run except captions, as the model gets it."""
    numbers = range(len(config.subjects))
    own = [[subject_prompt(config, number), class_prompt(config, number)] for number in numbers]
    return [*chain(*own), *(prompt.filled for prompt in validation_prompts(config))]


def subject_prompt(config: Config, number: int) -> str:
    return fill_prompt(config.subjects[number].prompt, config.subjects, number)


def class_prompt(config: Config, number: int) -> str:
    return fill_prompt(config.subjects[number].class_prompt, config.subjects, number)


def validation_prompts(config: Config) -> list[Prompt]:
    if config.subjects[0].kind != "dataset":
        return expand(config.validate.prompts, config.subjects)
    filled = [fill_prompt(prompt, config.subjects) for prompt in config.validate.prompts]
    return [Prompt("subject", prompt, prompt, (0,)) for prompt in filled]  # compared with the data set's images


def class_prompts_of(captions: list[list[str]], config: Config) -> list[list[str]]:
    """Return the class prompts of each subject, one for each of its images, then those of data.cut_mix.

    captions: of the same.
    """
    without = [[without_subjects(caption, config.subjects) for caption in own] for own in captions]
    if config.data.captions:
        return without
    num_subjects = len(config.subjects)
    plain = [[class_prompt(config, number)] * len(own) for number, own in enumerate(captions[:num_subjects])]
    return plain + without[num_subjects:]


def captions_of(folders: list[ImageFolder], config: Config) -> list[list[str]]:
    """Return the prompt of each subject's images. Raises UserError for a caption that is missing, or not of it."""
    if not config.data.captions:
        return [[subject_prompt(config, number)] * len(each.images) for number, each in enumerate(folders)]
    return [own_captions(folder, config, number) for number, folder in enumerate(folders)]


def own_captions(folder: ImageFolder, config: Config, number: int) -> list[str]:
    """Return the captions of one subject's images, from files."""
    captions, identifier = [], config.subjects[number].identifier
    for path, template in zip(folder.images, read_captions(folder.images, folder.captions), strict=True):
        name = escaped(path.name)
        if problem := template_problem(template, len(config.subjects)):
            raise UserError(f"{name}: its caption {template!r}: {problem}")
        captions.append(fill_prompt(template, config.subjects, number))
        if identifier and not has_words(captions[-1], identifier):
            raise UserError(f"{name}: its caption {captions[-1]!r} has neither {{subject}} nor {identifier!r}")
    return captions
