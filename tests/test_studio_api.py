"""The studio's API: what it answers, what it makes of a request, and what it refuses."""

import io
import json
import os
import shutil
import sqlite3
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient
from studio_workspace import SECRET, make_workspace

from dreambooth.generation.request import RECIPE
from dreambooth.studio import state, trash
from dreambooth.studio.app import create_app
from dreambooth.studio.guard import Access
from dreambooth.studio.problems import ConflictError
from dreambooth.studio.token import TokenFile
from dreambooth.studio.workspace import Workspace

API = "/api/v1"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


@pytest.fixture
def client(workspace: Workspace) -> Iterator[Any]:
    app = create_app(workspace, starts_jobs=False)
    with TestClient(app, base_url=f"http://127.0.0.1{API}/") as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return the client of a studio that no test changes."""
    app = create_app(make_workspace(tmp_path_factory.mktemp("studio")), starts_jobs=False)
    with TestClient(app, base_url=f"http://127.0.0.1{API}/") as made:
        yield made


def png(size: tuple[int, int] = (64, 64), text: dict[str, str] | None = None) -> bytes:
    about = PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        about.add_text(name, value)
    file = io.BytesIO()
    Image.new("RGB", size, "teal").save(file, "PNG", pnginfo=about)
    return file.getvalue()


# ------------------------------------------------------------------------------ subjects


def test_a_subject_is_made_filled_and_emptied(client: Any, workspace: Workspace):
    assert client.post("subjects", json={"name": "my cat"}).status_code == 201
    files = [("files", (name, png())) for name in ("a.png", "a.png", "no suffix", "..hidden.jpg", "C:\\x\\b.png")]
    answer = client.post("subjects/my cat/photos", files=[*files, ("files", ("b.png", b"no image"))])
    assert answer.status_code == 201, answer.text
    assert answer.json()["stored"] == ["a.png", "a-2.png", "no suffix.png", "hidden.png", "b.png"], "PNG by content"
    assert [each["name"] for each in answer.json()["refused"]] == ["b.png"]
    photos = client.get("subjects/my cat").json()["photos"]
    assert {photo["name"]: photo["size"] for photo in photos}["a.png"] == [64, 64]
    undo = client.delete("subjects/my cat/photos/a.png").json()["undo"]
    assert client.get("subjects/my cat/photos/a.png").status_code == 404
    assert client.post(f"trash/{undo}/restore").json() == {"restored": ["data/my cat/a.png"]}
    assert client.get("subjects/my cat/photos/a.png").content == png()
    undo = client.delete("subjects/my cat").json()["undo"]
    assert "my cat" not in [each["name"] for each in client.get("subjects").json()]
    client.post(f"trash/{undo}/restore")
    assert len(list((workspace.photos / "my cat").iterdir())) == 5


def test_captions_and_masks_lie_where_a_training_looks_for_them(client: Any, workspace: Workspace):
    assert client.put("subjects/robot/photos/00.png/caption", json={"text": "a photo of\n{subject}"}).status_code == 200
    assert (workspace.photos / "robot" / "00.txt").read_text() == "a photo of {subject}\n"
    assert client.get("subjects/robot").json()["photos"][0]["caption"] == "a photo of {subject}"
    (workspace.photos / "robot" / "00.TXT").write_text("an older one, which training would read first")
    client.put("subjects/robot/photos/00.png/caption", json={"text": "a robot"})
    assert client.get("subjects/robot").json()["photos"][0]["caption"] == "a robot"
    client.put("subjects/robot/photos/00.png/caption", json={"text": " "})
    assert not (workspace.photos / "robot" / "00.txt").exists()

    wrong = client.put("subjects/robot/photos/00.png/mask", content=png((32, 32)))
    assert (wrong.status_code, "as large as the photo" in wrong.text) == (422, True)
    for _ in range(2):
        assert client.put("subjects/robot/photos/00.png/mask", content=png()).json() == {"name": "00.png"}
    assert [path.name for path in (workspace.root / "data" / "robot-masks").iterdir()] == ["00.png"]
    assert client.get("subjects/robot/photos/00.png/mask").content == png()
    assert client.delete("subjects/robot/photos/00.png/mask").status_code == 200
    assert client.get("subjects/robot/photos/00.png/mask").status_code == 404


def twins_in(workspace: Workspace) -> Path:
    """Return a new subject's folder with an a.jpg and an a.png, as somebody has put them there."""
    folder = workspace.photos / "twin"
    folder.mkdir()
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (64, 64), "teal").save(folder / name)
    return folder


