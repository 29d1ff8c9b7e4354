"""The values of settings by the base, the method and the number of photos, each with its reason and source.

Of the embedded bases the values are the laboratory's (benchmarks/RESULTS.md); of real ones they are peers' recipes:
- diffusers' examples/dreambooth/README.md: all weights of Stable Diffusion at 5e-6 without and 2e-6 with the text
  encoder, 400 steps without and 800 with a prior of 200 images (200 to 300 work for most), batch 1; LoRA at 1e-4.
- musubi-tuner's docs/zimage.md and docs/qwen_image.md: LoRA of Z-Image at 1e-4 and rank 32, of Qwen-Image at 5e-5 and
  rank 16; all weights of either at 1e-6.
- ai-toolkit's config/examples/train_lora_qwen_image_24gb.yaml: 2000 steps, 500 to 4000 is a good range, batch 1.
- ai-toolkit's train_lora_flux_24gb.yaml and train_lora_sd35_large_24gb.yaml: 1e-4, rank 16, 2000 steps.
- diffusers' examples/dreambooth/README_krea2.md: Krea 2 RAW at 3e-4 to 7e-4, rank 32, 1000 steps, the authors' layers.
- github.com/stephen37/workshops: FLUX.2 Klein base at 2e-4, rank 32, 800 to 1200 steps.
None of these was measured here. `automatic` gives a key that says `auto` the value of its rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dreambooth.methods import RATES, find_facts
from dreambooth.proposal.facts import BaseFacts

Draft = dict[str, tuple[Any, str]]  # value and reason of each section.key, in the order in which they are written
Choice = tuple[Any, str]

FEW_PHOTOS = 6  # that the usual number of steps is for
STEPS_A_PHOTO = 150  # for each further one
ADAPTERS = ("lora", "loha", "lokr", "pivotal")
LAB = "the laboratory"


@dataclass(frozen=True)
class Case:
    """Hold what the rules look at. num_photos: of each subject. has_class: a style or a whole set has none.

    has_start_words: whether the identifier starts as words (method.start_word).
    """

    base: BaseFacts
    num_photos: Sequence[int]
    method: str = "lora"
    trains_text_encoder: bool = True
    optimizer: str = "adamw"
    has_class: bool = True
    has_start_words: bool = False


def resolution(case: Case) -> Choice:
    return case.base.resolution, "what the base was trained at"


def max_steps(case: Case) -> Choice:
    """Return the steps for each subject, summed: several take turns."""
    more = sum(STEPS_A_PHOTO * max(0, number - FEW_PHOTOS) for number in case.num_photos)
    num_subjects = len(case.num_photos)
    if case.base.is_toy:
        if case.method == "textual_inversion":
            return 400 * num_subjects, f"{LAB}: its trials of a word alone had as many"
        return (
            240 * num_subjects,
            f"{LAB}: after 120 it is less like the subject, and its class more; 480 gain nothing",
        )
    usual, source = (800, "diffusers' README") if case.base.family in ("sd", "sdxl") else (1000, "peers: 500 to 4000")
    reason = f"{source}; {STEPS_A_PHOTO} more for each photo beyond {FEW_PHOTOS}"
    return usual * num_subjects + more, reason


def learning_rate(case: Case) -> Choice:
    """Return AdamW's rate, or what the optimizer makes of it."""
    if case.optimizer == "prodigy":
        return 1.0, "Prodigy finds its own rate, of which this is a factor"
    rate, reason = adamw_rate(case)
    factor = RATES.get(case.optimizer, 1.0)
    return (rate, reason) if factor == 1 else (factor * rate, f"{reason}; {factor:g} times that for {case.optimizer}")


def adamw_rate(case: Case) -> Choice:
    if case.base.is_toy:
        toy = {
            "full": (4.0e-4, f"{LAB}: at twice the rate prompts are kept less, most of all after 480 steps"),
            "pivotal": (4.0e-3, f"{LAB}: with a rank of 14 it comes .92 of the way to the subject, all weights .97"),
            "textual_inversion": (2.0e-2, f"{LAB}: no rate that was tried is better for a word alone"),
        }
        own = find_facts(case.method).lr
        return toy.get(case.method, (own, "the method's default; not measured on this base"))
    if case.method == "full" and case.base.family in ("sd", "sdxl"):
        if case.trains_text_encoder:
            return 2.0e-6, "diffusers' README, with the text encoder"
        return 5.0e-6, "the paper's and diffusers', without the text encoder"
    if case.method == "full":
        return 1.0e-6, "musubi-tuner's of all weights of such a transformer"
    if case.method in ADAPTERS:
        peers = {
            "toy_flow": (2.0e-3, f"{LAB}: what its trials had"),
            "z_image": (1.0e-4, "musubi-tuner's"),
            "qwen_image": (5.0e-5, "musubi-tuner's"),
            "flux2_klein": (2.0e-4, "a workshop's for a character, on Klein base 4B"),
            "krea2": (3.0e-4, "its authors', who name 3e-4 to 7e-4"),
            "flux1": (1.0e-4, "ai-toolkit's"),
            "sd3": (1.0e-4, "ai-toolkit's for 3.5 large"),
        }
        return peers.get(case.base.kind, (1.0e-4, "diffusers' README: 50 times that of all weights"))
    return find_facts(case.method).lr, "the method's default"


