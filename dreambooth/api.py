"""The toolkit for programs: train, load, generate, evaluate and export, as the commands do.

`import dreambooth` gives these names and loads this module, with the libraries, when the first of them is used.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth import engine
from dreambooth.config import Config, as_overrides
from dreambooth.devices import find_device
from dreambooth.disk import check_writable, translate_write_errors
from dreambooth.errors import UserError
from dreambooth.evaluation.encoders import AUTO
from dreambooth.evaluation.image_scores import GridScorer, ImageScore, make_image_scorer
from dreambooth.evaluation.request import EvaluationRequest
from dreambooth.evaluation.run import Evaluation, evaluate
from dreambooth.exporting.to_format import export
from dreambooth.generation.before_loading import check_cells
from dreambooth.generation.grids.axes import axes_of, cells_of, folder_name, with_prompts
from dreambooth.generation.grids.grid_run import Grid, make_grid
from dreambooth.generation.images import OnProgress, Progress, generate, make_requests, reproduce, vary
from dreambooth.generation.inputs.control_ref import ControlRef, make_controls
from dreambooth.generation.inputs.found_mask import find_mask_of, is_words
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.init_image import init_image as make_init_image
from dreambooth.generation.inputs.line_options import with_all_options, with_styles_beside
from dreambooth.generation.inputs.styles import make_styles
from dreambooth.generation.models import loading
from dreambooth.generation.models.additions import parse_embedding, parse_lora
from dreambooth.generation.models.location import default_folder, find_card
from dreambooth.generation.models.model_pool import ModelPool
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.prompt_file import read_prompt_file
from dreambooth.generation.prompting.wildcards import FOLDER, Wildcards
from dreambooth.generation.request import RECIPE, GeneratedImage, read_recipe
from dreambooth.preflight.fitting import fit_to_memory
from dreambooth.proposal.automatic import load_run_config
from dreambooth.report import build as build_report
from dreambooth.report import build_or_warn
from dreambooth.run.folder import RunFolder
from dreambooth.step_models import load_at_step
from dreambooth.subject_info import LearnedSubject
from dreambooth.training.progress import OnTrainProgress, TrainProgress

__all__ = ["Evaluation", "GeneratedImage", "Model", "Progress", "Run", "TrainProgress", "export", "load", "train"]


@dataclass(frozen=True)
class Run:
    """Hold a training run. is_finished: False if it was stopped; the same call of `train` resumes. step: its last."""

    folder: Path
    is_finished: bool
    step: int

    def load(self, device: str = "auto") -> "Model":
        """Load the result. Raises ModelError for a run that is not finished."""
        return load(self.folder, device=device)

    def report(self) -> Path:
        """Write report.html, and return where it is."""
        return build_report(self.folder)


def train(
    config: str | Path | Config,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    on_progress: OnTrainProgress | None = None,
    stop: threading.Event | None = None,
    accepted_changes: Sequence[str] = (),
) -> Run:
    """Train, or resume where the run was stopped, as `train.py` does.

    config: a YAML file, or what `load_config` returns. overrides: values by key, or "section.key=value" each.
    on_progress: called with a `TrainProgress` after each step; False stops, as setting `stop` does: the step is
    finished and the state saved. accepted_changes: keys whose changed values are accepted when resuming.

    May be called in any thread; in the main one Ctrl-C stops as well. Raises UserError, ModelError, NonFiniteError.
    """
    if not isinstance(config, Config):
        config = load_run_config(config, as_overrides(overrides) if isinstance(overrides, Mapping) else overrides)
    elif overrides:
        raise UserError("overrides: are for a config file; change the Config itself")
    last = TrainProgress(0, config.train.max_steps)

    def report(progress: TrainProgress) -> object:
        nonlocal last
        last = progress
        wants_more = on_progress is None or on_progress(progress) is not False
        return wants_more and not (stop is not None and stop.is_set())

    config = fit_to_memory(config)
    code = engine.train(config, accepted_changes=accepted_changes, on_progress=report)
    run = RunFolder(config).path
    card = find_card(str(run)) if code == 0 else None
    if card is None:
        return Run(run, is_finished=False, step=last.step)
    build_or_warn(run)
    return Run(run, is_finished=True, step=card.last_step or card.step)


def load(
    model: str | Path,
    device: str = "auto",
    dtype: str | None = None,
    base: str | Path | None = None,
    config: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    loras: Sequence[str | Path] = (),
    embeddings: Sequence[str | Path] = (),
    quantize: str | None = None,
) -> "Model":
    """Load whatever `sample.py` takes: a run, pipeline or adapter folder, a hub id, a single .safetensors.

    device: auto, cuda, rocm, xpu, mps or cpu. dtype: float32, float16, bfloat16; None: on a GPU float16, of
    transformers bfloat16; else float32. base: of an adapter, where its base model is elsewhere now. config: for a
    single file, where its configs and tokenizer lie. revision: of a hub id. variant: which of the weights. vae: another
    VAE in the place of its own. loras: FILE or FILE:WEIGHT each, laid over it. embeddings: FILE or FILE:WORD each.
    quantize: int8, fp8 or nf4: how the weights are stored. Raises ModelError, UserError.
    """
    base, vae = (None if each is None else str(each) for each in (base, vae))
    added = tuple(parse_lora(str(each)) for each in loras), tuple(parse_embedding(str(each)) for each in embeddings)
    ref = ModelRef(str(model), base, config, revision, variant, dtype, vae, *added, quantize)
    return Model(loading.load_model(ref, device), device)


def _controls_of(
    controls: Sequence[str | ControlRef], models: Mapping[str, str | Path] | None
) -> tuple[ControlRef, ...]:
    """Return controls as requests have them. models: folder or hub id of a ControlNet by kind."""
    return make_controls(controls, {kind: str(each) for kind, each in (models or {}).items()})


def _recipe_of(image: Image.Image | str | Path) -> dict[str, Any]:
    """Return the recipe of an image, or of an image's file. Raises UserError where there is none."""
    if not isinstance(image, Image.Image):
        return read_recipe(image)
    if RECIPE not in image.info:
        raise UserError("an image without a recipe; take one of generate, sample.py or evaluate")
    found: dict[str, Any] = json.loads(image.info[RECIPE])
    return found


