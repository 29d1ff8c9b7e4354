"""The studio's pages: each shows what is in the workspace, and a click becomes the job or the file that it says."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

pytest.importorskip("fastapi", reason="the extra 'studio' is not installed")

import itertools

from hub_answers import answering
from starlette.testclient import TestClient
from test_report import NUM_IMAGES, PROMPTS, STEPS, colour, write_journal, write_logs, write_samples

from dreambooth.generation.request import read_recipe, write_png
from dreambooth.studio.app import create_app
from dreambooth.studio.guard import Access
from dreambooth.studio.pages import charts, frame, photo_findings
from dreambooth.studio.pages.recipes import Form, form_of, request_of
from dreambooth.studio.plan import PRESETS
from dreambooth.studio.state import Studio
from dreambooth.studio.token import TokenFile
from dreambooth.studio.workspace import Workspace

SIDE = 16  # pixels
RECIPE: dict[str, Any] = {
    "prompt": "a photo of sks robot on a hill",
    "seed": 7,
    "num_inference_steps": 6,
    "guidance_scale": 4.0,
    "scheduler": "unipc",
    "negative_prompt": "",
    "guidance_min_noise": 0.0,
    "model": "checkpoints/my-robot",
    "width": SIDE,
    "height": SIDE,
    "base": None,
    "weights": "0" * 16,
}
VOID = {"meta", "link", "img", "input", "br", "hr"}
OF_SVG = {"path", "circle", "rect"}  # which may close themselves


def write_run(folder: Path) -> None:
    """Write a finished run of 30 steps whose best is 20; every image has a colour of its own."""
    write_samples(folder)
    (folder / "logs").mkdir()
    write_journal(folder)
    write_logs(folder)
    settings = {
        "run": {"name": folder.name},
        "model": {"base": "checkpoints/toyworld"},
        "subject": {"images": "data/robot", "class_noun": "robot"},
        "data": {"resolution": SIDE},
        "train": {"max_steps": 30},
        "validate": {"prompts": list(PROMPTS), "num_images": NUM_IMAGES, "every_steps": 10},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    card = {
        "subjects": [{"identifier": "sks", "class_noun": "robot", "prompt": "{subject}", "class_prompt": "{class}"}]
    }
    card |= {"resolution": SIDE, "num_inference_steps": 2, "guidance_scale": 1, "step": 20, "last_step": 30}
    (folder / "model").mkdir()
    (folder / "model" / "dreambooth.json").write_text(json.dumps(card))
    (folder / "report.html").write_text("<!DOCTYPE html><title>report</title>")


def photo(number: int, size: tuple[int, int] = (560, 560)) -> bytes:
    """Return a PNG with patches of colour; each number is another photo."""
    colours = np.random.default_rng(number).integers(0, 255, (14, 14, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with photos, a finished run, a base and three images that were made earlier."""
    folder = tmp_path_factory.mktemp("made")
    write_run(folder / "checkpoints" / "my-robot")
    (folder / "data" / "robot").mkdir(parents=True)
    (folder / "outputs" / "earlier").mkdir(parents=True)
    for number in range(3):
        (folder / "data" / "robot" / f"{number}.png").write_bytes(photo(number))
        image = Image.new("RGB", (SIDE, SIDE), colour(number, 1, 1))
        write_png(folder / "outputs" / "earlier" / f"0000{number}.png", image, RECIPE | {"seed": 7 + number})
    (folder / "checkpoints" / "toyworld" / "unet").mkdir(parents=True)
    (folder / "checkpoints" / "toyworld" / "model_index.json").write_text("{}")
    (folder / "checkpoints" / "toyworld" / "unet" / "config.json").write_text('{"sample_size": 2}')
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """Return a copy of that workspace, to change."""
    return Path(shutil.copytree(made, tmp_path / "studio"))


@pytest.fixture
def client(place: Path) -> Iterator[TestClient]:
    app = create_app(Workspace(place), starts_jobs=False)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Workspace(tmp_path), starts_jobs=False), base_url="http://localhost") as client:
        yield client


def jobs_of(client: TestClient) -> list[dict[str, Any]]:
    kinds = [("kind", kind) for kind in ("train", "generate", "export")]  # a filter is answered from the queue itself
    found: list[dict[str, Any]] = client.get("/api/v1/jobs", params=kinds).json()["jobs"]
    return found


def queue_of(client: TestClient) -> list[int]:
    studio: Studio = client.app.state.studio  # type: ignore[attr-defined]
    return [job.id for job in studio.store.queue()]


