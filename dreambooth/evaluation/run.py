"""An evaluation from its request to its table. What can be wrong is reported before the first image is made."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dreambooth.devices import find_device
from dreambooth.errors import UserError
from dreambooth.evaluation import protocol, rows, tables
from dreambooth.evaluation.encoders import find_encoders
from dreambooth.evaluation.models import (
    Cards,
    Loader,
    class_noun_of,
    common_resolution,
    learned_by,
    model_of,
    read_cards,
    reference_card,
)
from dreambooth.evaluation.prompts import AUTO, load_prompts
from dreambooth.evaluation.protocol import ImageSpec, SamplingSpec, Task
from dreambooth.evaluation.request import EvaluationRequest
from dreambooth.evaluation.scoring import Scored, ignored_clip_t, real_scores, score_subject
from dreambooth.evaluation.subjects import Subject, subjects_of
from dreambooth.evaluation.verdicts import verdicts
from dreambooth.generation.images import OnProgress, Progress
from dreambooth.generation.models.loading import Model
from dreambooth.generation.models.location import check_path
from dreambooth.generation.settings import sampler_settings
from dreambooth.metrics.reader_scores import ReaderNames
from dreambooth.metrics.subject import Encoders
from dreambooth.prompt_words import foreign_syntax_warning
from dreambooth.prompts import fill_prompt, plain_prompt
from dreambooth.questions import problems_of_questions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Hold the results of an evaluation. files: of its tables."""

    report: tables.Report
    scored: Sequence[Scored]
    files: Sequence[Path]

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """Return the mean of each measure, by model; over all subjects where there are several."""
        whole = rows.ALL if len(self.report.tasks) > 1 else self.report.tasks[0].subject.name
        ours = [row for row in self.report.rows if row.source == rows.OURS and row.subject == whole]
        return {row.model: {name: found.mean for name, found in row.estimates.items()} for row in ours}

    def __str__(self) -> str:
        """Return the table as Markdown."""
        return tables.markdown(self.report)


def evaluate(
    request: EvaluationRequest, on_progress: OnProgress | None = None, loaded: Model | None = None
) -> Evaluation:
    """Sample the missing images, score all of them and write the table. Raises UserError, ModelError.

    loaded: one of the models, if it is in memory already.
    """
    load = Loader(request.options, request.device, loaded)
    own_base = [request.base] if request.base is not None and request.base not in request.models else []
    protocol.check_rows([*request.models, *own_base])
    prompts_of = {subject: load_prompts(request.prompts, subject.is_live) for subject in subjects_of(request)}
    for prompt in dict.fromkeys([request.negative_prompt, *chain(*prompts_of.values())]):
        if (warning := foreign_syntax_warning(f"prompt {prompt!r}", prompt)) is not None:
            logger.warning(warning)
    cards = read_cards(_models(request, prompts_of), load)
    tasks = [_task(request, subject, prompts, cards) for subject, prompts in prompts_of.items()]
    read_by = _read_by(request, tasks)
    device = find_device(request.device).type
    encoders = find_encoders(request.dino, request.clip, cards, device, request.lpips, read_by)
    sampling = _sampling(request, cards, load)
    images, base = _plan(request, tasks, cards, sampling)
    _make(list({image.path: image for image in [*images, *base]}.values()), load, sampling, on_progress)

    scored, real = _score(encoders, tasks, images, base, on_progress)
    every_row = [*rows.our_rows(scored, real), *rows.paper_rows()]
    plain_bases = [
        row for row in request.models if all(cards[model_of(row, task.subject.name)] is None for task in tasks)
    ]
    judged = verdicts(scored, real, request.base, _ignored(encoders, tasks, images, base))
    report = tables.Report(every_row, tasks, sampling, encoders.names, plain_bases, request.base, judged)
    return Evaluation(report, scored, tables.write(report, scored, request.out))


def _read_by(request: EvaluationRequest, tasks: Sequence[Task]) -> ReaderNames:
    """Return the models that read images.

    Raises UserError for a question about no prompt, ModelError for a model that is not there.
    """
    prompts = [plain_prompt(template, [task.class_noun]) for task in tasks for template in task.prompts]
    for problem in problems_of_questions(request.questions, prompts):
        raise UserError(f"--question {problem}")
    for option, model in (("--matcher", request.matcher), ("--reader", request.reader)):
        if model is not None:
            check_path(model, option)
    return ReaderNames(request.matcher, request.reader, tuple(request.questions))


