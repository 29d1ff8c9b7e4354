"""The report of a run: what it reads, that it stands alone, and that a browser shows it."""

import csv
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import assert_is_shown, needs_browser
from PIL import Image

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.data.images import grid
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.generation.grids.grid import GridRow, draw_grid, write_grid
from dreambooth.home_folder import hide_home
from dreambooth.metrics.selection import Anchors, Quality
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.metrics.verdict import TRAIN_LONGER, Verdict
from dreambooth.report import build, content, curves, gallery, plots, words
from dreambooth.report.gallery import ShownPrompt
from dreambooth.report.records import Series
from dreambooth.report.samples import Samples

SIDE = 16  # pixels
NUM_IMAGES = 2
STEPS = (0, 10, 20, 30)
PROMPTS = (
    "a photo of a tree",
    "{subject} on a hill",
    "a {class}",
    "{subject} at sea",
    "a <script>alert(1)</script> & \"'",
)
QUALITY = {
    0: Quality(0.0, 1.0, 1.0),
    10: Quality(0.5, 1.0, 1.0),
    20: Quality(0.8, 0.9, 0.9),
    30: Quality(0.9, 0.43, 0.7),
}
ENCODERS = {
    "match": "blip2",
    "dino": "vit",
    "clip_t": "clip",
    "pres": "vit",
    "div": "cosine distance, vit",
    "drift": "vit",
}


def colour(step: int, prompt: int, seed: int) -> tuple[int, int, int]:
    return step, 40 * prompt + 20, 100 * seed


def write_samples(run: Path, side: int = SIDE) -> None:
    """As of a run that an earlier version began: its first grids are plain, the later ones have their prompts."""
    (run / "samples").mkdir(parents=True)
    for step in STEPS:
        rows = [
            [Image.new("RGB", (side, side), colour(step, prompt, seed)) for seed in range(NUM_IMAGES)]
            for prompt in range(len(PROMPTS))
        ]
        path = run / "samples" / f"step-{step:06d}.png"
        if step <= 10:
            grid([image for row in rows for image in row], columns=NUM_IMAGES).save(path)
        else:
            titled = [GridRow(prompt, row) for prompt, row in zip(PROMPTS, rows, strict=True)]
            write_grid(path, draw_grid(titled, f"step {step}"))


def write_journal(run: Path) -> None:
    """Numbers that name their place: 0.0 and 0.1 are of the first prompt of its kind, 0.2 and 0.3 of the second."""
    validation_log = ValidationLog(run / "logs" / "scores.jsonl")
    for step in STEPS:
        scores = {"dino": [0.0, 0.1, 0.2, 0.3], "clip_t": [0.3] * 4, "pres": [0.1, 0.2], "div": [0.4, 0.4]}
        scores |= {"match": [0.1, 0.1, 0.9, 0.9], "question_is_there_water__yes__at_sea": [0.6, 0.8]}
        if step:
            scores |= {"drift": [0.05, 0.15], "drift_other": [0.0, 0.1, 0.2, 0.3]}
        of_base = (Anchors(real=0.7, dino=0.3, pres=0.2, div=0.4), ENCODERS) if step == 0 else (None, None)
        validation_log.add(ValidationRecord(step, 0.2 - step / 1000, scores, QUALITY[step], *of_base))