def identifier_rate(case: Case) -> Choice:
    if case.optimizer == "prodigy":
        return None, "Prodigy takes one rate for all"
    if case.has_start_words:
        return None, f"{LAB}: one that starts as words learns as well at the rate of the rest"
    if case.base.is_toy and case.method in ("full", "pivotal") and case.trains_text_encoder:
        rate = 2.0e-2 if case.method == "pivotal" else 4.0e-3
        return rate, f"{LAB}: without start words the worst learned subjects gain most"
    return None, "that of the text encoder: nothing else was measured on such a base"


def text_encoder_rate(case: Case) -> Choice:
    return None, "that of the denoiser: at ten times that it ignores the prompt's scene, says the laboratory"


def rank(case: Case) -> Choice:
    if case.base.is_toy:
        return (14, f"{LAB}: what its trials had") if case.method == "pivotal" else (16, "not measured on this base")
    peers = {
        "toy_flow": (16, f"{LAB}: what its trials had"),
        "z_image": (32, "musubi-tuner's"),
        "flux2_klein": (32, "a workshop's for a character"),
        "krea2": (32, "its authors'"),
        "qwen_image": (16, "musubi-tuner's and ai-toolkit's"),
    }
    return peers.get(case.base.kind, (16, "four times that of diffusers' script; a file of some MB"))


def prior_source(case: Case) -> Choice:
    if not case.has_class:
        return "none", "a style or a set of images has no class to keep"
    if case.method == "textual_inversion":
        return "none", "the networks stay as they are: there is nothing to keep"
    if case.base.is_toy:
        return "teacher", f"{LAB}: the frozen base's own predictions keep the class better than sampled images"
    if case.base.family in ("qwen_image", "krea2"):
        return "teacher", "no class images: each would take minutes"
    return "stream", "class images are drawn while training runs"


def teacher_latents(case: Case) -> Choice:
    if case.base.is_toy:
        return "class", f"{LAB}: on the subject's own the class kept .89 of its diversity, on these all"
    return "subject", "costs no class images"


def prior_weight(case: Case) -> Choice:
    if case.base.is_toy:
        return 2, f"{LAB}: 1 lets the class come twice as near to the subject"
    return 1, "the paper's"


def num_prior_images(case: Case) -> Choice:
    if case.base.is_toy:
        return 64, f"{LAB}: 16, 64 and 256 agree"
    if case.base.family == "sd":
        return 200, "diffusers' README: 200 to 300 work for most"
    return 100, "seconds each at this size"


def batch_size(case: Case) -> Choice:
    if case.base.is_toy:
        return 4, f"{LAB}: what its trials had"
    return 1, "diffusers' and ai-toolkit's; with the class sample the network sees two"


def prior_batch_size(case: Case) -> Choice:
    if case.base.resolution > 512:
        return 1, "images of this size are large"
    return 4, "what the first step needs, so it does not wait long"


RULES: dict[str, Callable[[Case], Choice]] = {  # of the keys that may say `auto`
    "data.resolution": resolution,
    "prior.source": prior_source,
    "prior.teacher_latents": teacher_latents,
    "prior.weight": prior_weight,
    "prior.num_images": num_prior_images,
    "prior.batch_size": prior_batch_size,
    "method.rank": rank,
    "optim.lr": learning_rate,
    "optim.text_encoder_lr": text_encoder_rate,
    "optim.identifier_lr": identifier_rate,
    "train.max_steps": max_steps,
    "train.batch_size": batch_size,
}