def _models(request: EvaluationRequest, subjects: Iterable[Subject]) -> list[str]:
    """Return every model that is sampled: each row's for each subject, and the base."""
    rows_and_base = [*request.models, *([request.base] if request.base is not None else [])]
    return list(dict.fromkeys(model_of(row, subject.name) for row in rows_and_base for subject in subjects))


def _task(request: EvaluationRequest, subject: Subject, prompts: tuple[str, ...], cards: Cards) -> Task:
    """Return the task of one subject, with a note for what was assumed."""
    own = {model: cards[model] for model in _models(request, [subject])}
    noun = class_noun_of(subject, own)
    for model, card in own.items():
        if card is not None and (learned := learned_by(card, noun)).class_noun != noun:
            logger.info(f"note: {model} has learned a {learned.class_noun}, {subject.name} is a {noun}")
    if request.prompts == AUTO and subject.is_live is None:
        logger.info(
            f"note: whether {subject.name} lives is not known; it gets the prompts for objects (--prompts live)"
        )
    return Task(subject, noun, prompts)


def _sampling(request: EvaluationRequest, cards: Cards, load: Loader) -> SamplingSpec:
    """Return how all rows are sampled: as requested, else as the runs' cards agree, else by the defaults."""
    options = {
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "scheduler": request.scheduler,
        "resolution": request.size,
    }
    card = reference_card(cards, [name for name, value in options.items() if value is not None])
    size = request.size
    if size is None:
        side = card.resolution if card is not None else common_resolution(cards, load)
        size = (side, side)
    settings = sampler_settings(
        card, request.steps, request.guidance_scale, request.scheduler, fill_prompt(request.negative_prompt, [])
    )
    return SamplingSpec(settings, size, request.seed, request.num_images, request.num_class_images, request.batch_size)


def _plan(
    request: EvaluationRequest, tasks: Sequence[Task], cards: Cards, sampling: SamplingSpec
) -> tuple[list[ImageSpec], list[ImageSpec]]:
    """Return the images of the rows, and those of the base that drift is measured from."""

    def images(row: str, task: Task, class_only: bool) -> Iterable[ImageSpec]:
        return protocol.plan(row, task, cards[model_of(row, task.subject.name)], sampling, request.out, class_only)

    own: list[ImageSpec] = []
    base: list[ImageSpec] = []
    for row in request.models:
        for task in tasks:
            own += images(row, task, class_only=False)
    if request.base is not None:
        for task in tasks:
            base += images(request.base, task, class_only=True)
    return own, base


def _make(images: Sequence[ImageSpec], load: Loader, sampling: SamplingSpec, on_progress: OnProgress | None) -> None:
    """Make the missing images; problems with any of them are reported before the first is made."""
    todo = protocol.missing(images, protocol.recipes(images, load, sampling))
    logger.info(f"{len(images)} images, {len(images) - len(todo)} of them were there already")
    protocol.sample(todo, load, sampling, on_progress)


def _score(
    encoders: Encoders,
    tasks: Sequence[Task],
    images: Sequence[ImageSpec],
    base: Sequence[ImageSpec],
    on_progress: OnProgress | None,
) -> tuple[list[Scored], dict[str, dict[str, float]]]:
    """Return one number per image and measure, and by subject the scores of its photos among themselves."""
    scored: list[Scored] = []
    real = {}
    for task in tasks:
        own = [image for image in images if image.subject == task.subject.name]
        own_base = {image.seed: image.path for image in base if image.subject == task.subject.name}
        for one in score_subject(encoders, task.subject, task.class_noun, own, own_base):
            scored.append(one)
            if on_progress is not None:
                on_progress(Progress(len(scored), len(images), task="scoring"))
        real[task.subject.name] = real_scores(encoders, task.subject, task.class_noun)
    return scored, real


def _ignored(
    encoders: Encoders, tasks: Sequence[Task], images: Sequence[ImageSpec], base: Sequence[ImageSpec]
) -> dict[str, float | None]:
    """Return for each subject the CLIP-T of a model that ignores its prompts."""
    return {
        task.subject.name: ignored_clip_t(
            encoders,
            [image for image in base if image.subject == task.subject.name],
            [image for image in images if image.subject == task.subject.name],
        )
        for task in tasks
    }
