"""The experiments: each is a question of the paper, its variants are the answers that are tried.

A variant says what differs from `configs/toyworld.yaml`, on the base of its experiment.
Variants with the same settings share their runs. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from toyworld.cli import DEMO_SEED


@dataclass(frozen=True)
class Subject:
    """Hold one of the toy world's objects (`subject` of its edition), in colours that the base never saw on its class.

    wrong_noun: its class noun in the ablation with a wrong one.
    """

    class_noun: str
    seed: int
    wrong_noun: str

    def __str__(self) -> str:
        return f"{self.class_noun} {self.seed}"


# Two of the first three are the paper's examples. The settings were chosen on the robot before there was a laboratory.
SUBJECTS = (
    Subject("robot", DEMO_SEED, "house"),
    Subject("dog", 1, "car"),
    Subject("backpack", 4, "flower"),
    Subject("cat", 5, "rocket"),
    Subject("car", 6, "teapot"),
)
NO_NOUN = "xyz"  # a token of its own that no caption uses: a config's class noun must not be empty

Noun = Literal["right", "none", "wrong"]
Base = Literal["second", "first", "flow"]  # the embedded bases: of the two editions of the world, and the flow base


@dataclass(frozen=True)
class Variant:
    """Hold the settings of one kind of training.

    validates: whether the run validates and keeps its best step; else its last step is measured.
    grid: number of subjects (the first of `SUBJECTS`), and number of seeds (0, 1, ...).
    """

    name: str
    overrides: tuple[str, ...] = ()
    num_photos: int = 5
    noun: Noun = "right"
    validates: bool = False
    grid: tuple[int, int] = (3, 2)


@dataclass(frozen=True)
class Hypothesis:
    """Hold somebody's finding: `metric` is higher in variant `more` than in `less`. reported: by whom, with values."""

    metric: str
    more: str
    less: str
    reported: str


@dataclass(frozen=True)
class Experiment:
    """Hold a question and its variants, the first of which the others are compared with.

    metrics: columns of the table. paper: variant -> metric -> the paper's value. late: after all others in `lab all`.
    heat: the two numbers in a variant's name are the axes of a heat map. base: of the flow base variants say what
    differs from `configs/toyworld-flow.yaml` instead.
    """

    title: str
    caption: str
    variants: tuple[Variant, ...]
    metrics: tuple[str, ...] = ("fidelity_way", "place_right", "div_share", "pres_way", "dino", "clip_t")
    hypotheses: tuple[Hypothesis, ...] = ()
    paper: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    late: bool = False
    heat: bool = False
    base: Base = "second"


HEADLINE = (5, 3)  # subjects, seeds
OUTCOME = ("fidelity_way", "place_right", "div_share", "pres_way", "leak_way", "nearer_to_subject", "main_right")
NO_PRIOR = ("prior.source=none",)
SAMPLED = ("prior.source=stream", "prior.weight=1")  # the paper's weight; 2 learned half of the first edition's dog
SAMPLED_ON_FLOW = (  # more images and fewer layers than with the teacher cost less diversity
    *SAMPLED,
    "prior.num_images=256",
    "method.targets=[attention,text]",
)
TAUGHT_ON_SUBJECT = ("prior.source=teacher", "prior.teacher_latents=subject")
TAUGHT_ON_CLASS = ("prior.source=teacher", "prior.teacher_latents=class")
WORD_AND_LORA = (  # how configs/toyworld-lora.yaml differs from configs/toyworld.yaml
    "method.name=pivotal",
    "method.rank=14",
    "method.targets=[attention,feed-forward,projections]",
    "subject.identifier=<sks>",
    "optim.lr=4e-3",
    "optim.identifier_lr=2e-2",
)
NO_MASKS = ("data.mask=null", "data.mask_model=null")
# What differs from the config on the first edition's base.
FIRST_BASE = (
    "model.base=checkpoints/toyworld",
    "validate.dino=checkpoints/toyworld-encoders/vit",
    "validate.clip=checkpoints/toyworld-encoders/clip",
    *NO_MASKS,
)
FAST_IDENTIFIER = ("optim.identifier_lr=4e-3",)  # ten times the rate of the rest
FIRST_RECIPE = ("method.start_word=null", *FAST_IDENTIFIER)  # what differs from the config in the first recipe
DEFAULT = Variant("default", grid=HEADLINE)
WITHOUT = Variant("no prior", NO_PRIOR, grid=HEADLINE)
SAMPLING = Variant("sampled class pictures", SAMPLED, grid=HEADLINE)
AS_IN_THE_PAPER = (*NO_PRIOR, *NO_MASKS, "method.start_word=null")  # the identifier is a rare word as the base has it
SHORT = (*AS_IN_THE_PAPER, "train.max_steps=60")
PAPER_PRIOR = {
    "sampled class pictures": {"pres": ".493", "div": ".391", "dino": ".684", "clip_i": ".815", "clip_t": ".308"},
    "no prior": {"pres": ".664", "div": ".371", "dino": ".712", "clip_i": ".828", "clip_t": ".306"},
}
NOUNS: tuple[Noun, ...] = ("right", "none", "wrong")
PAPER_NOUN = {"right": ".744", "none": ".303", "wrong": ".454"}  # DINO
NOUN_PAIRS = (("right", "none"), ("right", "wrong"), ("wrong", "none"))
PRIOR_HYPOTHESES = (
    Hypothesis("pres", "no prior", "sampled class pictures", "Paper: without a prior PRES rises from .493 to .664"),
    Hypothesis("div", "sampled class pictures", "no prior", "Paper: without a prior DIV falls from .391 to .371"),
)
STEPS = (120, 240, 480)
PAPER_DINO = ((".494", ".798"), (".515", ".851"), (".596", ".871"), (".604", ".876"), (".597", ".864"))

