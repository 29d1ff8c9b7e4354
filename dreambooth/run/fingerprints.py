"""Fingerprints of what a run depends on besides its settings: base, encoders, images, captions, start.

Their names are kept in every state's manifest, and stay.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from PIL.Image import Image

from dreambooth.checkpointing import InputFingerprints
from dreambooth.config import Config, subject_key
from dreambooth.data.image_folder import list_images
from dreambooth.data.images import digest_files
from dreambooth.data.masks import AUTO, is_folder
from dreambooth.families import Family, digest_weights, fingerprint
from dreambooth.metrics.encoders import ImageEncoder
from dreambooth.metrics.subject import Encoders

# The settings that say where something lies, with the names of the fingerprints of what is found there.
LOCATIONS = {
    "model.base": ("base model", "autoencoder", "noise schedule"),
    "model.config": ("base model", "noise schedule"),
    "model.revision": ("base model",),
    "model.variant": ("base model",),
    "model.vae": ("autoencoder",),
    "data.mask": ("masks",),
    "prior.folder": ("class pictures",),
    "method.start": ("start",),
    "validate.images": ("validation pictures",),
    "validate.dino": ("dino encoder",),
    "validate.clip": ("clip encoder",),
    "validate.matcher": ("matcher",),
    "validate.reader": ("reader",),
}
IMAGES = re.compile(r"subject(?:s\[(\d+)\])?\.images")


def base_fingerprints(family: Family, weights: bool = True) -> InputFingerprints:
    """Return the fingerprints of an untouched base: of its weights, and of its noise schedule."""
    schedule: InputFingerprints = {"noise schedule": _digest_schedule(family)}
    if not weights:
        return schedule
    return {
        "base model": fingerprint(family),
        "autoencoder": digest_weights([family.vae.state_dict()]),
        **schedule,
    }


def input_fingerprints(
    base: InputFingerprints,
    photos: list[list[Path]],
    captions: list[list[str]],
    masks: Sequence[Image] | None,
    start: Path | None,
    encoders: Encoders | None,
    config: Config,
) -> InputFingerprints:
    """Return fingerprints of what the run depends on besides its config; of images one each, by name.

    base: `base_fingerprints`. photos, captions: of each subject. masks: of all photos, one subject's after the other's;
    None: there are none. start: the file or folder that method.start names.
    encoders: of validations.
    """
    found = dict(base)
    for number, own in enumerate(photos):
        found[images_name(number)] = digests(own)
    if config.data.captions:
        found["captions"] = hashlib.sha256("\n".join(chain(*captions)).encode()).hexdigest()
    if is_folder(config.data.mask):
        found["masks"] = digests(list_images(str(config.data.mask)))
    if config.data.mask == AUTO and masks is not None:
        names = [f"of {images_name(number)}, {path.name}" for number, own in enumerate(photos) for path in own]
        found["masks"] = {
            name: hashlib.sha256(mask.tobytes()).hexdigest() for name, mask in zip(names, masks, strict=True)
        }
    if config.prior.folder is not None:
        found["class pictures"] = digests(list_images(config.prior.folder))
    if start is not None:
        found["start"] = digest_files([start] if start.is_file() else sorted(start.glob("*.safetensors")))
    if config.validate.images is not None:
        found["validation pictures"] = digests(list_images(config.validate.images))
    for name, encoder in () if encoders is None else (("dino", encoders.dino), ("clip", encoders.clip)):
        if encoder is not None:
            found[f"{name} encoder"] = _digest_encoder(encoder)
    if encoders is not None and encoders.reader is not None:
        found |= {name: digest_weights([each.state_dict()]) for name, each in encoders.reader.networks.items()}
    return found


def fingerprint_names(key: str) -> tuple[str, ...]:
    """Return the names of the fingerprints of what a setting points to; none for a setting that is a value itself."""
    match = IMAGES.fullmatch(key)
    return LOCATIONS.get(key, ()) if match is None else (images_name(int(match[1] or 0)),)


def keys_by_name(config: Config) -> dict[str, str]:
    """Return the key of the setting that points to each fingerprinted input."""
    keys = {name: key for key, names in reversed(LOCATIONS.items()) for name in names}
    return {**keys, "captions": "data.captions"} | {
        images_name(number): f"{subject_key(config, number)}.images" for number in range(len(config.subjects))
    }


def images_name(number: int) -> str:
    """Return the name of a subject's images among the fingerprints; subjects count from 0."""
    return f"pictures of subject {number + 1}" if number else "subject pictures"


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def describe_change(before: str | dict[str, str], now: str | dict[str, str]) -> str:
    """Return what differs between two fingerprints of one name, of files which ones; empty where nothing does.

    A state of earlier versions has one digest for all images.
    """
    if isinstance(before, str) or isinstance(now, str):
        return "" if joined_digest(before) == joined_digest(now) else "changed"
    names_of = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "other content": [name for name in now if name in before and now[name] != before[name]],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in names_of.items() if names)


def joined_digest(digest_of: str | dict[str, str]) -> str:
    """Return one digest for all files: what `digest_files` makes of the same."""
    if isinstance(digest_of, str):
        return digest_of
    digest = hashlib.sha256()
    for name, content in digest_of.items():
        digest.update(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() + bytes.fromhex(content))
    return digest.hexdigest()


def _digest_encoder(encoder: ImageEncoder) -> str:
    """Return a digest of what an encoder measures with: a pooler is not used, and is random where the file has none."""
    weights = encoder.model.state_dict()
    return digest_weights([{name: weights[name] for name in weights if not name.startswith("pooler.")}])


def _digest_schedule(family: Family) -> str:
    """Return a digest of the coefficients of all timesteps, and of what is predicted."""
    schedule = family.schedule
    digest = hashlib.sha256(schedule.prediction.encode())
    for table_T in (schedule.alpha_T, schedule.sigma_T):
        digest.update(table_T.cpu().numpy().tobytes())
    return digest.hexdigest()