def _options_of(prompts: str | Path | Sequence[str | Mapping[str, Any]], usual: ImageOptions) -> list[ImageOptions]:
    """Return prompts with their options; those that one does not name are the usual ones. Raises UserError."""
    if isinstance(prompts, Path):
        return read_prompt_file(prompts, usual)
    several = [prompts] if isinstance(prompts, str) else prompts
    return [with_all_options(usual, {"prompt": each} if isinstance(each, str) else each) for each in several]


@dataclass(frozen=True)
class GridImages:
    """Hold a grid that was made. scores: of its images, in order; None where they were not asked for."""

    grid: Grid
    scores: list[ImageScore] | None = None

    @property
    def images(self) -> list[GeneratedImage]:
        """Return the images, column by column within a row, row by row within a block."""
        return [GeneratedImage.from_image(Image.open(path), read_recipe(path)) for path in self.grid.paths]

    @property
    def values(self) -> list[dict[str, str]]:
        """Return the values of each image by axis."""
        names = [axis.name for axis in self.grid.axes]
        return [dict(zip(names, cell.values, strict=True)) for cell in self.grid.cells]

    @property
    def folder(self) -> Path:
        """Return where the images, grid.png and grid.html lie."""
        return self.grid.folder


class Model:
    """Sample, evaluate and export a model in memory."""

    def __init__(self, loaded: loading.Model, device: str) -> None:
        self._loaded = loaded
        self._device = device

    def __repr__(self) -> str:
        learned = ", ".join(f"{each.identifier} {each.class_noun}" for each in self.subjects) or "no subject"
        return f"<dreambooth.Model {self.name}: {learned}>"

    @property
    def name(self) -> str:
        """Return the MODEL that was loaded."""
        return self._loaded.name

    @property
    def subjects(self) -> tuple[LearnedSubject, ...]:
        """Return what it has learned: identifier, class noun and prompts of each; empty for a plain base."""
        return self._loaded.subjects

    @property
    def resolution(self) -> int:
        """Return the side of the images that it was trained at, pixels."""
        return self._loaded.resolution

    def generate(
        self,
        prompts: str | Path | Sequence[str | Mapping[str, Any]],
        num_images: int = 4,
        seed: int = 0,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        size: tuple[int, int] | None = None,
        batch_size: int = 4,
        wildcards: str | Path = FOLDER,
        attention_maps: bool = False,
        on_progress: OnProgress | None = None,
        *,
        init_image: str | Path | Image.Image | None = None,
        strength: float | None = None,
        mask: str | Path | Image.Image | None = None,
        expand: tuple[int, int, int, int] | None = None,
        feather: int | None = None,
        only_masked: bool = False,
        controls: Sequence[str | ControlRef] = (),
        control_models: Mapping[str, str | Path] | None = None,
        styles: Sequence[str | Path | Image.Image] = (),
        ip_adapter: str | Path | None = None,
        upscale: float | None = None,
        upscale_strength: float | None = None,
        detail: float | None = None,
    ) -> list[GeneratedImage]:
        """Generate `num_images` images a prompt; image i of each is made from seed + i alone.

        prompts: one, several, or a `Path` to a file of them, as `sample --prompts` takes it. {subject} in a prompt
        stands for what the model has learned, {red|blue} and __colours__ are drawn by the seed. One with options of its
        own is a mapping: {"prompt": ..., "seed": 3}. size: (width, height), pixels. What is None is as the run sampled
        its validation images. wildcards: the folder with colours.txt, as that of a `Path` is. attention_maps: give each
        image `attention`, a sheet that shows where each word acted. on_progress: called with a `Progress` after a step.

        init_image: a file or PIL image to start from. strength: how much of it is new, 0 to 1 (None: 0.75; 1 where it
        is expanded). mask: redraw its white only; words ("subject", "the hat") are looked for. expand: pixels added
        left, above, right and below, and drawn. feather: pixels over which redrawn and kept parts fade into each
        other. only_masked: redraw the part around the mask at the model's own size. controls: as with --control, or
        `control_of_image`. control_models: folder or hub id of a ControlNet by kind. styles: names of the list, or an
        image (IMAGE:WEIGHT, or a PIL image); ip_adapter: a file that reads that image in the place of shared attention.
        upscale: redraw it so many times as wide and high, upscale_strength of it (None: .3). detail: redraw so much of
        the subject at the model's own resolution.

        Returns PIL images in the order of the prompts. Each has its `recipe`, which its PNG keeps: `image.save(...)`,
        then `sample.py --from-image` or `reproduce`. Raises UserError.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")
        sampled = (steps, guidance_scale, scheduler, None if size is None else (size[1], size[0]))
        usual = ImageOptions("", num_images, seed, negative_prompt, *sampled, upscale, upscale_strength, detail)
        drawn = make_styles(styles, None if ip_adapter is None else str(ip_adapter))
        init = make_init_image(init_image, strength, self._find_mask(init_image, mask), expand, feather, only_masked)
        images = FromImages(init, _controls_of(controls, control_models), drawn.reference)
        wanted = [drawn.apply(each) for each in _options_of(prompts, usual)]
        folders = (Path(wildcards), prompts.parent) if isinstance(prompts, Path) else (Path(wildcards),)
        requests = make_requests(self._loaded, wanted, Wildcards(folders), images)
        return list(generate(self._loaded, requests, batch_size, on_progress, attention_maps))

    def _find_mask(self, image: Any, mask: Any) -> Any:
        """Return a mask as it is given; of one that is named by words what they name in the image."""
        if image is None or not is_words(mask):
            return mask
        return find_mask_of(mask, image, self.subjects, device=find_device(self._device).type)

    def grid(
        self,
        prompts: str | Sequence[str],
        axes: Mapping[str, Sequence[Any]],
        out: str | Path | None = None,
        score: bool | str | Path = False,
        batch_size: int = 4,
        wildcards: str | Path = FOLDER,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> "GridImages":
        """Generate one image for each combination of the values of up to three axes, as `sample --grid` does.

        axes: values by name, for columns, rows and blocks: {"guidance_scale": [3, 5], "seed": [0, 1]}. Several prompts
        are an axis too. out: folder of the images, of grid.png and grid.html (None: outputs/<model>/grid-<hash>); what
        is there already is not made again. score: score each image, against the photos of a folder where one is named.
        options: of all images, by the names of a line of `--prompts`, such as steps or init_image. Raises UserError.
        """
        several = [prompts] if isinstance(prompts, str) else list(prompts)
        usual, styles = with_styles_beside(ImageOptions(several[0]), options)
        found, known = with_prompts(axes_of(axes), several), Wildcards((Path(wildcards),))
        plain = cells_of(found, self._loaded.ref, usual)
        cells = [replace(cell, options=styles.apply(cell.options)) for cell in plain]
        check_cells(cells, known)
        folder = Path(out) if out else default_folder(self.name) / folder_name(cells, FromImages())
        check_writable(folder, "out")
        grid = Grid(found, cells, folder)
        photos = None if isinstance(score, bool) else Path(score)
        scorer = GridScorer(find_device(self._device).type, photos) if score else None
        pool = ModelPool(self._device, self._loaded)
        with translate_write_errors(folder, "out"):
            list(make_grid(grid, partial(load_at_step, pool), known, batch_size, on_progress, scorer))
        return GridImages(grid, None if scorer is None else [scorer.found[path] for path in grid.paths])

    def score(self, images: Sequence[GeneratedImage], photos: str | Path | None = None) -> list[ImageScore]:
        """Score images as a validation does: `likeness` to the photos, fidelity to the `prompt`, and their product.

        photos: folder of the subject's; None: those that the run learned from. Raises UserError where there is nothing
        to measure with.
        """
        device = find_device(self._device).type
        scorer = make_image_scorer(self.name, self.subjects, device, None if photos is None else Path(photos))
        return scorer(images, [image.recipe for image in images])

    def reproduce(self, image: Image.Image | str | Path) -> GeneratedImage:
        """Generate an image again by its recipe: the same but for rounding, at most one level of 255.

        image: one of `generate`, or the file of one, of sample.py or of evaluate. Raises UserError without a recipe.
        """
        (made,) = generate(self._loaded, [reproduce(_recipe_of(image), self._loaded)], 1)
        return made

    def vary(
        self,
        image: Image.Image | str | Path,
        strength: float = 0.3,
        num_images: int = 4,
        seed: int = 0,
        batch_size: int = 4,
        on_progress: OnProgress | None = None,
    ) -> list[GeneratedImage]:
        """Generate variations of an image by its recipe; variation i is drawn from seed + i alone.

        image: as for `reproduce`. strength: 0 is the image itself, 1 another one of the same prompt. Raises UserError.
        """
        request = reproduce(_recipe_of(image), self._loaded)
        return list(generate(self._loaded, vary(request, num_images, seed, strength), batch_size, on_progress))

    def evaluate(
        self,
        images: str | Path,
        out: str | Path | None = None,
        class_noun: str | None = None,
        prompts: str = AUTO,
        num_images: int = 4,
        num_class_images: int = 4,
        base: str | Path | None = None,
        dino: str = AUTO,
        clip: str = AUTO,
        seed: int = 0,
        on_progress: OnProgress | None = None,
        matcher: str | None = None,
        reader: str | None = None,
        questions: Sequence[str] = (),
    ) -> Evaluation:
        """Measure the model by the paper's protocol against photos of its subject, as `evaluate` does.

        images: folder of photos. out: where images and tables go (None: outputs/evaluate-<name of the photos>); what is
        there already is not made again. prompts: objects, live, auto, or a file. base: measure drift from this
        untouched base. dino, clip: hub id or folder; auto: what the run measured with; none. matcher, reader: models
        that read images, and questions for the reader, as `evaluate --matcher`, `--reader` and `--question` take them.

        `print` of what is returned shows the table, `means` has its numbers. Raises UserError, ModelError.
        """
        out = Path(out or Path("outputs") / f"evaluate-{Path(images).resolve().name}")
        check_writable(out, "out")
        request = EvaluationRequest(
            models=[self.name],
            out=out,
            images=Path(images),
            class_noun=class_noun,
            prompts=prompts,
            num_images=num_images,
            num_class_images=num_class_images,
            base=None if base is None else str(base),
            dino=dino,
            clip=clip,
            matcher=matcher,
            reader=reader,
            questions=tuple(questions),
            seed=seed,
            options=replace(self._loaded.ref, name=""),
            device=self._device,
        )
        with translate_write_errors(out, "out"):
            return evaluate(request, on_progress, self._loaded)

    def export(
        self,
        format: str,  # noqa: A002 - the option's name
        out: str | Path | None = None,
        dtype: str = "float16",
        rank: int | None = None,
    ) -> Path:
        """Write the model in another tool's format, and return the folder; see `dreambooth.export`."""
        return export(self.name, format, out, dtype, rank, self._loaded.ref.base)