EXPERIMENTS: dict[str, Experiment] = {
    "headline": Experiment(
        "The defaults",
        "Five subjects, three seeds, on the second edition's base. `configs/toyworld.yaml` as it is: the frozen base "
        "as a teacher on class images, an identifier that starts as words that CLIP sees in the photos, and masks that "
        "a model finds. Then without masks; with an identifier that starts as the base has it; without a prior; and "
        "with the class images themselves as the target, and a weight of 1, as in the paper. Weights of the last step.",
        (
            DEFAULT,
            Variant("no masks", NO_MASKS, grid=HEADLINE),
            Variant("no start words", ("method.start_word=null",), grid=HEADLINE),
            WITHOUT,
            SAMPLING,
        ),
        metrics=OUTCOME,
    ),
    "first": Experiment(
        "The same on the first edition's base",
        "Five subjects, three seeds. `configs/toyworld.yaml` but for base, encoders, masks. Then with the identifier "
        "at ten times the rate; and also with one that starts as the base has it, `sks`. This first recipe is that of "
        "the other variants: without a prior; with the class images themselves as the target, and a weight of 1, as in "
        "the paper; and with the teacher on the subject's images, so that no class images are made (three subjects, "
        "two seeds). Weights of the last step; in the last variant those of the step that validation keeps.",
        (
            DEFAULT,
            Variant("fast identifier", FAST_IDENTIFIER, grid=HEADLINE),
            Variant("first recipe", FIRST_RECIPE, grid=HEADLINE),
            Variant("no prior", (*FIRST_RECIPE, *NO_PRIOR), grid=HEADLINE),
            Variant("sampled class pictures", (*FIRST_RECIPE, *SAMPLED), grid=HEADLINE),
            Variant("teacher, subject latents", (*FIRST_RECIPE, *TAUGHT_ON_SUBJECT)),
            Variant("first recipe, kept step", FIRST_RECIPE, validates=True, grid=HEADLINE),
        ),
        metrics=(*OUTCOME, "kept_step"),
        base="first",
    ),
    "prior": Experiment(
        "Prior on and off",
        "Beside the paper's values, on Imagen. Class images are the target, as there; masks and start words are those "
        "of the defaults.",
        (SAMPLING, WITHOUT),
        metrics=(
            "pres",
            "div",
            "dino",
            "clip_i",
            "clip_t",
            "base_pres",
            "base_div",
            "true_diversity",
            "true_base_diversity",
        ),
        hypotheses=PRIOR_HYPOTHESES,
        paper=PAPER_PRIOR,
    ),
    "noun": Experiment(
        "The class noun",
        "As in the paper without a prior, masks or start words. None is the token "
        f"`{NO_NOUN}`, which no caption of the base uses, since a config's class noun cannot be empty; wrong is "
        f"{', '.join(f'{one.wrong_noun} for {one}' for one in SUBJECTS[:3])}. Then the same after a quarter of the "
        "steps. Images are sampled with the noun of the training; CLIP-T, PRES and DIV are of the right one.",
        tuple(
            Variant(noun + after, settings, noun=noun)
            for after, settings in (("", AS_IN_THE_PAPER), (", 60 steps", SHORT))
            for noun in NOUNS
        ),
        metrics=("dino", "clip_i", "clip_t", "fidelity_way", "class_right", "place_right"),
        hypotheses=tuple(
            Hypothesis(
                "dino",
                f"{more}{after}",
                f"{less}{after}",
                f"Paper: DINO {PAPER_NOUN[more]} {more}, {PAPER_NOUN[less]} {less}",
            )
            for after in ("", ", 60 steps")
            for more, less in NOUN_PAIRS
        ),
        paper={
            "right": {"dino": PAPER_NOUN["right"], "clip_i": ".853"},
            "none": {"dino": PAPER_NOUN["none"], "clip_i": ".607"},
            "wrong": {"dino": PAPER_NOUN["wrong"], "clip_i": ".728"},
        },
    ),
    "pictures": Experiment(
        "Number of subject photos",
        "The first n of the five; similarity is always measured to all five. The paper's values: backpack, dog.",
        tuple(Variant(str(n), num_photos=n) for n in (5, 4, 3, 2, 1)),
        metrics=("dino", "fidelity_way", "place_right", "clip_t", "div_share", "nearer_to_subject"),
        hypotheses=(
            Hypothesis(
                "dino", "3", "1", "Paper: DINO .494 to .596 (backpack), .798 to .871 (dog) from one picture to three"
            ),
            Hypothesis(
                "dino", "5", "1", "Paper: DINO .494 to .597 (backpack), .798 to .864 (dog) from one picture to five"
            ),
        ),
        paper={str(n): {"dino": ", ".join(pair)} for n, pair in enumerate(PAPER_DINO, start=1)},
    ),
    "weight": Experiment(
        "Weight of the prior",
        "Lambda; 0 is no prior at all.",
        (
            Variant("2", ("prior.weight=2",)),
            Variant("0", NO_PRIOR),
            Variant("0.5", ("prior.weight=0.5",)),
            Variant("1", ("prior.weight=1",)),
        ),
        metrics=("fidelity_way", "place_right", "div_share", "pres_way", "leak_way", "drift", "true_leak"),
    ),
    "images": Experiment(
        "Number of prior images",
        "Class images sampled from the base and used in turn.",
        (
            Variant("64", ("prior.num_images=64",)),
            Variant("16", ("prior.num_images=16",)),
            Variant("256", ("prior.num_images=256",)),
        ),
        metrics=("fidelity_way", "place_right", "div_share", "pres_way", "drift", "seconds_prior"),
    ),
    "text": Experiment(
        "Text encoder",
        "Trained with the denoiser, or frozen. A frozen one has no row that could start as words, so the trained one "
        "is measured without them too; then with them, and the identifier's row at ten times the rate.",
        (
            Variant("trained", ("method.train_text_encoder=true",)),
            Variant("frozen", ("method.train_text_encoder=false", "method.start_word=null")),
            Variant("trained, no start words", ("method.start_word=null",)),
            Variant("trained, fast identifier", FAST_IDENTIFIER),
        ),
        metrics=("fidelity_way", "place_right", "div_share", "pres_way", "dino", "clip_t", "seconds_training"),
        hypotheses=(
            Hypothesis(
                "fidelity_way",
                "trained, no start words",
                "frozen",
                "`train.py --help`: better subject fidelity with the text encoder trained",
            ),
        ),
    ),
    "teacher": Experiment(
        "Teacher prior",
        "The frozen base's own predictions as the target of the class prompt, on noisy latents of the "
        "subject's images or of class images. Its cost is part of the cost of training.",
        (
            Variant("sampled class pictures", SAMPLED),
            Variant("teacher, subject latents", TAUGHT_ON_SUBJECT),
            Variant("teacher, class latents", TAUGHT_ON_CLASS),
            Variant("no prior", NO_PRIOR),
        ),
        metrics=(
            "fidelity_way",
            "place_right",
            "div_share",
            "pres_way",
            "drift",
            "seconds_training",
            "seconds_prior",
        ),
    ),
    "lora": Experiment(
        "A LoRA",
        "`configs/toyworld-lora.yaml`, a new word and a LoRA of rank 14, beside all weights. Then with the word at "
        "the rate of the rest, a fifth.",
        (
            Variant("full"),
            Variant("word and LoRA", WORD_AND_LORA),
            Variant("word and LoRA, slow word", (*WORD_AND_LORA, "optim.identifier_lr=null")),
        ),
        metrics=("fidelity_way", "place_right", "div_share", "pres_way", "dino", "clip_t", "seconds_training"),
    ),
    "flow": Experiment(
        "A flow base",
        "Five subjects, two seeds. A LoRA of the embedded Z-Image, `configs/toyworld-flow.yaml`: the frozen base as "
        "the teacher on class images; and 256 class images as the target, with a weight of 1 and a LoRA of attention "
        "and text. Goals: fidelity ≥ .80, place ≥ .95, diversity ≥ .90 of the base's "
        "(the plot has those of the defaults).",
        (
            Variant("teacher", grid=(5, 2)),
            Variant("sampled class pictures", SAMPLED_ON_FLOW, grid=(5, 2)),
        ),
        metrics=(*OUTCOME, "seconds_training"),
        late=True,
        base="flow",
    ),
    "map": Experiment(
        "Learning rate and steps",
        "The defaults at other rates and numbers of steps.",
        tuple(
            Variant(f"lr {rate}, {steps} steps", (f"optim.lr={rate}", f"train.max_steps={steps}"))
            for steps in (240, 120, 480)
            for rate in ("4e-4", "2e-4", "8e-4")
        ),
        late=True,
        heat=True,
    ),
}
