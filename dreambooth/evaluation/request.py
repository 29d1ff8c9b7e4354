"""The request of an evaluation. Nothing heavy is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.errors import UserError
from dreambooth.evaluation.prompts import AUTO, SEEDS_A_PROMPT
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.settings import SamplerSettings
from dreambooth.prompts import template_problem
from dreambooth.questions import problems_of_questions


@dataclass(frozen=True)
class EvaluationRequest:
    """Hold the models, and what to measure them on, with and how.

    models: a row each; {name} in one stands for the subject's name. options: how they are loaded, their names aside.
    images: photos of one subject; or dataset: a folder of photos a subject, of which `subjects` are taken (None: all).
    class_noun: None: as the data set or the models say. prompts: a set by name, auto, or a file. num_images: of each
    prompt. num_class_images: of the class prompt. base: measure drift from it. dino, clip: hub id or folder; auto: as
    the models' runs; none. matcher, reader: hub id or folder of models that read images (None: none). questions: for
    the reader. size: (height, width), pixels. steps ... size: None: as the models' runs.
    """

    models: Sequence[str]
    out: Path
    images: Path | None = None
    dataset: Path | None = None
    subjects: Sequence[str] | None = None
    class_noun: str | None = None
    prompts: str = AUTO
    num_images: int = 4
    num_class_images: int = 4
    base: str | None = None
    dino: str = AUTO
    clip: str = AUTO
    lpips: bool = False
    matcher: str | None = None
    reader: str | None = None
    questions: Sequence[str] = ()
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    negative_prompt: str = ""
    seed: int = 0
    size: tuple[int, int] | None = None
    batch_size: int = 4
    options: ModelRef = ModelRef("")
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise UserError for values that are out of range or do not go together."""
        if problems := self._problems():
            raise UserError("\n  ".join(problems))
        given = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale, "scheduler": self.scheduler}
        SamplerSettings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def _problems(self) -> list[str]:
        problems = []
        if problem := template_problem(self.negative_prompt, 0):
            problems.append(
                f"--negative-prompt: {self.negative_prompt!r}: {problem}; it is one for all models: spell it out"
            )
        if not (0 < self.num_images <= SEEDS_A_PROMPT and 0 <= self.num_class_images <= SEEDS_A_PROMPT):
            problems.append(
                f"--num-images, --class-prompt-images: at most {SEEDS_A_PROMPT}, where the next prompt's seeds begin"
            )
        if self.base is not None and self.num_class_images == 0:
            problems.append("--base: drift is measured on images of the class prompt, and --class-prompt-images is 0")
        if self.subjects is not None and self.dataset is None:
            problems.append("--subjects: chooses among those of --dataset; --images has one")
        if (self.images is None) == (self.dataset is None):
            problems.append("name either the photos of one subject (--images) or a data set (--dataset)")
        if (self.reader is None) == bool(self.questions):
            problems.append("--question: asks a model that --reader names; name both or neither")
        problems += [f"--question {problem}" for problem in problems_of_questions(self.questions, None)]
        return problems