COMMON: Draft = {
    "optim.warmup_steps": (20, "Adam's second moments settle before the full rate"),
    "train.precision": ("bf16-mixed", "the frozen base in 16 bits, what trains in 32"),
    "train.gradient_checkpointing": (True, "less memory for a third more time"),
    "train.save_every_steps": (100, "what a kill costs at most"),
    "validate.every_steps": (200, "samples and scores; the best step is kept"),
}
LORA = ("lora", "a file of some MB beside the base; full trains all weights and takes most memory")
GUIDED: Draft = {
    "validate.num_images": (2, "seconds each at this size"),
    "validate.guidance_scale": (4.0, "the default of diffusers' pipeline"),
    "validate.scheduler": ("euler", "the base's own"),
}
CLASS_GUIDED: Draft = {"prior.guidance_scale": (4.0, "the default of diffusers' pipeline")}
# What belongs to a family beside the rules.
FIXED: dict[str, Draft] = {
    "toy": {
        "method.name": ("full", "all weights: the model is tiny"),
        "prior.num_inference_steps": (10, f"{LAB}: what its trials had"),
        "prior.guidance_scale": (1, "no guidance: what the base itself predicts"),
        "optim.schedule": ("linear", "ends at 0: crisper images than a constant rate"),
        "train.precision": ("32-true", "on most CPUs faster than 16 bits"),
        "train.save_every_steps": (80, "with each validation"),
        "train.num_threads": (1, "so small a network is faster on one core"),
        "validate.every_steps": (80, "samples and scores; the best step is kept"),
        "validate.num_images": (6, "a step that looks better on 3 may be so by noise alone"),
        "validate.scheduler": ("unipc", "needs few steps"),
        "validate.num_inference_steps": (6, "draws what 20 of ddim draw"),
        "validate.guidance_scale": (4, "7.5 oversaturates so small a model"),
    },
    "sd": {
        "method.name": LORA,
        "method.train_text_encoder": (True, "so that the identifier can come to mean something"),
        **COMMON,
    },
    "sdxl": {
        "method.name": LORA,
        "method.train_text_encoder": (False, "both are well trained, and large"),
        **COMMON,
        "validate.num_images": (2, "seconds each at this size"),
    },
    "z_image": {
        "method.name": LORA,
        "method.targets": (["attention", "feed-forward"], "as peers: all of the blocks but their modulation"),
        **CLASS_GUIDED,
        **COMMON,
        **GUIDED,
    },
    "toy_flow": {
        "method.name": ("lora", "a file of some kB beside the base"),
        "method.targets": (["attention", "feed-forward", "text"], f"{LAB}: text is what reads the frozen text encoder"),
        "prior.scheduler": ("dpm++", "needs few steps"),
        "prior.num_inference_steps": (10, f"{LAB}: what its trials had"),
        "prior.guidance_scale": (0, "none: what the base itself predicts"),
        "optim.schedule": ("linear", "ends at 0"),
        "train.precision": ("32-true", "on most CPUs faster than 16 bits"),
        "train.save_every_steps": (160, "with each validation"),
        "train.num_threads": (1, "so small a network is faster on one core"),
        "validate.every_steps": (160, "samples and scores; the best step is kept"),
        "validate.num_images": (6, "a step that looks better on 3 may be so by noise alone"),
        "validate.scheduler": ("euler", "the base's own"),
        "validate.num_inference_steps": (10, "what class images take, too"),
        "validate.guidance_scale": (3, "counts from 0; 4 elsewhere"),
    },
    "flux2_klein": {"method.name": LORA, **CLASS_GUIDED, **COMMON, **GUIDED},
    "sd3": {"method.name": LORA, **CLASS_GUIDED, **COMMON, **GUIDED},
    "flux1": {
        "method.name": LORA,
        "method.targets": (["attention", "feed-forward"], "those of diffusers' script"),
        "prior.guidance_scale": (3.5, "an input of the network, which is trained with 1"),
        **COMMON,
        **GUIDED,
        "validate.guidance_scale": (3.5, "the default of diffusers' pipeline"),
    },
    "krea2": {
        "method.name": LORA,
        "method.targets": (
            ["to_q", "to_k", "to_v", "to_out.0", "to_gate", "ff.up", "ff.down", "embedding"],
            "its authors'",
        ),
        **COMMON,
        **GUIDED,
        "validate.guidance_scale": (4.5, "the default of diffusers' pipeline; 0 is none here"),
    },
    "qwen_image": {
        "method.name": LORA,
        "loss.timesteps": ("shifted", "as musubi-tuner does"),
        "loss.timestep_shift": (2.2, "musubi-tuner's; the base's own sampler has 2.0 at this size"),
        **COMMON,
        **GUIDED,
    },
}
# Of a draft, those rules whose value differs from the default, or that everyone asks about.
ALWAYS_SHOWN = ("prior.source", "optim.lr", "train.max_steps", "train.batch_size")


def choices(case: Case) -> Draft:
    """Return the value and reason of every rule; of the embedded flow base what was measured on it stands instead."""
    found = {key: rule(case) for key, rule in RULES.items()}
    return found | toy_flow_choices(case) if case.base.is_toy_flow and case.method in ADAPTERS else found


def toy_flow_choices(case: Case) -> Draft:
    """Return what the laboratory found for a LoRA of the embedded flow base (RESULTS, `lab flow`)."""
    measured: Draft = {
        "train.max_steps": (480 * len(case.num_photos), f"{LAB}: what its trials had"),
        "train.batch_size": (4, f"{LAB}: what its trials had"),
        "prior.num_images": (64, f"{LAB}: what its trials had"),
    }
    if not case.has_class:
        return measured
    return measured | {
        "prior.source": ("teacher", f"{LAB}: class images as the target cost diversity"),
        "prior.teacher_latents": ("class", f"{LAB}: what its trials had"),
        "prior.weight": (3, f"{LAB}: with 4 and 6 backpacks and cats were learned less"),
    }


def fixed_settings(base: BaseFacts) -> Draft:
    """Return what belongs to a base's family beside the rules; for one that is not known, what all have."""
    return FIXED.get(base.kind, {"method.name": LORA, **COMMON})