def test_uploads_never_share_the_name_before_their_ending(client: Any, workspace: Workspace):
    client.post("subjects", json={"name": "cat"})
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG")
    files = [("files", ("a.jpg", jpeg.getvalue())), ("files", ("a.png", png())), ("files", ("a.png", png()))]
    assert client.post("subjects/cat/photos", files=files).json()["stored"] == ["a.jpg", "a-2.png", "a-3.png"]


def test_photos_of_one_name_keep_their_own_captions(client: Any, workspace: Workspace):
    folder = twins_in(workspace)
    (folder / "a.txt").write_text("of both")
    refused = client.put("subjects/twin/photos/a.png/caption", json={"text": ""})
    assert (refused.status_code, refused.json()["detail"]) == (
        409,
        "a.png: shares its caption with a.jpg; rename all but one",
    )
    for name in ("a.jpg", "a.png", "a.png"):
        client.put(f"subjects/twin/photos/{name}/caption", json={"text": f"a {{subject}} in {name}"})
    captions = {each["name"]: each["caption"] for each in client.get("subjects/twin").json()["photos"]}
    assert captions == {"a.jpg": "a {subject} in a.jpg", "a.png": "a {subject} in a.png"}
    undo = client.delete("subjects/twin/photos/a.png").json()["undo"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.jpg", "a.jpg.txt", "a.txt"], "what is shared stays"
    client.post(f"trash/{undo}/restore")
    assert (folder / "a.png.txt").read_text() == "a {subject} in a.png\n"


def test_photos_of_one_name_share_their_mask_and_none_loses_it(client: Any, workspace: Workspace):
    folder = twins_in(workspace)
    mask = workspace.photos / "twin-masks" / "a.png"
    mask.parent.mkdir()
    mask.write_bytes(png())
    painted = client.put("subjects/twin/photos/a.png/mask", content=png((64, 64), {"other": "one"}))
    assert (painted.status_code, painted.json()["detail"]) == (
        409,
        "a.png: shares its mask with a.jpg; rename all but one",
    )
    assert client.delete("subjects/twin/photos/a.jpg/mask").status_code == 409
    client.delete("subjects/twin/photos/a.png")
    assert mask.read_bytes() == png()
    assert [path.name for path in mask.parent.iterdir()] == ["a.png"]
    assert client.put("subjects/twin/photos/a.jpg/mask", content=png()).status_code == 200
    client.delete("subjects/twin/photos/a.jpg")
    assert (list(folder.iterdir()), mask.exists()) == ([], False), "the last one takes its mask along"


def bomb() -> bytes:
    """Return a PNG of a few KiB that says it has 30000 x 30000 pixels."""
    content = bytearray(png())
    content[16:24] = (30000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros.png", bytes(2**20))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 422, "not an image"),
        (b"GIF89a", 422, "not an image"),
        (png()[:-30], 422, "cut short"),
        (archive(), 422, "not an image"),
        (bomb(), 413, "pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "not an image"),
        (png((4, 4)), 422, "needs 16 or more"),
        (png((16, 16)), 201, ""),
    ],
    ids=["empty", "torn", "cut", "zip", "bomb", "postscript", "tiny", "small"],
)
def test_only_images_are_taken(client: Any, workspace: Workspace, content: bytes, status: int, reason: str):
    answer = client.post("images", content=content)
    assert (answer.status_code, reason in answer.text) == (status, True), answer.text
    assert len(list(workspace.uploads.iterdir())) == (status == 201), "what is refused leaves no trace"


# ------------------------------------------------------------------------------ runs and images


def test_a_run_is_shown_as_its_folder_has_it(client: Any):
    (brief,) = client.get("runs").json()
    assert (brief["name"], brief["step"], brief["max_steps"], brief["has_model"]) == ("robot", 8, 8, True)
    assert brief["is_finished"]
    assert brief["subjects"] == ["<sks> robot"]
    shown = client.get("runs/robot").json()
    assert shown["config"]["train"]["max_steps"] == 8
    assert [each["step"] for each in shown["scores"]] == [0, 4, 8]
    assert shown["scores"][1]["eval/dino"] == pytest.approx(0.6576, abs=1e-4)
    assert shown["samples"] == ["checkpoints/robot/samples/step-000008.png"]
    metrics = client.get("runs/robot/metrics", params={"after": 5}).json()
    assert metrics["columns"][:2] == ["step", "train/loss"]
    assert [row[0] for row in metrics["rows"]] == [6, 7, 8]
    few = client.get("runs/robot/metrics", params={"limit": 3, "after": -1}).json()
    assert [row[0] for row in few["rows"]] == [0, 4, 8]
    assert client.get("runs/robot/config").text.startswith("run:")
    disk = client.get("runs/robot/disk").json()
    assert disk["model"] + disk["logs"] + disk["samples"] < disk["total"]


def test_a_run_is_deleted_only_by_its_name_and_can_come_back(client: Any):
    assert client.delete("runs/robot").status_code == 422
    made = client.post("jobs", json={"kind": "train", "run": "robot"}).json()
    assert f"job {made['id']}" in client.delete("runs/robot?confirm=robot").json()["detail"]
    client.post(f"jobs/{made['id']}/cancel")
    undo = client.delete("runs/robot?confirm=robot").json()["undo"]
    assert client.get("runs").json() == []
    client.post(f"trash/{undo}/restore")
    assert client.get("runs/robot").json()["step"] == 8


def test_the_photos_of_a_training_that_is_not_over_stay(client: Any, workspace: Workspace):
    (workspace.runs / "other").mkdir()
    (workspace.runs / "other" / "config.yaml").write_text(
        f"run: {{name: other, dir: {workspace.runs}}}\nmodel: {{base: checkpoints/toyworld}}\n"
        "subject: {images: data/robot, class_noun: robot}\n"
    )
    made = client.post("jobs", json={"kind": "train", "run": "other"}).json()
    client.post(f"jobs/{made['id']}/pause")
    assert client.delete("subjects/robot").status_code == 409
    client.post(f"jobs/{made['id']}/cancel")
    assert client.delete("subjects/robot").status_code == 200


def test_a_run_that_a_terminal_trains_is_not_deleted(client: Any, workspace: Workspace):
    (workspace.runs / "robot" / "state").mkdir(exist_ok=True)
    lock = workspace.runs / "robot" / "state" / "lock"
    lock.write_text(f"here {os.getpid()}")
    refused = client.delete("runs/robot?confirm=robot")
    assert (refused.status_code, refused.json()["detail"]) == (409, "robot: a terminal trains there; end it first")
    assert lock.is_file()
    lock.unlink()
    assert client.delete("runs/robot?confirm=robot").status_code == 200


@pytest.mark.parametrize("settings", [{}, {"train.max_steps": "auto"}, {"subject.images": "data/second-robot"}])
def test_the_photos_of_a_fork_that_waits_stay(client: Any, settings: dict[str, Any]):
    fork = {"kind": "train", "config": "checkpoints/robot/config.yaml", "name": "rex", "settings": settings}
    assert client.post("jobs", json=fork).status_code == 201
    needed, other = ("second-robot", "robot") if "subject.images" in settings else ("robot", "second-robot")
    refused = client.delete(f"subjects/{needed}")
    assert (refused.status_code, "job 1, which is queued, needs these photos" in refused.text) == (409, True)
    assert client.delete(f"subjects/{other}").status_code == 200


def test_the_photos_in_a_config_that_leaves_its_run_to_the_studio_stay(client: Any, workspace: Workspace):
    (workspace.root / "configs").mkdir()
    (workspace.root / "configs" / "rex.yaml").write_text(
        "model: {base: checkpoints/toyworld}\nsubject: {images: data/robot, class_noun: robot}\noptim: {lr: auto}\n"
    )
    assert client.post("jobs", json={"kind": "train", "config": "configs/rex.yaml"}).status_code == 201
    assert client.delete("subjects/robot").status_code == 409


def test_a_job_with_a_wrong_config_keeps_no_photos(client: Any, workspace: Workspace):
    (workspace.root / "configs").mkdir()
    (workspace.root / "configs" / "wrong.yaml").write_text("subject: {images: data/robot, no: 1}\n")
    assert client.post("jobs", json={"kind": "train", "config": "configs/wrong.yaml"}).status_code == 201
    assert client.delete("subjects/robot").status_code == 200


def test_images_come_with_their_recipe(client: Any, workspace: Workspace):
    found = client.get("images").json()
    assert found["total"] == 2
    image = "outputs/job-0/00000.png"
    assert client.get(f"images/{image}").content == (workspace.root / image).read_bytes()
    recipe = client.get(f"images/{image}/recipe").json()
    assert recipe["prompt"] == "a photo of a red car on the beach"
    text = client.get(f"images/{image}/base64").json()
    assert (text["type"], text["recipe"]) == ("image/png", recipe)
    small = client.get(f"images/{image}/thumbnail", params={"side": 128})
    assert Image.open(io.BytesIO(small.content)).format == "WEBP"
    uploaded = client.post("images", content=(workspace.root / image).read_bytes()).json()
    assert uploaded["recipe"] == recipe, "a dropped PNG says how it was made"
    assert client.get(f"images/{uploaded['image']}").status_code == 200


def test_images_are_searched_marked_and_deleted(client: Any, workspace: Workspace):
    image = "outputs/job-0/00000.png"
    assert client.get("images", params={"search": "BEACH red"}).json()["total"] == 1
    assert client.get("images", params={"search": "100%"}).json()["total"] == 0
    client.patch(f"images/{image}", json={"is_favourite": True, "tags": ["sea", "sea"]})
    (found,) = client.get("images", params={"tag": "sea", "favourites": True}).json()["images"]
    assert (found["image"], found["tags"], found["seed"]) == (image, ["sea"], 7)
    undo = client.delete(f"images/{image}").json()["undo"]
    assert client.get(f"images/{image}").status_code == 404
    client.post(f"trash/{undo}/restore")
    assert client.patch(f"images/{image}", json={}).json()["tags"] == ["sea"], "marks come back with it"
    (workspace.root / "outputs" / "job-0" / "00002.png").write_bytes(png())
    client.patch(f"images/{image}", json={})
    assert client.get("images").json()["total"] == 3, "what a terminal makes is found"


def test_only_images_of_the_gallery_get_marks(client: Any, workspace: Workspace):
    (workspace.root / "outputs" / "job-0" / "grid-00000.png").write_bytes(png())
    for image in ("data/robot/00.png", "outputs/job-0/grid-00000.png", "outputs/nope.png"):
        assert client.patch(f"images/{image}", json={"is_favourite": True}).status_code == 404
    assert client.get("images").json()["total"] == 2
    assert client.get("images", params={"favourites": True}).json()["total"] == 0


def test_an_image_whose_folder_went_while_no_server_ran_leaves_the_gallery(workspace: Workspace):
    for number in (2, 0):
        with TestClient(create_app(workspace, starts_jobs=False), base_url=f"http://127.0.0.1{API}/") as client:
            assert client.get("images").json()["total"] == number
        shutil.rmtree(workspace.outputs / "job-0", ignore_errors=True)


def write_odd_image(folder: Path, kind: str) -> None:
    """Write what a terminal may leave in outputs/, and no gallery expects."""
    if kind == "link":
        (folder / "odd.png").symlink_to("/nowhere/x.png")
    elif kind == "name":
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(png())
    elif kind == "folder":
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9")).mkdir()
    elif kind == "nested":
        (folder / "odd.png").write_bytes(png(text={RECIPE: "[" * 100_000}))
    elif kind == "letter":
        (folder / "odd.png").write_bytes(png(text={RECIPE: json.dumps({"prompt": "\ud800"})}))
    elif kind == "time":
        (folder / "odd.png").write_bytes(png())
        os.utime(folder / "odd.png", ns=(2**63, 2**63))
    else:
        (folder / "odd.png").write_bytes(png(text={RECIPE: json.dumps({"prompt": "x", "seed": int(kind)})}))


ODD = {"link": 2, "name": 2, "folder": 2, "nested": 3, "letter": 2, "time": 2, str(-(2**70)): 3, str(2**70): 3}


@pytest.mark.parametrize(("kind", "total"), ODD.items(), ids=list(ODD))
def test_what_the_index_cannot_hold_does_not_hide_the_other_images(
    client: Any, workspace: Workspace, kind: str, total: int
):
    try:
        write_odd_image(workspace.outputs / "job-0", kind)
    except OSError as error:
        pytest.skip(f"this file system has no such file: {error}")
    if kind == "time" and (workspace.outputs / "job-0" / "odd.png").stat().st_mtime_ns < 2**63:
        pytest.skip("this file system has no such time")
    assert client.get("images").json()["total"] == total
    assert all(client.get(f"http://127.0.0.1/{page}").status_code == 200 for page in ("gallery", "generate"))


def test_a_look_that_fails_does_not_stop_the_next_one(client: Any, workspace: Workspace):
    gallery = client.app.state.studio.gallery
    with sqlite3.connect(workspace.own / "images.sqlite") as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON images BEGIN SELECT RAISE(ABORT, 'full'); END")
        other.commit()
        with pytest.raises(sqlite3.IntegrityError, match="full"):
            gallery.look(at_once=True)
        other.execute("DROP TRIGGER full")
    other.close()
    assert client.get("images").json()["total"] == 2, "no folder counts as looked at that was not"


def test_files_go_to_the_trash_all_or_none(client: Any, workspace: Workspace):
    first, gone = workspace.outputs / "job-0" / "00000.png", workspace.outputs / "job-0" / "gone.png"
    with pytest.raises(ConflictError, match=r"outputs/job-0/gone.png: cannot be moved to the trash \(No such file"):
        trash.throw_away(workspace, first, gone)
    assert first.is_file()
    assert list((workspace.outputs / ".trash").iterdir()) == []


def test_a_job_that_many_newer_ones_follow_is_still_seen(
    client: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(state, "NUM_RECENT", 3)
    store = client.app.state.studio.store
    first, second, *newer = (client.post("jobs", json=GENERATE).json()["id"] for _ in range(6))
    store.change(first, ("queued",), "running")
    for number in newer:
        client.post(f"jobs/{number}/cancel")
    assert [job["id"] for job in client.get("jobs").json()["jobs"]] == [*reversed(newer[-3:]), second, first]
    counts = client.get("status").json()["jobs"]
    assert (counts["running"], counts["queued"], counts["cancelled"]) == (1, 1, 4)
    page = client.get("http://127.0.0.1/queue").text
    assert f"/jobs/{first}/stop" in page
    assert "Nothing runs" not in client.get("http://127.0.0.1/queue/now").text


def test_models_are_listed(client: Any):
    found = {each["model"]: each for each in client.get("models").json()["models"]}
    assert set(found) == {"checkpoints/robot", "checkpoints/toyworld", "checkpoints/toyworld-second"}
    assert (found["checkpoints/robot"]["kind"], found["checkpoints/toyworld"]["kind"]) == ("run", "pipeline")
    assert found["checkpoints/toyworld"]["resolution"] == 64
    hub = {each["model"]: each["resolution"] for each in client.get("models").json()["hub"]}
    assert (hub["stable-diffusion-v1-5/stable-diffusion-v1-5"], hub["Tongyi-MAI/Z-Image"]) == (512, 1024)


# ------------------------------------------------------------------------------ jobs


def commands_of(client: Any, request: dict[str, Any]) -> list[str]:
    answer = client.post("jobs", json=request)
    assert answer.status_code == 201, answer.text
    return [each.removeprefix("python -m dreambooth ") for each in answer.json()["commands"]]


def test_a_request_becomes_the_command_that_one_would_type(client: Any, workspace: Workspace):
    new = {"kind": "train", "subject": "robot", "class_noun": "robot", "base": "checkpoints/toyworld", "name": "robbie"}
    assert commands_of(client, {**new, "settings": {"train.max_steps": 40, "validate.prompts": ["a {subject}"]}}) == [
        "new --class=robot --identifier=sks --out=configs/robbie.yaml --base=checkpoints/toyworld -- data/robot",
        "train configs/robbie.yaml train.max_steps=40 'validate.prompts=[\"a {subject}\"]' run.name=robbie "
        "run.dir=checkpoints",
    ]
    go_on = {"kind": "train", "run": "robot", "settings": {"optim.lr": 1e-4}, "accepted_changes": ["optim.lr"]}
    assert commands_of(client, go_on) == [
        "train checkpoints/robot/config.yaml optim.lr=0.0001 run.name=robot run.dir=checkpoints --override optim.lr"
    ]
    fork = {"kind": "train", "config": "checkpoints/robot/config.yaml", "name": "robot-2"}
    assert commands_of(client, fork) == ["train checkpoints/robot/config.yaml run.name=robot-2 run.dir=checkpoints"]
    generate = {"kind": "generate", "model": "checkpoints/robot", "prompts": ["--help", "it's {subject}"], "seed": 3}
    (command,) = commands_of(client, generate)
    assert command == "sample --seed=3 --out=outputs/job-4 -- checkpoints/robot --help 'it'\"'\"'s {subject}'"
    prepare = {"kind": "prepare", "subject": "robot", "class_noun": "robot", "accept": ["captions", "masks"]}
    assert commands_of(client, prepare) == [
        "prepare --accept captions masks --out=outputs/job-5 --class=robot -- data/robot"
    ]
    export = {"kind": "export", "run": "robot", "format": "kohya"}
    assert commands_of(client, export) == [
        "export --format=kohya --dtype=float16 --out=checkpoints/robot/exports/kohya -- checkpoints/robot"
    ]


def test_the_options_of_an_image_become_those_of_sample(client: Any):
    request = {
        "kind": "generate", "model": "checkpoints/robot", "prompts": ["x"], "num_images": 2, "size": "64x96",
        "init_image": "outputs/job-0/00000.png", "mask": "data/robot/00.png", "strength": 0.5, "only_masked": True,
        "controls": [{"kind": "canny", "image": "data/robot/01.png", "weight": 0.5, "end": 0.8}],
        "loras": [{"file": "checkpoints/robot", "weight": 0.7}], "styles": ["watercolour"],
        "grid": ["seed=1,2"], "upscale": 2, "score": True, "steps": 3,
    }  # fmt: skip
    (command,) = commands_of(client, request)
    for option in (
        "--num-images=2", "--size=64x96", "--init-image=outputs/job-0/00000.png", "--mask=data/robot/00.png",
        "--strength=0.5", "--only-masked", "--control=canny=data/robot/01.png:0.5:0.0-0.8", "--upscale=2.0",
        "--lora=checkpoints/robot:0.7", "--style=watercolour", "--grid=seed=1,2", "--score", "--steps=3",
    ):  # fmt: skip
        assert f" {option} " in command, command


def test_the_commands_are_ones_that_the_program_reads(client: Any):
    """Parse what the examples of the API's page become, by the commands' own parsers."""
    import shlex

    from dreambooth.cli import _overview

    schemas = client.get("openapi.json").json()["components"]["schemas"]
    requests = [schemas[f"{name}Request"] for name in REQUESTS]
    examples = [example for schema in requests for example in schema["examples"] if "vary" not in example]
    assert len(examples) >= 6
    for example in examples:
        if example.get("name") == "robot":
            example["name"] = "another"
        answer = client.post("jobs", json=example)
        assert answer.status_code == 201, answer.text
        for command in answer.json()["commands"]:
            _overview().parse_args(shlex.split(command)[3:])
        client.post(f"jobs/{answer.json()['id']}/cancel")


def test_the_page_of_the_api_has_every_route_and_loads_nothing_from_elsewhere(client: Any):
    page = client.get("docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in client.get("openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page.text
    assert "checkpoints/toyworld-second" in page.text, "examples"
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert client.get("docs.css").headers["content-type"].startswith("text/css")


def test_jobs_are_moved_changed_and_removed(client: Any):
    new = {"kind": "generate", "model": "checkpoints/robot", "prompts": ["x"]}
    first, second = (client.post("jobs", json=new).json()["id"] for _ in range(2))
    assert client.post(f"jobs/{second}/move", json={"before": first}).status_code == 200
    listed = client.get("jobs").json()
    assert listed["queue"] == [second, first]
    assert [job["id"] for job in listed["jobs"]] == [second, first]
    client.patch(f"jobs/{first}", json={"priority": 9, "timeout_s": 60})
    assert client.get(f"jobs/{first}").json()["priority"] == 9, "seen at once"
    assert client.get("jobs").json()["queue"] == [first, second]
    assert client.post(f"jobs/{first}/pause").json()["state"] == "paused"
    assert client.post(f"jobs/{first}/resume").json()["state"] == "queued"
    assert client.delete(f"jobs/{first}").status_code == 409
    assert client.post(f"jobs/{first}/cancel").json()["state"] == "cancelled"
    assert client.post(f"jobs/{first}/pause").status_code == 409
    assert client.post(f"jobs/{first}/retry").json()["state"] == "queued"
    client.post(f"jobs/{first}/cancel")
    assert client.delete(f"jobs/{first}").status_code == 204
    assert client.get(f"jobs/{first}").status_code == 404
    assert client.get("jobs", params={"state": "queued"}).json()["queue"] == [second]


def test_progress_is_read_from_the_log_and_the_folder(client: Any, workspace: Workspace):
    generate = client.post("jobs", json={"kind": "generate", "model": "checkpoints/robot", "prompts": ["x"]}).json()
    folder = workspace.jobs / str(generate["id"])
    folder.mkdir()
    (folder / "log.txt").write_text(
        "loading\nsampling   8% image 1/12\nsampling  42% image 5/12, 1:00:41 left\nnote: x\n"
    )
    (workspace.root / generate["output"]).mkdir()
    for name in ("00000.png", "grid-00000.png", "attention-00000.png"):
        (workspace.root / generate["output"] / name).write_bytes(png())
    progress = client.get(f"jobs/{generate['id']}").json()["progress"]
    assert (progress["fraction"], progress["text"]) == (0.42, "image 5/12, 1:00:41 left")
    assert progress["seconds_left"] == 3641
    assert progress["images"] == [f"{generate['output']}/00000.png"]
    (workspace.root / generate["output"] / "grid.html").write_text("<p>a grid</p>")
    page = client.get(f"jobs/{generate['id']}/page")
    assert (page.text, page.headers["content-security-policy"][:7]) == ("<p>a grid</p>", "sandbox")
    train = client.post("jobs", json={"kind": "train", "run": "robot"}).json()["progress"]
    assert (train["step"], train["max_steps"], train["fraction"]) == (8, 8, 1.0)
    assert train["loss"] > 0
    assert set(train["scores"]) >= {"eval/dino", "eval/quality"}
    log = client.get(f"jobs/{generate['id']}/log", params={"offset": 8}).json()
    assert log["text"].startswith("sampling   8%")
    assert client.get(f"jobs/{generate['id']}/log", params={"offset": log["offset"]}).json()["text"] == ""


REQUESTS = ("Train", "Generate", "Evaluate", "Prepare", "Export")
TRAIN = {"kind": "train", "subject": "robot", "class_noun": "robot", "name": "new"}
GENERATE = {"kind": "generate", "model": "checkpoints/robot", "prompts": ["x"]}


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"kind": "mine bitcoin"}, 422, "kind"),
        ({**TRAIN, "unknown": 1}, 422, "unknown"),
        ({**TRAIN, "run": "robot"}, 422, "subject, config, run: name exactly one"),
        ({**TRAIN, "class_noun": None}, 422, "class_noun: is needed"),
        ({**TRAIN, "name": "../new"}, 422, "no name for a folder"),
        ({**TRAIN, "name": "-x"}, 422, "no name for a folder"),
        ({**TRAIN, "name": "robot"}, 409, "there is checkpoints/robot already"),
        ({**TRAIN, "subject": "../work"}, 404, "there is nothing of this name"),
        ({**TRAIN, "base": "/etc"}, 404, "there is nothing of this name"),
        ({**TRAIN, "base": "checkpoints/../../secret.txt"}, 404, "there is nothing of this name"),
        ({**TRAIN, "settings": {"train.max_stepz": 1}}, 422, "unknown key"),
        ({**TRAIN, "settings": {"train.max_steps": -1}}, 422, "train.max_steps"),
        ({**TRAIN, "settings": {"run.dir": "x"}}, 422, "is decided by the workspace"),
        ({**TRAIN, "settings": {"prior.folder": "/etc"}}, 422, "leads out of the workspace"),
        ({**TRAIN, "settings": {"prior.folder": "data/../../x"}}, 422, "leads out of the workspace"),
        ({**TRAIN, "settings": {"validate.images": "~/x"}}, 422, "leads out of the workspace"),
        ({**TRAIN, "settings": {"model.base": "a" * 300}}, 422, "settings.model.base='aaa"),
        ({**TRAIN, "name": "\N{DOG FACE}" * 90}, 422, "no name for a folder"),
        ({**GENERATE, "init_image": "\N{DOG FACE}" * 90}, 404, "there is nothing of this name"),
        ({**TRAIN, "settings": {"data.mask": "${oc.env:HOME}"}}, 422, "is not allowed"),
        ({**TRAIN, "accepted_changes": ["--profile"]}, 422, "unknown key"),
        ({**GENERATE, "model": "checkpoints/nothing"}, 404, "there is nothing of this name"),
        ({**GENERATE, "model": "file:///etc/passwd"}, 404, "there is nothing of this name"),
        ({**GENERATE, "prompts": ["__a/../../../secret__"]}, 422, "a wildcard leads out"),
        ({**GENERATE, "init_image": "../secret.png"}, 404, "there is nothing of this name"),
        ({**GENERATE, "styles": ["../secret.png"]}, 422, "no name of the list"),
        ({**GENERATE, "grid": ["model=/etc/passwd"]}, 422, "leads out of the workspace"),
        ({**GENERATE, "grid": ["seed=1,2", "x=lora:../a"]}, 422, "leads out of the workspace"),
        ({"kind": "train", "config": "data/robot/00.png", "name": "n"}, 422, "is no config"),
        ({"kind": "train", "config": "checkpoints/robot/model/dreambooth.json", "name": "n"}, 422, "is no config"),
        ({**GENERATE, "vary": "outputs/job-0/00000.png"}, 422, "give exactly one"),
        ({**GENERATE, "num_images": 10**9}, 422, "num_images"),
        ({**GENERATE, "num_images": "many"}, 422, "num_images"),
        ({"kind": "export", "run": "robot", "format": "pickle"}, 422, "format"),
        ({"kind": "evaluate", "models": [], "subject": "robot"}, 422, "models"),
        ([], 422, ""),
        (None, 422, ""),
        ({**GENERATE, "prompts": ["x" * 5000]}, 422, "prompts"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_queued(shared: Any, request_: Any, status: int, said: str):
    answer = shared.post("jobs", json=request_)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text
    assert shared.get("jobs").json()["jobs"] == []


def test_a_recipe_that_names_files_outside_is_not_followed(client: Any):
    recipe = {
        "prompt": "x", "seed": 0, "model": "checkpoints/robot", "width": 64, "height": 64, "num_inference_steps": 1,
        "guidance_scale": 1.0, "scheduler": "ddim", "vae": "/etc",
    }  # fmt: skip
    image = client.post("images", content=png(text={RECIPE: json.dumps(recipe)})).json()["image"]
    answer = client.post("jobs", json={"kind": "generate", "from_image": image})
    assert (answer.status_code, "its recipe names /etc (vae)" in answer.text) == (422, True), answer.text
    own = client.post("jobs", json={"kind": "generate", "vary": "outputs/job-0/00000.png", "num_images": 2})
    assert own.status_code == 201, own.text


# ------------------------------------------------------------------------------ who may do what


BAD_NAMES = ["..", "../secret.txt", "..%2f..%2fsecret.txt", "%2e%2e/secret.png", ".studio", "/etc/passwd", "a%00b"]
BAD_NAMES += [
    "data/../../secret.png",
    "outputs/link.png",
    "-",
    "a" * 5000,
    "/".join("a" * 5000),
    "\N{DOG FACE}" * 90,
    "\\..\\secret.txt",
    "checkpoints/robot/config.yaml",
]


def test_no_route_leads_out_of_the_workspace_or_fails(client: Any, workspace: Workspace):
    (workspace.root / "outputs" / "link.png").symlink_to(workspace.root.parent / "secret.png")
    (workspace.root / "data" / "link").symlink_to(workspace.root.parent)
    secret = (workspace.root.parent / "secret.png").read_bytes()
    routes = client.get("openapi.json").json()["paths"]
    assert len(routes) > 25
    for path, methods in routes.items():
        if "{" not in path or path.endswith("/events"):
            continue
        for name in [*BAD_NAMES, "link"]:
            url = path.removeprefix(API).lstrip("/")
            for part in ("subject", "photo", "run", "image", "number", "name"):
                url = url.replace(f"{{{part}}}", name)
            for method in methods:
                answer = client.request(method.upper(), url, json={})
                assert answer.status_code < 500, (method, url, answer.text)
                assert SECRET not in answer.text
                assert answer.content != secret or name == "00.png", (method, url)


def test_other_sites_and_other_names_are_refused(client: Any):
    assert client.get("status", headers={"Host": "evil.example"}).status_code == 421
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        answer = client.post("subjects", json={"name": "x"}, headers=headers)
        assert (answer.status_code, "another site" in answer.text) == (403, True)
    assert client.post("subjects", json={"name": "x"}, headers={"Origin": "http://127.0.0.1"}).status_code == 201


def test_every_answer_has_the_headers_that_keep_a_page_safe(client: Any):
    for path in ("status", "nothing", "jobs/99", "images/outputs/job-0/00000.png"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_a_studio_for_others_asks_for_its_token(workspace: Workspace):
    token = TokenFile(workspace.own / "token.json")
    shown = token.renew()
    assert shown not in token.path.read_text()
    assert token.path.stat().st_mode & 0o077 == 0
    app = create_app(workspace, Access(token, ["studio.example"], wrong_tokens=3), starts_jobs=False)
    with TestClient(app, base_url="http://studio.example") as client:
        assert client.get(f"{API}/status").status_code == 401
        assert client.get(f"{API}/status", headers={"Authorization": f"Bearer {shown}"}).status_code == 200
        assert client.get(f"{API}/status", headers={"Authorization": f"Bearer {shown}x"}).status_code == 401
        assert client.post(f"{API}/login", json={"token": "wrong"}).status_code == 401
        assert client.post(f"{API}/login", json={"token": "wrong"}).status_code == 429
        assert client.get(f"{API}/status", headers={"Authorization": f"Bearer {shown}"}).status_code == 200, "known"
        assert client.get(f"{API}/status").status_code == 401
        answer = client.post(f"{API}/login", json={"token": shown})
        assert answer.status_code == 200
        assert "HttpOnly; SameSite=Strict" in answer.headers["set-cookie"]
        assert client.get(f"{API}/status").status_code == 200, "by the cookie"
    assert not token.matches(shown[:-1])


def test_a_client_that_asks_too_often_has_to_wait(workspace: Workspace):
    app = create_app(workspace, Access(rate=0.001, burst=3), starts_jobs=False)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answers = [client.get(f"{API}/status") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) > 0


def test_a_body_that_nests_without_end_is_refused(client: Any):
    answer = client.post("jobs", content=b"[" * 2**19, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)


def test_a_body_that_says_it_is_too_large_is_not_received(client: Any):
    answer = client.post("jobs", content=b"x" * (2**20 + 1))
    assert (answer.status_code, "larger than" in answer.text) == (413, True)