class Reader(HTMLParser):
    """Collect addresses, inline code and tags that do not match of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: set[str] = set()
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.wrong += [f"<{tag}> stays open" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        for name in ("href", "src", "hx-get"):
            if (address := found.get(name)) and address.startswith("/"):
                self.addresses.add(address)
        self.ids += [found["id"]] if found.get("id") else []
        self.wrong += [f"{tag} {name}" for name in found if name.startswith("on") or name == "style"]
        if tag in ("script", "style") and not found.get("src"):
            self.wrong.append(f"inline {tag}")
        if tag == "img" and (found.get("alt") is None or not found.get("width")):
            self.wrong.append(f"img without alt or size: {found.get('src')}")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in OF_SVG:
            self.wrong.append(f"<{tag}/>")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.wrong.append(f"</{tag}> within <{self._open[-1] if self._open else 'nothing'}>")
        else:
            self._open.pop()


PAGES = [
    "/",
    "/new",
    "/new?subject=robot",
    "/runs/my-robot",
    "/new/robot/mask?photo=0.png",
    "/generate",
    "/generate?image=outputs/earlier/00000.png",
    "/generate?start=outputs/earlier/00000.png",
    "/images/look?image=outputs/earlier/00000.png",
    "/gallery",
    "/gallery?search=hill&favourites=true",
    "/queue",
    "/models",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_names_only_what_there_is_and_holds_no_inline_code(client: TestClient, page: str) -> None:
    client.post("/api/v1/jobs", json={"kind": "train", "run": "my-robot"})
    answer = client.get(page)
    assert answer.status_code == 200
    read = Reader(answer.text)
    assert read.wrong == []
    assert len(read.ids) == len(set(read.ids)), "an id stands for one element"
    for address in sorted(read.addresses - {each for each in read.addresses if "/costs" in each}):
        assert client.get(address).status_code == 200, f"{page} names {address}"


@pytest.mark.parametrize("page", ["/", "/new", "/generate", "/gallery", "/queue", "/models"])
def test_an_empty_workspace_is_told_what_to_do(empty: TestClient, page: str) -> None:
    answer = empty.get(page)
    assert answer.status_code == 200
    assert Reader(answer.text).wrong == []
    main = answer.text.partition("<main")[2]
    assert any(each in main for each in ('href="/new"', 'href="/generate"', 'type="file"'))


def test_static_files_are_kept_for_ever_and_nothing_comes_from_elsewhere(client: TestClient) -> None:
    text = client.get("/").text
    for name in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert not name.startswith(("http", "//")), name
    assert "immutable" in client.get(frame.static("studio.css")).headers["cache-control"]
    policy = client.get("/").headers["content-security-policy"]
    assert "unsafe-inline" not in policy
    for path in frame.STATIC.glob("*.*"):
        assert not re.search(r"(?<!xmlns=\")https?://", path.read_text()), path.name
    for path in (frame.STATIC / "vendor").glob("*.js"):
        name = re.sub(r"-\d.*", "", path.name)
        assert (path.parent / f"{name}.LICENSE.txt").is_file() or (path.parent / "htmx.LICENSE.txt").is_file()


def test_a_run_shows_its_steps_its_verdict_and_each_image_of_its_grids(client: TestClient, place: Path) -> None:
    text = client.get("/runs/my-robot").text
    assert f'data-steps="{",".join(map(str, STEPS))}"' in text
    assert 'data-best="20"' in text
    assert "step 30 of 30" in text
    assert "<script>alert" not in text, "a prompt is text, whatever stands in it"
    image = client.get("/runs/my-robot/samples/20/2/1")
    assert Image.open(BytesIO(image.content)).convert("RGB").getpixel((8, 8)) == colour(20, 2, 1)
    again = client.get("/runs/my-robot/samples/20/2/1", headers={"If-None-Match": image.headers["etag"]})
    assert again.status_code == 304
    assert client.get("/runs/my-robot/samples/25/0/0").status_code == 404
    card = Image.open(BytesIO(client.get("/runs/my-robot/photo").content))
    assert card.size == (384, 384), "the photo is the workspace's, wherever the server was started"
    assert client.get("/runs/my-robot/samples/20/9/0").status_code == 404


def test_a_run_that_does_not_exist_is_a_page_that_says_so(client: TestClient) -> None:
    answer = client.get("/runs/other")
    assert answer.status_code == 404
    assert "other" in answer.text
    assert "<nav" in answer.text
    part = client.get("/runs/other/status", headers={"HX-Request": "true"})
    assert (part.status_code, part.headers["content-type"]) == (404, "text/plain; charset=utf-8")


def test_who_has_no_token_is_asked_for_it_on_a_page(place: Path) -> None:
    tokens = TokenFile(place / "token")
    app = create_app(Workspace(place), Access(tokens), starts_jobs=False)
    token = tokens.renew()
    with TestClient(app, base_url="http://localhost") as client:
        asked = client.get("/gallery", headers={"Accept": "text/html"}, follow_redirects=False)
        assert (asked.status_code, asked.headers["location"]) == (303, "/login")
        assert Reader(client.get("/login").text).wrong == []
        assert client.get("/gallery").status_code == 401, "a program gets its answer"
        assert client.post("/api/v1/login", json={"token": token}).status_code == 200
        assert client.get("/gallery", headers={"Accept": "text/html"}).status_code == 200


def test_the_report_may_only_show_itself(client: TestClient) -> None:
    policy = client.get("/runs/my-robot/report").headers["content-security-policy"]
    assert "sandbox" in policy
    assert "script-src" not in policy or "default-src 'none'" in policy


def test_train_longer_and_fork_become_jobs_and_runs_are_compared(client: TestClient, place: Path) -> None:
    assert client.post("/runs/my-robot/longer", data={"max_steps": "60"}).headers["hx-redirect"] == "/runs/my-robot"
    form = {"name": "brave", "optim.lr": "2e-5", "train.max_steps": "50", "more": "method.rank=4\n"}
    assert client.post("/runs/my-robot/fork", data=form).headers["hx-redirect"] == "/runs/brave"
    fork, longer = jobs_of(client)
    assert longer["request"]["settings"] == {"train.max_steps": 60}
    assert fork["request"]["settings"] == {"train.max_steps": 50, "optim.lr": 2e-5, "method.rank": 4}
    assert fork["request"]["config"] == "checkpoints/my-robot/config.yaml"
    assert "It waits" in client.get("/runs/brave").text
    shutil.copytree(place / "checkpoints" / "my-robot", place / "checkpoints" / "other")
    config = (place / "checkpoints" / "other" / "config.yaml").read_text()
    (place / "checkpoints" / "other" / "config.yaml").write_text(config.replace("max_steps: 30", "max_steps: 31"))
    compared = client.get("/runs/my-robot/compare").text
    assert Reader(compared).wrong == []
    assert "<code>train.max_steps</code></th><td>30</td><td>31</td>" in compared
    assert "/runs/other/samples/20/2/0" in compared
    taken = client.post("/runs/my-robot/fork", data={"name": "my-robot"}, headers={"HX-Request": "true"})
    assert taken.status_code == 422
    assert "my-robot" in taken.text


@pytest.mark.parametrize(("asked", "steps"), [("auto", 30), ("1e3", 1000), (1e3, 1000), (45, 45)])
def test_a_job_may_ask_for_steps_in_any_way_that_a_config_reads(client: TestClient, asked: Any, steps: int) -> None:
    job = {"kind": "train", "run": "my-robot", "settings": {"train.max_steps": asked}}
    assert client.post("/api/v1/jobs", json=job).status_code == 201
    assert all(client.get(page).status_code == 200 for page in ("/", "/models"))
    assert f"step 30 of {steps}" in client.get("/runs/my-robot").text


def test_a_fork_goes_to_its_own_page_whatever_letters_its_name_has(client: TestClient) -> None:
    for name, address in (("собака", "/runs/%D1%81%D0%BE%D0%B1%D0%B0%D0%BA%D0%B0"), ("a#b", "/runs/a%23b")):
        assert client.post("/runs/my-robot/fork", data={"name": name}).headers["hx-redirect"] == address
        assert "It waits" in client.get(address).text
    before = jobs_of(client)
    for name in ("", "a" * 300, "\N{DOG FACE}" * 90, "../x"):
        refused = client.post("/runs/my-robot/fork", data={"name": name}, headers={"HX-Request": "true"})
        assert (refused.status_code, "no name for a folder" in refused.text) == (422, True), name
        form = {"class_noun": "robot", "base": "checkpoints/toyworld", "name": name or "a" * 300}
        assert client.post("/new/robot/start", data=form).status_code == 422
        assert client.get(f"/runs/{name or 'a' * 300}").status_code == 404
    long = client.post("/runs/my-robot/fork", data={"name": "x", "more": f"model.base={'a' * 300}"})
    assert (long.status_code, "model.base" in long.text) == (422, True)
    assert jobs_of(client) == before


def test_photos_become_a_subject_with_findings_captions_and_a_training(client: TestClient, place: Path) -> None:
    files = [("files", (f"{number}.png", photo(number), "image/png")) for number in (4, 5)]
    first = client.post("/new/photos", files=[*files, ("files", ("again.png", photo(5), "image/png"))])
    assert first.headers["hx-push-url"] == "/new?subject=photos-1"
    assert "(nearly) the same photo" in first.text
    assert Reader(first.text).wrong == []
    client.post("/new/photos-1/remove", data={"photo": "again.png"})
    client.post("/new/photos-1/mask", data={"photo": "5.png"}, files={"mask": ("mask.png", photo(1), "image/png")})
    assert (place / "data" / "photos-1-masks" / "5.png").is_file()
    assert "Change the mask" in client.get("/new?subject=photos-1").text
    assert "data-existing" in client.get("/new/photos-1/mask?photo=5.png").text
    client.post("/new/photos-1/caption", data={"photo": "4.png", "caption": "{subject} on grass"})
    assert (place / "data" / "photos-1" / "4.txt").read_text() == "{subject} on grass\n"
    assert "once every photo has one" in client.get("/new?subject=photos-1").text
    form = {"class_noun": "toy robot", "base": "checkpoints/toyworld", "more": "method.rank=4\ntrain.steps=3"}
    wrong = client.post("/new/photos-1/start", data=form, headers={"HX-Request": "true"})
    assert (wrong.status_code, "train.steps" in wrong.text) == (422, True)
    assert (place / "data" / "photos-1").is_dir(), "nothing is renamed for what does not begin"
    started = client.post("/new/photos-1/start", data=form | {"more": "method.rank=4"})
    assert started.headers["hx-redirect"] == "/runs/my-toy-robot"
    assert sorted(path.name for path in (place / "data" / "my-toy-robot").glob("*.png")) == ["4.png", "5.png"]
    assert (place / "data" / "my-toy-robot-masks" / "5.png").is_file()
    assert not (place / "data" / "photos-1").exists()
    asked = {"kind": "train", "subject": "my-toy-robot", "class_noun": "toy robot", "name": "my-toy-robot"}
    request = jobs_of(client)[0]["request"]
    assert asked.items() <= request.items()
    assert request["settings"] == {"method.rank": 4, "data.mask": None}, "a mask of one photo alone does not count"


def test_photos_keep_their_name_where_their_training_is_refused(client: TestClient, place: Path) -> None:
    client.post("/runs/my-robot/fork", data={"name": "rex"})
    client.post("/new/photos", files=[("files", ("4.png", photo(4), "image/png"))])
    client.post("/new/photos-1/mask", data={"photo": "4.png"}, files={"mask": ("mask.png", photo(1), "image/png")})
    form = {"class_noun": "dog", "base": "checkpoints/toyworld", "name": "rex"}
    refused = client.post("/new/photos-1/start", data=form, headers={"HX-Request": "true"})
    assert (refused.status_code, "checkpoints/rex: job 1" in refused.text) == (409, True)
    assert sorted(path.name for path in (place / "data").iterdir()) == ["photos-1", "photos-1-masks", "robot"]
    assert client.post("/new/photos-1/start", data=form | {"name": "max"}).headers["hx-redirect"] == "/runs/max"
    assert sorted(path.name for path in (place / "data").iterdir()) == ["max", "max-masks", "robot"]


def test_masks_found_for_one_subject_are_not_offered_to_the_next(client: TestClient, place: Path) -> None:
    files = [("files", ("4.png", photo(4), "image/png"))]
    client.post("/new/photos", files=files)
    client.post("/new/photos-1/masks", data={"model": "CIDAS/clipseg-rd64-refined", "base": "checkpoints/toyworld"})
    form = {"class_noun": "dog", "base": "checkpoints/toyworld", "name": "rex"}
    refused = client.post("/new/photos-1/start", data=form, headers={"HX-Request": "true"})
    assert (refused.status_code, "photos-1: job 1, which is queued, needs" in refused.text) == (409, True)
    assert (place / "data" / "photos-1").is_dir()
    studio: Studio = client.app.state.studio  # type: ignore[attr-defined]
    studio.store.change(1, ("queued",), "done")
    found = place / "outputs" / "job-1" / "masks" / "4.png"
    found.parent.mkdir(parents=True)
    found.write_bytes(photo(7))
    assert "outputs/job-1/masks/4.png" in client.get("/new?subject=photos-1").text
    assert client.post("/new/photos-1/start", data=form).headers["hx-redirect"] == "/runs/rex"
    new = client.post("/new/photos", files=files)
    assert new.headers["hx-push-url"] == "/new?subject=photos-2"
    assert "outputs/job-1/masks" not in new.text


def test_photos_do_not_take_over_masks_that_lie_under_their_new_name(client: TestClient, place: Path) -> None:
    (place / "data" / "rex-masks").mkdir()
    client.post("/new/photos", files=[("files", ("4.png", photo(4), "image/png"))])
    form = {"class_noun": "dog", "base": "checkpoints/toyworld", "name": "rex"}
    assert client.post("/new/photos-1/start", data=form).headers["hx-redirect"] == "/runs/rex"
    assert jobs_of(client)[0]["request"]["subject"] == "photos-1"
    assert (place / "data" / "photos-1").is_dir()


def test_masks_are_proposed_by_a_model_and_accepted_or_not(client: TestClient, place: Path) -> None:
    (place / "models" / "finder").mkdir(parents=True)
    (place / "models" / "finder" / "config.json").write_text('{"model_type": "clipseg"}')
    assert "<option>models/finder</option>" in client.get("/new?subject=robot").text
    studio: Studio = client.app.state.studio  # type: ignore[attr-defined]

    def search() -> Path:
        """Look for masks, and find one for photo 1."""
        asked = {"model": "models/finder", "base": "checkpoints/toyworld", "class_noun": " toy  robot"}
        assert "A model looks" in client.post("/new/robot/masks", data=asked).text
        job = studio.store.find(kinds=("prepare",))[0]
        assert "--mask-model=models/finder" in job.commands[0].argv
        assert "--class=toy robot" in job.commands[0].argv
        assert Reader(client.get("/new/robot/masks").text).wrong == []
        studio.store.change(job.id, ("queued",), "done")
        found = place / job.output / "masks" / "1.png"
        found.parent.mkdir(parents=True)
        found.write_bytes(photo(7))
        return found

    found = search()
    over = client.get("/new/robot/masks")
    assert over.headers["hx-retarget"] == "#new"
    assert f'src="/api/v1/images/{found.relative_to(place)}" alt="a mask that is proposed"' in over.text
    assert "masks" not in client.get("/gallery").text, "masks are no images of the gallery"
    assert "Find the subject" in client.post("/new/robot/masks/decline").text
    assert not (place / "data" / "robot-masks").exists()
    search()
    accepted = client.post("/new/robot/masks/accept")
    assert "1 mask accepted" in accepted.headers["hx-trigger"]
    assert (place / "data" / "robot-masks" / "1.png").is_file()
    assert accepted.text.count('alt="its mask"') == 1


def test_proposed_masks_of_photos_of_one_name_are_not_lost(client: TestClient, place: Path) -> None:
    shutil.copy(place / "data" / "robot" / "1.png", place / "data" / "robot" / "1.jpg")
    client.post("/new/robot/masks", data={"model": "CIDAS/clipseg-rd64-refined", "base": "checkpoints/toyworld"})
    studio: Studio = client.app.state.studio  # type: ignore[attr-defined]
    job = studio.store.find(kinds=("prepare",))[0]
    studio.store.change(job.id, ("queued",), "done")
    masks = place / job.output / "masks"
    masks.mkdir(parents=True)
    names = ["0.png", "1.jpg.png", "1.png.png"]  # as `prepare` names them
    for name in names:
        (masks / name).write_bytes(photo(7))
    refused = client.post("/new/robot/masks/accept", headers={"HX-Request": "true"})
    assert (refused.status_code, refused.text) == (409, "1.jpg: shares its mask with 1.png; rename all but one")
    assert sorted(path.name for path in masks.iterdir()) == names
    assert not (place / "data" / "robot-masks").exists(), "all of them, or none"


def test_a_run_that_trains_is_asked_for_images_now(client: TestClient, place: Path) -> None:
    run = place / "checkpoints" / "my-robot"
    assert "Sample now" not in client.get("/runs/my-robot/status").text
    assert client.post("/runs/my-robot/sample", headers={"HX-Request": "true"}).status_code == 409
    (run / "state").mkdir()
    (run / "state" / "lock").write_text(f"here {os.getpid()}")
    assert "Sample now" in client.get("/runs/my-robot/status").text
    assert client.post("/runs/my-robot/sample").status_code == 204
    assert (run / "sample-now").is_file()


def test_what_is_no_image_is_refused_and_leaves_no_folder(client: TestClient, place: Path) -> None:
    files = {"files": ("notes.txt", b"no image", "text/plain")}
    answer = client.post("/new/photos", files=files, headers={"HX-Request": "true"})
    assert answer.status_code == 422
    assert "notes.txt" in answer.text
    assert [path.name for path in (place / "data").iterdir() if path.is_dir()] == ["robot"]


def test_findings_are_those_of_prepare_photo_by_photo(tmp_path: Path) -> None:
    sizes = {"small": (100, 100), "long": (2800, 560), "good": (800, 700)}
    for number, (name, size) in enumerate(sizes.items()):
        (tmp_path / f"{name}.png").write_bytes(photo(number, size))
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = photo_findings.look_at(sorted(tmp_path.glob("*.png")), 512)
    levels = {name: [finding.level for finding in each] for name, each in found.of_photo.items()}
    assert levels["good.png"] == ["ok"]
    assert levels["broken.png"] == ["error"]
    assert "enlarged 5.1 times" in found.of_photo["small.png"][0].text
    assert "warning" in levels["long.png"]
    assert str(tmp_path) not in str(found)


def test_the_queue_is_stopped_moved_and_taken_up_again(client: TestClient) -> None:
    for name in ("a", "b"):
        asked = {"kind": "train", "config": "checkpoints/my-robot/config.yaml", "name": name}
        client.post("/api/v1/jobs", json=asked)
    client.post("/jobs/2/up")
    assert queue_of(client) == [2, 1]
    client.post("/jobs/2/down")
    assert queue_of(client) == [1, 2]
    said = client.post("/jobs/1/stop")
    assert json.loads(said.headers["hx-trigger"])["toast"]["action"]["url"] == "/jobs/1/resume"
    assert queue_of(client) == [2]
    while "taken out" not in client.get("/queue").text:  # what is shown is a quarter of a second old at most
        time.sleep(0.05)
    client.post("/jobs/1/resume")
    assert sorted(queue_of(client)) == [1, 2]
    client.post("/jobs/1/stop")
    client.post("/jobs/1/forget")
    assert [job["id"] for job in jobs_of(client)] == [2]
    while '<span class="count">1' not in client.get("/queue/count").text:
        time.sleep(0.05)


def test_the_form_becomes_a_request_and_its_images_are_stored(client: TestClient) -> None:
    form = {
        "model": "checkpoints/my-robot",
        "prompt": "{subject} at sea\n{subject} on ice",
        "num_images": "2",
        "seed": "5",
    }
    form |= {"style": "oil", "strength": "0.4", "size": "32x16", "mix:checkpoints/my-robot": "0", "grid-1": ""}
    files = {"init_image": ("a.png", photo(1), "image/png"), "mask": ("mask.png", photo(2), "image/png")}
    answer = client.post("/generate/images", data=form, files=files)
    assert answer.status_code == 200
    assert answer.text.count('class="waiting"') == 4
    request = jobs_of(client)[0]["request"]
    assert request["prompts"] == ["{subject} at sea", "{subject} on ice"]
    assert (request["seed"], request["size"], request["strength"]) == (5, "32x16", 0.4)
    assert request["styles"] == ["oil"]
    assert request["init_image"].startswith(".studio/uploads/")
    assert "loras" not in request
    wrong = client.post("/generate/images", data=form | {"steps": "many"}, headers={"HX-Request": "true"})
    assert wrong.status_code == 422
    assert "steps=many" in wrong.text


def test_a_recipe_fills_the_form_from_a_dropped_png_and_by_a_click(client: TestClient, place: Path) -> None:
    path = place / "outputs" / "earlier" / "00002.png"
    dropped = client.post("/recall/images", files={"recall": ("x.png", path.read_bytes(), "image/png")})
    clicked = client.get("/generate/form?image=outputs/earlier/00002.png")
    for text in (dropped.text, clicked.text):
        assert "a photo of sks robot on a hill</textarea>" in text
        assert re.search(r'name="seed"[^>]*value="9"', text)
    plain = client.post(
        "/recall/images", files={"recall": ("x.png", photo(1), "image/png")}, headers={"HX-Request": "1"}
    )
    assert plain.status_code == 422
    assert "has no recipe" in plain.text


def test_a_recipe_there_and_back_asks_for_the_same(place: Path) -> None:
    workspace = Workspace(place)
    recipe = RECIPE | {"refinement": {"factor": 2.0, "strength": 0.3, "detail": 0.0}}
    recipe |= {"loras": [{"file": "checkpoints/other", "weight": 0.5, "sha256": "0"}]}
    init = {"file": "outputs/earlier/00000.png", "sha256": "0", "strength": 0.4, "mask": None, "only_masked": False}
    request = request_of(form_of(recipe | {"init_image": init}, workspace))
    assert request.prompts == [RECIPE["prompt"]]
    assert (request.seed, request.steps, request.guidance_scale, request.size) == (7, 6, 4.0, "16x16")
    assert (request.upscale, request.strength, request.init_image) == (2.0, 0.4, "outputs/earlier/00000.png")
    assert [(each.file, each.weight) for each in request.loras] == [("checkpoints/other", 0.5)]


def test_without_a_seed_each_request_draws_one() -> None:
    seeds = {request_of(Form(model="m", prompt="x")).seed for _ in range(20)}
    assert len(seeds) > 15


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("vary-little", {"vary": "outputs/earlier/00000.png", "variation_strength": 0.2}),
        ("vary-much", {"vary": "outputs/earlier/00000.png", "variation_strength": 0.6}),
        ("reroll", {"num_images": 4, "size": "16x16"}),
        ("upscale", {"seed": 7, "upscale": 2.0, "num_images": 1}),
        ("like", {"init_image": "outputs/earlier/00000.png", "strength": 0.6}),
    ],
)
def test_more_is_made_of_an_image(client: TestClient, how: str, wanted: dict[str, Any]) -> None:
    asked = {"image": "outputs/earlier/00000.png", "how": how}
    here = client.post("/generate/again", data=asked, headers={"HX-Current-URL": "http://localhost/generate"})
    assert 'class="batch"' in here.text
    assert wanted.items() <= jobs_of(client)[0]["request"].items()
    assert not jobs_of(client)[0]["commands"][0].endswith(" --"), "which sample refuses where nothing follows"


PARTS: dict[str, Any] = {  # of recipes, that the form has no field for
    "the variation": {"variations": [{"seed": 3, "strength": 0.6}]},
    "embeddings": {"embeddings": [{"file": "models/word.pt", "word": "w", "sha256": "0"}]},
    "another VAE": {"vae": "models/vae.safetensors"},
    "more controls": {"controls": [{"kind": "canny", "file": "a.png"}, {"kind": "pose", "file": "b.png"}]},
    "added sides": {"init_image": {"file": "a.png", "strength": 0.5, "mask": None, "expand": [8, 0, 8, 0]}},
    "the strength of the upscale": {"refinement": {"factor": 2.0, "strength": 0.5, "detail": 0.0}},
}


@pytest.mark.parametrize("part", PARTS)
def test_recall_says_what_it_leaves_out_and_upscale_keeps_the_image(client: TestClient, place: Path, part: str) -> None:
    image = "outputs/earlier/00005.png"
    write_png(place / image, Image.new("RGB", (40, 32)), RECIPE | PARTS[part])
    for answer in (
        client.get(f"/generate/form?image={image}"),
        client.post("/recall/images", files={"recall": ("x.png", (place / image).read_bytes(), "image/png")}),
    ):
        assert f"also made with {part}." in answer.text
        assert Reader(answer.text).wrong == []
    assert "also made with" not in client.get("/generate/form?image=outputs/earlier/00000.png").text
    client.post("/generate/again", data={"image": image, "how": "upscale"})
    request = jobs_of(client)[0]["request"]
    wanted = {"init_image": image, "strength": 0.0, "size": "32x32", "upscale": 2.0}
    assert wanted.items() <= request.items(), "of the image itself, in sides that every model can draw"
    assert not {"mask", "controls", "detail", "style_image"} & request.keys()
    again = client.post("/generate/again", data={"image": image, "how": "reroll"}, headers={"HX-Request": "true"})
    assert (again.status_code, "Re-roll cannot repeat" in again.text) == (
        (204, False) if part == "the variation" else (422, True)
    )


def test_what_is_no_image_of_the_gallery_is_neither_marked_nor_shown(client: TestClient, place: Path) -> None:
    (place.parent / "secret.png").write_bytes(photo(1))
    there = "outputs/earlier/00000.png"
    for image in ("../secret.png", "outputs/nope.png", "data/robot/0.png"):
        for address, form in (("favourite", {"on": "yes"}), ("tags", {"tags": "sea", "add": "yes"})):
            answer = client.post(f"/images/{address}", data={"image": [there, image], **form})
            assert answer.status_code == 404, (address, image)
    found = client.get("/api/v1/images").json()["images"]
    assert sorted(each["image"] for each in found) == [f"outputs/earlier/0000{number}.png" for number in range(3)]
    assert not any(each["is_favourite"] or each["tags"] for each in found), "all of them, or none"


def test_the_gallery_finds_marks_deletes_and_brings_back(client: TestClient, place: Path) -> None:
    first, second = "outputs/earlier/00000.png", "outputs/earlier/00001.png"
    assert client.get("/gallery?search=hill").text.count('<li class="tile">') == 3
    assert "Nothing like that" in client.get("/gallery?search=moon").text
    client.post("/images/favourite", data={"image": first})
    client.post("/images/tags", data={"image": [first, second], "tags": "sea, blue", "add": "yes"})
    assert client.get("/gallery?favourites=true").text.count('<li class="tile">') == 1
    assert client.get("/gallery?tag=blue").text.count('<li class="tile">') == 2
    client.post("/images/favourite", data={"image": first})
    assert "Nothing like that" in client.get("/gallery?favourites=true").text
    said = client.post("/images/delete", data={"image": [first, second]})
    assert not (place / first).exists()
    client.post(json.loads(said.headers["hx-trigger"])["toast"]["action"]["url"])
    assert (place / first).is_file()
    assert (place / second).is_file()
    twice = client.post("/images/delete", data={"image": [first, first, second]})  # shown on two pages
    assert "2 images deleted" in twice.headers["hx-trigger"]
    client.post(json.loads(twice.headers["hx-trigger"])["toast"]["action"]["url"])
    assert (place / first).is_file()
    assert (place / second).is_file()
    belongs = client.post("/images/delete", data={"image": "data/robot/0.png"}, headers={"HX-Request": "true"})
    assert belongs.status_code == 422
    assert (place / "data" / "robot" / "0.png").is_file()


def test_a_large_gallery_comes_page_by_page(client: TestClient, place: Path) -> None:
    for number in range(65):
        shutil.copyfile(
            place / "outputs" / "earlier" / "00000.png", place / "outputs" / "earlier" / f"1{number:04d}.png"
        )
    text = client.get("/gallery?search=hill").text
    assert text.count('<li class="tile">') == 60
    (more,) = re.findall(r'hx-get="(/gallery/more[^"]*)"', text)
    rest = client.get(more.replace("&amp;", "&")).text
    assert rest.count('<li class="tile">') == 8
    assert "/gallery/more" not in rest


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x010E] = "secret"  # ImageDescription
    return found


def test_a_shared_folder_opens_without_the_studio(client: TestClient, place: Path) -> None:
    images = ["outputs/earlier/00000.png", "outputs/earlier/00001.png"]
    client.post("/images/share", data={"image": images, "name": "trip", "title": "A <trip>", "recipes": "on"})
    client.post("/images/share", data={"image": images, "name": "bare", "title": "x"})
    page = (place / "shared" / "trip" / "index.html").read_text()
    assert "A &lt;trip&gt;" in page
    assert RECIPE["prompt"] in page
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (place / "shared" / "trip" / name).is_file()
    assert read_recipe(place / "shared" / "trip" / "001.png")["seed"] == 7
    bare = place / "shared" / "bare"
    assert RECIPE["prompt"] not in (bare / "index.html").read_text()
    assert Image.open(bare / "001.png").info == {}, "without recipes the files hold pixels alone"
    for suffix, options in (("jpg", {"comment": b"secret", "exif": exif()}), ("webp", {"exif": exif()})):
        Image.new("RGB", (SIDE, SIDE)).save(place / "outputs" / "earlier" / f"9.{suffix}", **options)
        image = f"outputs/earlier/9.{suffix}"
        client.post("/images/share", data={"image": image, "name": suffix, "title": "x"})
        assert b"secret" in (place / image).read_bytes()
        assert b"secret" not in (place / "shared" / suffix / f"001.{suffix}").read_bytes()
    taken = client.post("/images/share", data={"image": images, "name": "trip"}, headers={"HX-Request": "true"})
    assert taken.status_code == 409


def test_shared_images_go_to_the_hub_when_asked(
    client: TestClient, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"image": ["outputs/earlier/00000.png"], "name": "trip", "title": "A trip", "recipes": "on"}
    with answering(monkeypatch) as hub:
        said = client.post("/images/share", data=form | {"repo": "me/trip"}).headers["hx-trigger"]
        assert "/me/robot shows 1 image, for you alone" in said
        hub.refuses = "/api/spaces/me/trip/commit"
        refused = client.post(
            "/images/share", data=form | {"name": "2", "repo": "me/trip"}, headers={"HX-Request": "1"}
        )
    received = dict(hub.received)
    created = received["/api/repos/create"]
    assert (created["type"], created["sdk"], created["name"]) == ("space", "static", "trip")
    lines = received["/api/spaces/me/trip/commit/main"]
    assert {line["value"]["path"] for line in lines if line["key"] == "file"} == {"index.html", "001.png"}
    assert refused.status_code == 422
    assert "--repo-type space" in refused.text
    assert (place / "shared" / "2" / "index.html").is_file(), "the folder stays"
    wrong = client.post("/images/share", data=form | {"name": "3", "repo": "trip"}, headers={"HX-Request": "1"})
    assert "repo: 'trip' names no owner" in wrong.text
    assert not (place / "shared" / "3").exists()


def test_models_are_exported_and_deleted_with_a_way_back(client: TestClient, place: Path) -> None:
    form = {"run": "my-robot", "kind": "diffusers", "dtype": "float16", "repo": "me/robot"}
    client.post("/models/export", data=form)
    asked = {"format": "diffusers", "push_to_hub": "me/robot", "private": True}
    assert asked.items() <= jobs_of(client)[0]["request"].items()
    client.post("/jobs/1/stop")
    text = client.get("/models").text
    assert "hx-confirm" in text
    said = client.post("/models/my-robot/delete")
    assert not (place / "checkpoints" / "my-robot").exists()
    client.post(json.loads(said.headers["hx-trigger"])["toast"]["action"]["url"])
    assert (place / "checkpoints" / "my-robot" / "config.yaml").is_file()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 240), (0, 7), (0.41, 0.47), (-3, 1e5), (0, 1e-6)])
def test_ticks_are_few_round_and_within_the_axis(low: float, high: float) -> None:
    found = charts.ticks(low, high, 4)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 * abs(high) <= each <= high * (1 + 1e-9) for each in found)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
    assert steps == {1.0}


def test_presets_are_the_usual_steps_and_parts_of_them() -> None:
    factors = {preset.name: preset.factor for preset in PRESETS}
    assert factors["quick"] < factors["balanced"] == 1 < factors["thorough"]
