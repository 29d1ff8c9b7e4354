"""Jobs as the commands of a terminal: a request becomes `train`, `sample`, `evaluate`, `prepare` or `export`.

What a request names is looked up in the workspace, so that a command gets no other path.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dreambooth.config import as_overrides, field_of
from dreambooth.config.values import cut, problem_of
from dreambooth.errors import UserError, escaped
from dreambooth.generation.request import read_recipe
from dreambooth.studio import requests
from dreambooth.studio.jobs import NUMBER, Command, NewJob
from dreambooth.studio.problems import ConflictError, MissingError, RequestError
from dreambooth.studio.workspace import Workspace, check_new_name

OWN_KEYS = ("run.name", "run.dir", "run.resume")  # of a training, which the workspace decides
FREE_TEXT = re.compile(
    r"subject(s\[\d+\])?\.(identifier|class_noun|prompt|class_prompt)|\w+\.prompts|validate\.questions"
)
CONFIG = "config.yaml"  # of a run
WILDCARD_AWAY = re.compile(r"__\S*\.\.\S*__")
AWAY = re.compile(r"^[/~\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|://|\$\{")  # a text that leads out of the workspace


def new_job(workspace: Workspace, request: requests.JobRequest) -> NewJob:
    """Return the job that a request asks for. Raises RequestError for what cannot be, and names the field."""
    make: Callable[[Workspace, Any], NewJob] = MAKERS[type(request)]
    return make(workspace, request)


def _train(workspace: Workspace, request: requests.TrainRequest) -> NewJob:
    if sum(each is not None for each in (request.subject, request.config, request.run)) != 1:
        raise RequestError("subject, config, run: name exactly one of them")
    before: tuple[Command, ...] = ()
    if request.run is not None:
        name = workspace.find_in(workspace.runs, request.run).name
        config = workspace.relative(workspace.find(f"checkpoints/{name}/config.yaml"))
    elif request.config is not None:
        config = _config(workspace, request.config)
        name = check_new_name(request.name or Path(config).stem, "name")
    else:
        name = check_new_name(request.name or str(request.subject), "name")
        config = f"configs/{name}.yaml"
        for taken in (config, f"checkpoints/{name}"):
            if (workspace.root / taken).exists():
                raise ConflictError(f"name={name}: there is {taken} already; choose another, or go on with that one")
        before = (Command(_new_config(workspace, request, config), unless=config),)
    settings = {**_checked_settings(workspace, request.settings), "run.name": name, "run.dir": "checkpoints"}
    changes = [part for key in request.accepted_changes for part in ("--override", _known_key(key))]
    train = ("train", config, *as_overrides(settings), *changes)
    return _job(request, f"train {name}", (*before, Command(train)), f"checkpoints/{name}")


def _config(workspace: Workspace, name: str) -> str:
    """Return a config file as the command names it. Raises RequestError for a file of another kind."""
    path = workspace.find(name)
    if path.suffix not in (".yaml", ".yml") or (not path.is_relative_to(workspace.configs) and path.name != CONFIG):
        raise RequestError(f"config={escaped(name)}: is no config; name one of configs/, or a run's config.yaml")
    return workspace.relative(path)


def _new_config(workspace: Workspace, request: requests.TrainRequest, config: str) -> tuple[str, ...]:
    """Return the command that writes a config for a subject's photos."""
    if request.class_noun is None:
        raise RequestError("class_noun: is needed with subject: what kind of thing it is, e.g. dog")
    photos = workspace.relative(workspace.find_in(workspace.photos, str(request.subject)))
    command = ["new", f"--class={request.class_noun}", f"--identifier={request.identifier}", f"--out={config}"]
    if request.base is not None:
        command.append(f"--base={workspace.model(request.base)}")
    return (*command, "--", photos)