def write_logs(run: Path) -> None:
    with open(run / "logs" / "metrics.csv", "w") as file:
        columns = ["step", "train/loss_instance", "train/loss_prior", *(f"train/loss_t{i}" for i in range(10))]
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for step in range(1, 31):
            row = {"step": step, "train/loss_instance": 1 / step, "train/loss_prior": 0.5}
            deciles = {f"train/loss_t{i}": 1 / (i + step) for i in range(10)} if step % 10 == 0 else {}
            writer.writerow(row | deciles)
        file.write("31,0.")  # torn by a kill
    session = {"started": "2026-01-02T03:04:05+00:00", "first_step": 0, "last_step": 30, "seconds": 75.0}
    session |= {"validation_seconds": 15, "peak_memory_mib": 2048, "device": "cpu"}
    (run / "logs" / "sessions.jsonl").write_text(json.dumps(session) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A finished run of 30 steps whose best is 20, with its report; every picture has a colour of its own."""
    folder = tmp_path_factory.mktemp("runs") / "my-robot"
    write_samples(folder)
    (folder / "logs").mkdir()
    write_journal(folder)
    write_logs(folder)
    write_config(folder, pictures)
    card = {"identifier": "sks", "class_noun": "robot", "prompt": "a photo of {subject}"}
    card |= {"class_prompt": "a {class}", "resolution": SIDE, "num_inference_steps": 2, "guidance_scale": 1, "step": 20}
    (folder / "model").mkdir()
    (folder / "model" / "dreambooth.json").write_text(json.dumps(card | {"last_step": 30}))
    build(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the same to change, without a report."""
    return shutil.copytree(finished, tmp_path / "my-robot", ignore=shutil.ignore_patterns("report.html"))


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return (finished / "report.html").read_text()


def write_config(folder: Path, pictures: Path) -> None:
    settings = {
        "run": {"name": folder.name},
        "model": {"base": "some/base"},
        "subject": {"images": str(pictures), "class_noun": "robot"},
        "data": {"resolution": SIDE},
        "train": {"max_steps": 30},
        "validate": {
            "prompts": list(PROMPTS),
            "num_images": NUM_IMAGES,
            "every_steps": 10,
            "reader": "blip2",
            "questions": ["at sea: is there water?"],
        },
        "provenance": {"torch": "2.13.0"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def seen_in(page: str) -> str:
    """Return what a reader sees: no tags, no style, white space as one blank."""
    page = re.sub(r"<style>.*?</style>|</?(b|code|small|span|strong)\b[^>]*>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


# what is read


def test_the_kept_step_is_named_with_what_it_does_better_than_the_last(finished, page):
    found = content.read(finished)
    assert (found.best_step, found.last_step, found.model_step) == (20, 30, 20)
    assert found.choice is not None
    assert found.choice.headline == "Step 20 of 30 is kept"
    assert found.choice.reason == (
        "its quality is 0.65, against 0.27 at the last step, "
        "which is nearer to the subject but follows prompts worse and kept less of the class."
    )
    assert "0.65 0.80 0.90 0.90" in seen_in(page), "the quality and its three factors"


def test_a_photo_the_best_image_the_verdict_and_what_to_do_next_stand_first(finished, page):
    text = seen_in(page)
    first = text[: text.index("Step 20 of 30 is kept")]
    assert "Learned Images of the subject are 80% of the way from the base's to the photos" in first
    assert "from step 30 on the run ignores prompts." in first
    assert f'What to do next Draw with it: python sample.py {finished} "a photo of {{subject}} on the beach"' in first
    assert "step 20, kept: “sks robot at sea”; the most like the photos, of 4" in first
    (subject,) = content.read(finished).subjects
    assert subject.best is not None
    assert subject.best.image.getpixel((0, 0)) == colour(20, 3, 1), "its likeness is the highest"


def test_of_two_subjects_each_has_an_image_of_itself(finished):
    samples = Samples(finished / "samples", len(PROMPTS), NUM_IMAGES, SIDE)
    owners = ((), (0,), (0,), (0, 1), ())
    kinds = ("other", "subject", "class", "subject", "other")
    prompts = [ShownPrompt(*each) for each in zip(PROMPTS, kinds, owners, strict=True)]
    log = ValidationLog(finished / "logs" / "scores.jsonl")
    found = [gallery.highlight(samples, prompts, log, 20, subject) for subject in range(3)]
    assert [each and each.prompt for each in found] == [PROMPTS[1], PROMPTS[3], None], "alone, if it can be"


@pytest.mark.parametrize(
    ("outcome", "advice", "command"),
    [
        ("learned", "sample it", "python sample.py checkpoints/dog"),
        ("not learned", TRAIN_LONGER, "python train.py checkpoints/dog/config.yaml train.max_steps=60"),
        ("forgot its class", "raise prior.weight", ""),
    ],
)
def test_what_to_do_next_follows_from_the_verdict(finished, outcome, advice, command):
    config = load_config(finished / "config.yaml", ["run.dir=checkpoints", "run.name=dog"])
    steps = words.next_steps(Path("checkpoints/dog"), config, Verdict(outcome, "why", advice), 20, 30)
    assert command in [step.command.partition(' "')[0] for step in steps]
    assert any(step.text == f"{advice[0].upper()}{advice[1:]}." for step in steps) == (outcome != "learned")
    (go_on,) = words.next_steps(Path("moved/dog"), config, Verdict(outcome, "why", advice), None, 30)
    assert go_on.command == "python train.py moved/dog/config.yaml run.dir=moved run.name=dog", (
        "the run has not ended, and was moved"
    )


def test_a_shell_finds_a_folder_with_a_blank_in_the_home_folder(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(finished / "config.yaml", ["run.dir=checkpoints", "run.name=dog"])
    folder = tmp_path / "my runs" / "dog"
    (go_on,) = words.next_steps(folder, config, Verdict("learned", "why", ""), None, 30)
    *_, draw = words.next_steps(folder, config, Verdict("learned", "why", ""), 20, 30)
    for command, path in ((go_on.command, folder / "config.yaml"), (draw.command, folder)):
        shown = hide_home(command)
        assert str(tmp_path) not in shown
        done = subprocess.run(["sh", "-c", f"printf '%s\\n' {shown}"], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[2] == str(path)
    assert hide_home(go_on.command).endswith(" 'run.dir=~/my runs' run.name=dog"), "the config expands it"


def test_a_run_that_its_patience_had_ended_goes_on_without(finished):
    config = load_config(finished / "config.yaml", ["run.dir=checkpoints", "run.name=dog", "train.max_steps=60"])
    steps = words.next_steps(Path("checkpoints/dog"), config, Verdict("not learned", "why", TRAIN_LONGER), 20, 30)
    longer = "python train.py checkpoints/dog/config.yaml train.max_steps=60 validate.patience=0"
    assert longer in [step.command for step in steps]


def test_where_a_later_step_is_kept_that_is_not_clearly_worse_the_page_says_that_it_is_not_decided(run):
    log = ValidationLog(run / "logs" / "scores.jsonl")
    log.path.unlink()
    log = ValidationLog(log.path)
    anchors = Anchors(real=0.9, dino=0.1, pres=0.1)
    for step, dino in ((0, [0.1] * 3), (20, [0.5, 0.7, 0.9]), (30, [0.8, 0.8, 0.4])):
        scores = {"dino": dino, "pres": [0.1] * 3}
        quality = Quality((sum(dino) / 3 - 0.1) / 0.8, 1.0, 1.0)
        log.add(ValidationRecord(step, 0.1, scores, quality, anchors if step == 0 else None))
    choice = words.choice(log, last_step=30)
    assert choice is not None
    assert (choice.headline, [each.step for each in choice.weighed]) == ("Step 30 of 30 is kept", [20, 30])
    assert "not clearly less than the 0.75 of step 20; which of them is better is not decided" in choice.reason


def test_every_picture_stands_at_its_prompt_step_and_seed(finished):
    for number, comparison in enumerate(content.read(finished).comparisons):
        assert comparison.prompt.text == PROMPTS[number].replace("{subject}", "sks robot").replace("{class}", "robot")
        assert [strip.step for strip in comparison.strips] == [0, 20, 30], "the base, the best and the last"
        for strip in comparison.strips:
            seen = [picture.getpixel((SIDE // 2, 0)) for picture in strip.images]
            assert seen == [colour(strip.step, number, seed) for seed in range(NUM_IMAGES)]


def test_the_film_shows_the_first_subject_prompt_at_every_step(finished):
    found = content.read(finished)
    assert found.film_prompt == "sks robot on a hill"
    assert [frame.step for frame in found.film] == list(STEPS)
    assert [frame.image.getpixel((0, 0)) for frame in found.film] == [colour(step, 1, 0) for step in STEPS]


def test_figures_beside_a_prompt_are_of_that_prompt_alone(finished):
    after = {each.prompt.text: each.strips[1].scores for each in content.read(finished).comparisons}
    assert after["sks robot on a hill"][0].startswith("DINO 0.050")
    assert after["sks robot at sea"][0].startswith("DINO 0.250")
    assert [figure[:11] for figure in after["sks robot on a hill"][2:]] == ["Match 0.100"], "it is not at sea"
    assert [figure.partition(" (")[0] for figure in after["sks robot at sea"][2:]] == [
        "Match 0.900 ± 0.000",
        "“at sea: is there water?” 0.700",
    ]
    assert [figure[:11] for figure in after["a robot"]] == ["Drift 0.100", "PRES 0.150 "]
    assert after["a photo of a tree"][0].startswith("Other drift 0.050")
    assert after[PROMPTS[4]][0].startswith("Other drift 0.250")


def test_scores_are_told_with_their_interval_their_direction_and_their_encoder(page):
    text = seen_in(page)
    assert "DINO ↑ subject prompts: similarity to the photos 0.150 ± 0.205" in text
    assert "PRES ↓" in text
    assert "Match ↑ subject prompts: probability that image and prompt belong together" in text
    assert "“at sea: is there water?” ↑ subject prompts: probability of the right answer 0.700" in text
    assert "Drift ↓ class prompts: distance to the base's images – 0.100" in text, "the base has no drift"
    assert "DINO, PRES, Drift by vit; CLIP-T by clip; DIV by cosine distance, vit" in text


def test_settings_versions_time_and_the_command_to_sample_are_told(finished, page):
    text = seen_in(page)
    for expected in (
        "train.max_steps 30 1000",
        "torch 2.13.0",
        "1 min 15 s in 1 session, at most 2.0 GiB",
        "15.0 s 0.50 2.0 GiB cpu",
    ):
        assert expected in text
    assert f'python sample.py {finished} "a photo of {{subject}} on the beach"' in text


def test_a_smoothed_curve_keeps_the_mean_and_every_step_counts_once():
    steps = np.arange(1, 2001)
    values = np.random.default_rng(0).random(2000)
    (panel,) = curves.panels(ValidationLog(Path("none")), {"train/loss_instance": Series(steps, values)})
    assert len(panel.curves[0].x) <= curves.NUM_BINS
    bin_steps = panel.curves[0].x[1] - panel.curves[0].x[0]
    weights = np.bincount((steps - 1) // int(bin_steps))
    assert np.average(panel.curves[0].y, weights=weights) == pytest.approx(values.mean())


# what is not there


def remove_logs(run: Path) -> None:
    shutil.rmtree(run / "logs")


def remove_samples(run: Path) -> None:
    shutil.rmtree(run / "samples")


def remove_base_grid(run: Path) -> None:
    (run / "samples" / "step-000000.png").unlink()


def change_a_grid(run: Path) -> None:
    Image.new("RGB", (50, 50)).save(run / "samples" / "step-000010.png")


def remove_model(run: Path) -> None:
    shutil.rmtree(run / "model")


def leave_scores_out(run: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 0.1, "scores": {}}) + "\n" for step in STEPS]
    (run / "logs" / "scores.jsonl").write_text("".join(lines))


def make_useless(run: Path) -> None:
    (run / "logs" / "scores.jsonl").unlink()
    validation_log = ValidationLog(run / "logs" / "scores.jsonl")
    for step in STEPS:
        validation_log.add(ValidationRecord(step, 0.1, {"dino": [0.1, 0.1]}, Quality(0, 1, 1)))


def stop_at_the_base(run: Path) -> None:
    for path in [*run.glob("samples/step-0000[1-9]0.png"), run / "logs" / "metrics.csv"]:
        path.unlink()
    validation_log = run / "logs" / "scores.jsonl"
    validation_log.write_text(validation_log.read_text().splitlines(keepends=True)[0])


def change_config(run: Path, section: str, **values: object) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings[section] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def move_photos(run: Path) -> None:
    change_config(run, "subject", images="no/such/folder")


def name_no_subject(run: Path) -> None:
    change_config(run, "validate", prompts=["a tree"] * len(PROMPTS), reader=None, questions=[])


@pytest.mark.parametrize(
    ("damage", "sentences"),
    [
        (
            remove_logs,
            ["Not validated The run", "No figures were logged.", "not log its time and memory"],
        ),
        (leave_scores_out, ["Not scored The run had no encoder to measure its images with", "Loss ↓"]),
        (make_useless, ["No step is better than the base: the quality at step 30 is 0.00."]),
        (stop_at_the_base, ["Not judged It takes two validations", "DINO ↑"]),
        (remove_samples, ["No sample grids of these prompts", "No images of class or unrelated prompts"]),
        (remove_base_grid, ["step 20, kept"]),
        (change_a_grid, ["Left out, as they are no grids of these prompts: step-000010.png."]),
        (remove_model, ["Learned so far", "there is no model yet. Go on from where it stopped: python train.py "]),
        (move_photos, ["The photos are no longer in no/such/folder, or cannot be read."]),
        (name_no_subject, ["No prompt of the run names the subject."]),
    ],
)
def test_what_a_run_lacks_is_said_in_its_place(run, damage: Callable[[Path], None], sentences):
    damage(run)
    text = seen_in(build(run).read_text())
    assert [sentence for sentence in sentences if sentence not in text] == []


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for folder, why in ((tmp_path, "it has no config.yaml"), (tmp_path / "none", "there is no such folder")):
        with pytest.raises(UserError, match=rf"{re.escape(str(folder))}: no run: {why}"):
            build(folder)


@pytest.mark.parametrize(
    ("name", "line"), [("scores.jsonl", "{}"), ("sessions.jsonl", "[1"), ("metrics.csv", "step,a\nx,1")]
)
def test_a_damaged_log_is_named(run, name, line):
    (run / "logs" / name).write_text(line + "\n")
    with pytest.raises(UserError, match=f"{name}: a line cannot be read"):
        build(run)
    assert not (run / "report.html").exists()


# the file


def test_the_page_stands_alone(page):
    assert page.startswith("<!DOCTYPE html>")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert len(sources) > 30
    assert all(source.startswith(("data:image/", "#")) for source in sources), "something is fetched from elsewhere"
    assert not re.search(r"url\((?!#)|@import|https?://", page)
    assert "<script" not in page
    assert "default-src 'none'" in page, "the page itself forbids what it does not need"


def test_a_prompt_is_text_and_never_markup(page):
    assert "a &lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;&#39;" in page
    assert PROMPTS[4] in seen_in(page)


def test_ids_are_unique_and_references_lead_to_them(page):
    page = re.sub(r"data:image[^\"]*", "", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page))
    assert {first or second for first, second in references} <= set(ids)
    assert references, "plots clip their curves and reuse their markers"


def test_plots_take_every_colour_from_the_page(finished):
    for panel in content.read(finished).panels:
        drawn = plots.svg(panel, "name", last_step=30, best_step=20)
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set(), "a colour that does not know dark from light"
        assert "var(--best)" in drawn, f"{panel.title} does not mark the best step"


def test_the_command_writes_the_same_bytes_again(finished, page, capsys):
    assert main(["report", str(finished)]) == 0
    assert capsys.readouterr().out.strip() == str(finished / "report.html")
    assert (finished / "report.html").read_text() == page


def test_the_command_answers_a_wrong_folder_in_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no run")


def test_large_pictures_are_embedded_smaller_and_small_ones_as_they_are(run, page, tmp_path):
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    noise_HWC = rng.integers(256, size=(600, 800, 3), dtype=np.uint8)
    Image.fromarray(noise_HWC).save(photos / "large.png")
    change_config(run, "subject", images=str(photos))
    large = build(run).read_text()
    assert 'width="512" height="384"' in large
    assert 'width="768" height="576"' in large, "in the first view"
    assert len(large) - len(page) < 1_500_000, "800 x 600 pixels of noise, the worst there is"
    assert 'width="16" height="16" class="toy"' in page


def test_a_run_without_scores_has_a_report(config_file):
    config = load_config(config_file)
    assert train(config) == 0
    text = seen_in(build(Path(config.run.dir) / config.run.name).read_text())
    assert "Not scored" in text
    assert "step 8, last" in text
    assert "Training loss" in text


# in a browser


@needs_browser
def test_a_browser_shows_the_whole_page_on_a_phone_and_on_a_desk(finished, tmp_path):
    assert_is_shown(finished / "report.html", tmp_path, num_plots=7)