def _checked_settings(workspace: Workspace, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by key. Raises RequestError for unknown keys, wrong values and paths out of the workspace."""
    for key, value in settings.items():
        _known_key(key)
        if key in OWN_KEYS:
            raise RequestError(f"settings.{key}: is decided by the workspace; leave it out, and name the run by name")
        if (problem := problem_of(key, value)) is not None:
            raise RequestError(f"settings.{problem}")
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and FREE_TEXT.fullmatch(key) is None:
                _check_stays(workspace, key, each)
    return settings


def _check_stays(workspace: Workspace, key: str, value: str) -> None:
    """Raise RequestError for a text that is a path out of the workspace."""
    if AWAY.search(value):
        raise RequestError(f"settings.{key}={escaped(value)}: leads out of the workspace; name a path within it")
    try:
        is_there = (workspace.root / value).exists()
    except OSError as error:
        raise RequestError(f"settings.{key}={cut(value)}: no name of a file ({error.strerror}); shorten it") from error
    if is_there and "/" in value:
        workspace.find(value)


def _known_key(key: str) -> str:
    if field_of(key) is None:
        raise RequestError(f"settings.{escaped(key)}: unknown key; docs/settings.md lists them")
    return key


def _generate(workspace: Workspace, request: requests.GenerateRequest) -> NewJob:
    sources = [request.prompts, request.from_image, request.vary]
    if sum(bool(each) for each in sources) != 1:
        raise RequestError("prompts, from_image, vary: give exactly one of them")
    if request.prompts and request.model is None:
        raise RequestError("model: is needed with prompts")
    for prompt in (*request.prompts, request.negative_prompt):
        if WILDCARD_AWAY.search(prompt):
            raise RequestError(f"prompts={escaped(prompt)}: a wildcard leads out of wildcards/; name a file within it")
    if image := request.from_image or request.vary:
        _check_recipe(workspace, request, image)
    folder = f"outputs/job-{NUMBER}"
    model = () if request.model is None else (workspace.model(request.model),)
    options = list(_sample_options(workspace, request))
    named = (*model, *request.prompts)
    command = ("sample", *options, f"--out={folder}", *(("--", *named) if named else ()))  # a -- alone is refused
    title = request.prompts[0] if request.prompts else f"from {request.from_image or request.vary}"
    return _job(request, f"generate {title}"[:200], (Command(command),), folder)


def _check_recipe(workspace: Workspace, request: requests.GenerateRequest, image: str) -> None:
    """Raise RequestError for a recipe that names files outside the workspace: whoever uploads an image wrote it."""
    try:
        recipe = read_recipe(workspace.find(image))
    except MissingError:
        raise
    except UserError as error:
        if request.vary is None and request.model is not None:
            return  # an image of another program, which names no files
        raise RequestError(str(error)) from error
    for key, text in _texts(recipe):
        if key not in ("prompt", "negative_prompt") and AWAY.search(text):
            if key == "model" and request.model is not None:
                continue
            raise RequestError(
                f"{escaped(image)}: its recipe names {escaped(text)} ({key}), which is not in the workspace"
            )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a recipe with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, str(name))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)


# Fields of a request that are an option of `sample` as they stand.
PLAIN = (
    "num_images", "seed", "negative_prompt", "steps", "guidance_scale", "scheduler", "size", "batch_size", "strength",
    "expand", "feather", "upscale", "upscale_strength", "detail", "best", "dtype", "variation_strength",
)  # fmt: skip
IMAGES = ["from_image", "vary", "init_image", "mask"]
SWITCHES = ["only_masked", "attention_maps", "score"]


def _sample_options(workspace: Workspace, request: requests.GenerateRequest) -> Iterator[str]:
    """Yield the options of `sample` that a request asks for."""
    for name in PLAIN:
        value = getattr(request, name)
        if value is not None and name in request.model_fields_set:
            yield f"--{name.replace('_', '-')}={value}"
    for name in IMAGES:
        if (image := getattr(request, name)) is not None:
            yield f"--{name.replace('_', '-')}={workspace.relative(workspace.find(image))}"
    for name in SWITCHES:
        if getattr(request, name):
            yield f"--{name.replace('_', '-')}"
    yield from _additions(workspace, request)
    for axis in request.grid:
        if any(map(AWAY.search, re.split("[=,:]", axis))):
            raise RequestError(f"grid={escaped(axis)}: leads out of the workspace")
        yield f"--grid={axis}"


def _additions(workspace: Workspace, request: requests.GenerateRequest) -> Iterator[str]:
    """Yield the options that name models, files and styles beside the model."""
    for lora in request.loras:
        yield f"--lora={workspace.relative(workspace.find(lora.file))}:{lora.weight}"
    for embedding in request.embeddings:
        yield f"--embedding={workspace.relative(workspace.find(embedding))}"
    for control in request.controls:
        image = workspace.relative(workspace.find(control.image))
        part = f":{control.weight}:{control.start}-{control.end}"
        yield f"--control={control.kind}={'map:' if control.is_map else ''}{image}{part}"
        if control.model is not None:
            yield f"--control-model={control.kind}={workspace.model(control.model)}"
    for style in request.styles:
        if re.fullmatch(r"[\w -]+", style) is None:
            raise RequestError(f"styles={escaped(style)}: no name of the list; an image goes into style_image")
        yield f"--style={style}"
    if request.style_image is not None:
        yield f"--style={workspace.relative(workspace.find(request.style_image))}:{request.style_weight}"
    for name in ("base", "vae"):
        if (model := getattr(request, name)) is not None:
            yield f"--{name}={workspace.model(model)}"


def _evaluate(workspace: Workspace, request: requests.EvaluateRequest) -> NewJob:
    photos = workspace.relative(workspace.find_in(workspace.photos, request.subject))
    output = f"outputs/evaluate-{request.subject}"
    options = [
        f"--images={photos}",
        f"--out={output}",
        f"--prompts={request.prompts}",
        f"--num-images={request.num_images}",
    ]
    options += [f"--class-prompt-images={request.class_prompt_images}", f"--seed={request.seed}"]
    if request.steps is not None:
        options.append(f"--steps={request.steps}")
    if request.class_noun is not None:
        options.append(f"--class-noun={request.class_noun}")
    if request.base is not None:
        options.append(f"--base={workspace.model(request.base)}")
    models = [workspace.model(each) for each in request.models]
    command = Command(("evaluate", *options, "--", *models))
    return _job(request, f"evaluate {', '.join(request.models)} on {request.subject}", (command,), output)


def _prepare(workspace: Workspace, request: requests.PrepareRequest) -> NewJob:
    photos = workspace.relative(workspace.find_in(workspace.photos, request.subject))
    output = f"outputs/job-{NUMBER}"
    accepted = ["--accept", *request.accept] if request.accept else []
    options = [*accepted, f"--out={output}"]
    for name, value in (("class", request.class_noun), ("identifier", request.identifier)):
        if value is not None:
            options.append(f"--{name}={value}")
    for name in ("base", "mask_model", "caption_model"):
        if (model := getattr(request, name)) is not None:
            options.append(f"--{name.replace('_', '-')}={workspace.model(model)}")
    command = Command(("prepare", *options, "--", photos))
    return _job(request, f"prepare {request.subject}", (command,), output)


def _export(workspace: Workspace, request: requests.ExportRequest) -> NewJob:
    run = workspace.relative(workspace.find_in(workspace.runs, request.run))
    output = f"{run}/exports/{request.format}"
    options = [f"--format={request.format}", f"--dtype={request.dtype}", f"--out={output}"]
    if request.rank is not None:
        options.append(f"--rank={request.rank}")
    if request.base is not None:
        options.append(f"--base={workspace.model(request.base)}")
    if request.verify:
        options.append("--verify")
    if request.push_to_hub is not None:
        options += [f"--push-to-hub={request.push_to_hub}", *(["--private"] if request.private else [])]
    return _job(
        request, f"export {request.run} as {request.format}", (Command(("export", *options, "--", run)),), output
    )


MAKERS: dict[type[requests.JobRequest], Callable[..., NewJob]] = {
    requests.TrainRequest: _train,
    requests.GenerateRequest: _generate,
    requests.EvaluateRequest: _evaluate,
    requests.PrepareRequest: _prepare,
    requests.ExportRequest: _export,
}


def _job(request: Any, title: str, commands: tuple[Command, ...], output: str) -> NewJob:
    stored = requests.as_stored(request)
    return NewJob(request.kind, title, stored, commands, output, request.priority, request.timeout_s)
