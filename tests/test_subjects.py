"""Several subjects in one run: how they are named, that they come equally often, and what becomes of each."""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from test_interruptions import SETTINGS, assert_equal_runs, folder, interrupt
from warm import Warm

from dreambooth import build
from dreambooth.checkpointing import find_state
from dreambooth.cli import main
from dreambooth.config import Change, Config, SubjectConfig, load_config, restricted_changes, to_dict
from dreambooth.data.captions import Captions
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import ImageFolder, list_images, open_folder
from dreambooth.data.latents import EncodedImage, LatentDataset
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.evaluation.models import learned_by
from dreambooth.families import Family, load_family
from dreambooth.generation.grids.grid import cut
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.request import read_recipe
from dreambooth.methods.base import MethodSettings
from dreambooth.methods.table import METHODS
from dreambooth.methods.textual_inversion import WORD_FILE, word_file
from dreambooth.metrics.selection import Anchors
from dreambooth.metrics.subject import SubjectScorer, load_encoders
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.metrics.validation_scores import ValidationScorer
from dreambooth.prompts import expand, fill_prompt
from dreambooth.randomness import Randomness
from dreambooth.report import build as build_report
from dreambooth.report.bleeding import bleed_rows
from dreambooth.run.folder import RunFolder
from dreambooth.subject_info import ExportCard, LearnedSubject, SubjectInfo, read_card, write_card

ROOT = Path(__file__).parent.parent
ENCODERS = ROOT / "checkpoints" / "toyworld-encoders"
DOG = SubjectConfig(images="a", identifier="sks", class_noun="dog")
CAT = SubjectConfig(images="b", identifier="olis", class_noun="cat")
SECOND_DOG = SubjectConfig(images="c", identifier="zwx", class_noun="dog")
QUICK = ("train.max_steps=3", "optim.warmup_steps=0")


@pytest.fixture(scope="session")
def cat_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of the second subject, of the same names as two of the first's."""
    folder = tmp_path_factory.mktemp("cats")
    for number, colour in enumerate(("black", "orange")):
        image = Image.new("RGB", (64, 64), "pink")
        ImageDraw.Draw(image).rectangle((8, 8 + 4 * number, 40, 48), fill=colour)
        image.save(folder / f"{number}.png")
    return folder


@pytest.fixture
def two_file(config_file: Path, pictures: Path, cat_pictures: Path) -> Path:
    """The quick run of `config_file`, of a dog with three pictures and a cat with two."""
    settings = yaml.safe_load(config_file.read_text())
    dog, cat = {**settings.pop("subject"), "identifier": "sks"}, {"images": str(cat_pictures), "class_noun": "cat"}
    settings["subjects"] = [dog, cat | {"identifier": "olis"}]
    config_file.write_text(yaml.safe_dump(settings))
    return config_file


def trained(config_file: Path, *overrides: str) -> RunFolder:
    config = load_config(config_file, overrides)
    assert train(config) == 0
    return RunFolder(config)


# -------------------------------------------------------------------------------- the config


def test_several_subjects_are_a_list_of_what_one_is(two_file: Path, cat_pictures: Path) -> None:
    config = load_config(two_file, ["subjects.1.class_noun=007", "subjects[0].prompt=one {subject}"])
    assert [subject.class_noun for subject in config.subjects] == ["dog", "007"]
    assert config.subjects[0].prompt == "one {subject}"
    assert config.subjects[1] == SubjectConfig(images=str(cat_pictures), identifier="olis", class_noun="007")
    again = two_file.with_name("again.yaml")
    again.write_text(yaml.safe_dump(to_dict(config)))
    assert load_config(again) == config


def test_a_list_of_one_is_the_section(config_file: Path) -> None:
    config = load_config(config_file)
    settings = to_dict(config)
    settings["subjects"] = [settings.pop("subject")]
    config_file.write_text(yaml.safe_dump(settings))
    assert load_config(config_file) == config
    assert "subjects" not in to_dict(config)


def test_another_key_may_refer_to_a_subjects(two_file: Path, config_file: Path) -> None:
    assert load_config(two_file, ["run.name=${subjects[1].class_noun}-1"]).run.name == "cat-1"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "subjects.1.class_nun=cat",
            r"subjects\[1\]\.class_nun: unknown key; did you mean subjects\[1\]\.class_noun\?",
        ),
        ("subjects.3.class_noun=cat", r"subjects\[3\]: no such entry; .* the next to add is subjects\[2\]"),
        ("subjects.2.class_noun=cow", r"subjects\[2\]\.images: required"),
        ("subject.class_noun=cat", "subjects: stands in the place of the section 'subject'; there is subject.class_no"),
        ("subjects.1.class_noun= ", r"subjects\[1\]\.class_noun: must not be empty"),
        ("subjects.1.prompt=a cat", r"subjects\[1\]\.prompt: 'a cat' must contain \{subject\}"),
        (
            "subjects.1.prompt={subject} and {subject_3}",
            r"subjects\[1\]\.prompt: .*: there is no \{subject_3\}; what is learned is \{subject\}, \{subject_2\}",
        ),
        ("subjects.1.class_prompt={class} {subject_2}", r"subjects\[1\]\.class_prompt: .*, and not \{subject\}"),
        ("validate.prompts=['a {class_3}']", r"validate\.prompts: 'a \{class_3\}': there is no \{class_3\}"),
        (
            "subjects.1.identifier=sks",
            r"subjects\[1\]\.identifier: 'sks' must differ from that of subjects\[0\], 'sks'",
        ),
        ("subjects.1.identifier=SKS1", r"subjects\[1\]\.identifier: 'SKS1' .* neither may be a part of the other"),
        ("subjects.0.identifier=olis b", r"subjects\[1\]\.identifier: 'olis' .* neither may be a part of the other"),
        ("subjects.1.class_noun=red sks", r"subjects\[0\]\.identifier: 'sks' is a word of the class noun 'red sks'"),
        ("prior.num_images=1", r"prior\.num_images: 1 is too small for 2 classes: dog, cat"),
        ("data.mask=masks", r"data\.mask: a folder is for one subject"),
        ("validate.images=more", r"validate\.images: does not say whose"),
    ],
)
def test_a_mistake_names_the_entry(two_file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(two_file, [override])


def test_a_folder_of_class_pictures_is_of_one_class(two_file: Path) -> None:
    of_folder = ["prior.source=folder", "prior.folder=dogs"]
    with pytest.raises(UserError, match=r"prior\.source: a folder has images of one class, here are dog, cat"):
        load_config(two_file, of_folder)
    assert load_config(two_file, [*of_folder, "subjects.1.class_noun=dog"]).prior.folder == "dogs"


@pytest.mark.parametrize(
    ("subjects", "message"),
    [
        ([], r"must be a list of entries"),
        ({"images": "a"}, r"must be a list of entries"),
        ([7], "must hold keys, found 7"),
    ],
)
def test_a_list_that_is_none_is_told(config_file: Path, subjects: Any, message: str) -> None:
    config_file.write_text(yaml.safe_dump({"subjects": subjects}))
    with pytest.raises(UserError, match=message):
        load_config(config_file)


def test_a_subject_that_was_changed_added_or_taken_away_is_a_difference(two_file: Path) -> None:
    two, other = load_config(two_file), load_config(two_file, ["subjects.1.class_noun=cow"])
    assert restricted_changes(to_dict(two), to_dict(other)) == [Change("subjects[1].class_noun", "cat", "cow")]
    three = Config(**{**vars(two), "subjects": [*two.subjects, SECOND_DOG]})
    assert Change("subjects[2].identifier", None, "zwx") in restricted_changes(to_dict(two), to_dict(three))
    assert Change("subjects[2].identifier", "zwx", None) in restricted_changes(to_dict(three), to_dict(two))


# -------------------------------------------------------------------------------- prompts


def test_prompts_fill_subject_and_class() -> None:
    assert fill_prompt("{subject}, a {class}, {{x}}", [DOG]) == "sks dog, a dog, {x}"
    assert fill_prompt("{subject} and {subject_2}, {class_2}s", [DOG, CAT]) == "sks dog and olis cat, cats"
    assert fill_prompt("{subject} beside {subject_1}", [DOG, CAT], own=1) == "olis cat beside sks dog"
    with pytest.raises(UserError, match=r"there is no \{subject_3\}; what is learned is \{subject\}, \{subject_2\}"):
        fill_prompt("{subject_3}", [DOG, CAT])


def test_a_validation_prompt_without_a_number_is_of_each_subject_and_one_with_a_number_of_those_it_names() -> None:
    templates = ["{subject} at sea", "a {class}", "{subject_2}", "{subject} and {subject_2}", "a fish", "a {class_2}"]
    found = [(prompt.kind, prompt.filled, prompt.text, prompt.subjects) for prompt in expand(templates, [DOG, CAT])]
    assert found == [
        ("subject", "sks dog at sea", "dog at sea", (0,)),
        ("subject", "olis cat at sea", "cat at sea", (1,)),
        ("class", "a dog", "a dog", (0,)),
        ("class", "a cat", "a cat", (1,)),
        ("subject", "olis cat", "cat", (1,)),
        ("subject", "sks dog and olis cat", "dog and cat", (0, 1)),
        ("other", "a fish", "a fish", ()),
        ("class", "a cat", "a cat", (1,)),
    ]


def test_two_of_one_class_share_its_prompts(two_file: Path) -> None:
    found = expand(["a {class}", "a {subject}"], [DOG, CAT, SECOND_DOG])
    assert [(prompt.filled, prompt.subjects) for prompt in found[:2]] == [("a dog", (0, 2)), ("a cat", (1,))]
    assert len(found) == 2 + 3
    one_class = load_config(two_file, ["subjects.1.class_noun=dog"])
    captions = build.captions_of([ImageFolder(Path(), [Path("0.png")] * number) for number in (3, 2)], one_class)
    assert captions == [["a photo of sks dog"] * 3, ["a photo of olis dog"] * 2]
    assert build.prompts_of_class_images(captions, one_class) == ["a photo of a dog"]


def test_a_caption_may_name_both_and_the_class_picture_neither(two_file: Path, tmp_path: Path) -> None:
    config = load_config(two_file, ["data.captions=true"])
    folders = []
    for number, subject in enumerate(config.subjects):
        own = Path(shutil.copytree(subject.images, tmp_path / str(number)))
        for path in list_images(own):
            path.with_suffix(".txt").write_text(f"{{subject}} beside {{subject_{2 - number}}}, {path.stem}")
        folders.append(open_folder(own))
    captions = build.captions_of(folders, config)
    plain = ("a photo of a dog", "a photo of a cat")
    assert (captions[0][1], captions[1][0]) == ("sks dog beside olis cat, 1", "olis cat beside sks dog, 0")
    assert build.class_prompts_of(captions, config)[1] == ["cat beside dog, 0", "cat beside dog, 1"]
    made = build.prompts_of_class_images(captions, config)
    assert set(made) == {*(caption for own in build.class_prompts_of(captions, config) for caption in own), *plain}
    folders[1].images[0].with_suffix(".txt").write_text("{subject_1} alone")
    with pytest.raises(UserError, match=r"0\.png: its caption 'sks dog alone' has neither \{subject\} nor 'olis'"):
        build.captions_of(folders, config)


# -------------------------------------------------------------------------------- equal turns


def dataset(counts: tuple[int, ...]) -> LatentDataset:
    """Pictures that are their own numbers, and are called so. counts: of each subject."""
    subjects = [subject for subject, count in enumerate(counts) for _ in range(count)]
    zero = torch.zeros(1, 1, 1, 1)
    pictures = [
        EncodedImage(zero + number, zero, torch.zeros(1, 6), subject=own) for number, own in enumerate(subjects)
    ]
    said = Captions([f"number {number}" for number in range(len(pictures))], Randomness(0))
    return LatentDataset(pictures, said, Randomness(0), "subject")


def test_a_subject_of_few_pictures_is_seen_as_often_as_one_of_many() -> None:
    places = dataset((2, 5, 3))
    drawn = [int(places[place].latents_CHW) for place in range(90)]
    assert all(number in (range(2), range(2, 7), range(7, 10))[place % 3] for place, number in enumerate(drawn))
    assert Counter(drawn) == {n: 15 if n < 2 else 6 if n < 7 else 10 for n in range(10)}
    assert all(places[place].prompt == f"number {number}" for place, number in enumerate(drawn))
    orders = [tuple(drawn[place : place + 15 : 3]) for place in range(1, 90, 15)]
    assert all(sorted(order) == list(range(2, 7)) for order in orders), "a pass has every picture of a subject once"
    assert len(set(orders)) > 3, "the order is the same in every pass"


def test_one_subjects_pictures_are_drawn_as_they_were_before_there_were_several() -> None:
    places = dataset((5,))
    expected = [Randomness(0).permutation("subject/order", 5, place // 5)[place % 5] for place in range(40)]
    assert [places.image_at(place) for place in range(40)] == expected
    assert expected[:10] == [4, 2, 1, 3, 0, 0, 3, 2, 4, 1]


def test_classes_come_in_turn_however_many_prompts_each_has() -> None:
    assert build.in_turn([["a", "b", "a"], ["c"]]) == ["a", "c", "b", "c"]
    assert build.in_turn([["a"], ["b"], ["a"]]) == ["a", "b"]
    assert build.in_turn([["a", "b", "a"]]) == ["a", "b"]


@pytest.mark.parametrize("source", ["stream", "teacher"])
def test_class_samples_are_of_every_class_equally_often(
    two_file: Path, family: Family, source: str, tmp_path: Path
) -> None:
    config, randomness = load_config(two_file, [f"prior.source={source}"]), Randomness(0)
    folders = [open_folder(subject.images) for subject in config.subjects]
    photos = [folder.images for folder in folders]
    captions = build.captions_of(folders, config)
    pictures = build.encode(family, [*photos[0], *photos[1]], config, randomness, subjects=[0, 0, 0, 1, 1])
    prior, teacher = build.make_prior(family, pictures, captions, tmp_path, config, randomness, "base")
    assert prior is not None
    assert (teacher is None) == (source == "stream")
    samples = prior.samples(range(6))
    assert [sample.prompt for sample in samples] == ["a photo of a dog", "a photo of a cat"] * 3
    if source == "teacher":
        places = LatentDataset(pictures, Captions(["dog"] * 3 + ["cat"] * 2, randomness), randomness, "prior")
        assert all(torch.equal(sample.latents_CHW, places[sample.sample_index].latents_CHW) for sample in samples)
        assert [places[place].prompt for place in range(4)] == ["dog", "cat", "dog", "cat"]


# -------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_killed_and_run_again_it_comes_to_the_same_bits(two_file: Path, warm: Warm) -> None:
    trained(two_file, "run.name=whole", *SETTINGS)
    code, _ = interrupt(warm, two_file, "killed", signal.SIGKILL, lambda run: _steps(run) >= 4)
    assert code == -signal.SIGKILL
    assert find_state(folder(two_file, "killed").state).step < 10
    killed = trained(two_file, "run.name=killed", *SETTINGS)
    whole = folder(two_file, "whole")
    assert_equal_runs(whole, killed)
    drawn = cut(Image.open(whole.samples / "step-000010.png"), side=64)
    assert len(drawn) == 4 * 2, "a row for each subject and class"


def _steps(run: RunFolder) -> int:
    return len(run.metrics.read_text().splitlines()) - 2 if run.metrics.is_file() else 0


@pytest.mark.slow
def test_a_run_from_before_there_were_several_goes_on_and_its_config_is_written_as_it_was(
    config_file: Path, tiny_base: Path, pictures: Path
) -> None:
    straight = trained(config_file, "run.name=straight", "optim.schedule=constant")
    run = trained(config_file, "train.max_steps=4", "optim.schedule=constant")
    old = (ROOT / "tests" / "one-subject-run.yaml").read_text().replace("schedule: cosine", "schedule: constant")
    for name, path in (("RUNS", run.path.parent), ("BASE", tiny_base), ("PICTURES", pictures)):
        old = old.replace(name, str(path))
    settings, written = yaml.safe_load(old), yaml.safe_load(run.config.read_text())
    settings["train"]["max_steps"] = 4
    assert {section: {key: written[section][key] for key in keys} for section, keys in settings.items()} == {
        **settings,
        "provenance": {key: written["provenance"][key] for key in settings["provenance"]},
    }
    assert "subjects" not in written
    run.config.write_text(old)
    make_old(run.model)
    again = trained(config_file, "optim.schedule=constant")
    assert again.metrics.read_text() == straight.metrics.read_text()
    states = [torch.load(each.state, weights_only=True)["state_dict"] for each in (straight, again)]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())


def make_old(model: Path) -> None:
    """The card as it was written before there could be several subjects."""
    card = json.loads((model / "dreambooth.json").read_text())
    (subject,) = card.pop("subjects")
    (model / "dreambooth.json").write_text(json.dumps(subject | card))


def test_a_card_from_before_there_were_several_is_read(tmp_path: Path) -> None:
    card = ExportCard((LearnedSubject("sks", "dog", "a {subject}", "a {class}"),), 64, 2, 3.0, 8, last_step=9)
    write_card(card, tmp_path)
    assert read_card(tmp_path) == card
    make_old(tmp_path)
    assert read_card(tmp_path) == card
    (tmp_path / "dreambooth.json").write_text('{"identifier": "sks"}')
    with pytest.raises(UserError, match=r"dreambooth\.json: cannot be read"):
        read_card(tmp_path)


def test_each_subject_is_sampled_by_its_number(
    two_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(two_file, *QUICK, "validate.every_steps=0")
    assert f'sample {run.path} "a photo of {{subject}} on the beach" "a photo of {{subject}} and' in (
        capsys.readouterr().out
    )
    prompts = ["{subject}", "a {subject_2} beside a {class}", "{subject} and {subject_2}"]
    quick = ["--num-images", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(["sample", str(run.path), *prompts, *quick]) == 0
    images = sorted((tmp_path / "out").glob("0*.png"))
    made = [read_recipe(path)["prompt"] for path in images]
    assert made == ["sks dog", "a olis cat beside a dog", "sks dog and olis cat"]
    capsys.readouterr()
    assert main(["sample", str(run.path), "{subject_3}", *quick]) == 2
    assert "there is no {subject_3}; what is learned is {subject}, {subject_2}" in capsys.readouterr().err
    build_report(run.path)
    page = (run.path / "report.html").read_text()
    for told in (
        "“sks dog”, “olis cat”, learned on",
        "photo 3 of sks dog",
        "photo 2 of olis cat",
        "subjects[1].identifier",
    ):
        assert told in page


def test_changed_pictures_of_the_second_are_refused(two_file: Path, cat_pictures: Path, tmp_path: Path) -> None:
    mine = f"subjects.1.images={shutil.copytree(cat_pictures, tmp_path / 'mine')}"
    trained(two_file, *QUICK, "validate.every_steps=0", mine)
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "mine" / "1.png")
    with pytest.raises(UserError, match=r"pictures of subject 2: other content: 1.png .since this run was started"):
        trained(two_file, *QUICK, "validate.every_steps=0", mine, "train.max_steps=5")


def test_each_subject_is_trained_under_its_own_prompt(two_file: Path, pictures: Path) -> None:
    """One picture a step: what the second's prompt is cannot move the first step, and moves the second one."""
    alone = [*QUICK, "train.batch_size=1", "prior.source=none", "validate.every_steps=0", "optim.lr=1.0e-30"]
    one, other = (
        (
            trained(two_file, *alone, f"run.name={name}", f"subjects.1.class_noun={name}")
            .metrics.read_text()
            .splitlines()
        )
        for name in ("cat", "robot")
    )
    assert one[1] == other[1]
    assert one[2] != other[2]
    assert one[3] == other[3]


# -------------------------------------------------------------------------------- methods


def word_settings(**changes: Any) -> MethodSettings:
    everything = {"rank": 2, "words": ("<sks>", "<olis>"), "start_words": (("dog",), ("cat",)), "seed": 3}
    return MethodSettings(**{**everything, **changes})


@pytest.fixture(params=["tiny_base", "tiny_xl_base"], ids=["1.x", "xl"])
def any_base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_with_a_rate_of_their_own_just_the_identifiers_move_in_the_embedding(two_file: Path, tiny_base: Path) -> None:
    run = trained(two_file, *QUICK, "optim.identifier_lr=5.0e-3", "validate.every_steps=0")
    before, after = (
        load_family(str(folder)).text_encoders[0].get_input_embeddings().weight for folder in (tiny_base, run.model)
    )
    family = load_family(str(tiny_base))
    rows = sorted([*family.tokenize("sks"), *family.tokenize("olis")])
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == rows


@pytest.mark.parametrize("method", ["textual_inversion", "pivotal"])
def test_two_words_are_saved_a_file_each_and_come_back(method: str, any_base: Path, tmp_path: Path) -> None:
    family, prompts = load_family(str(any_base)), ["a <sks> dog", "a <olis> cat beside a <sks> dog"]
    row = METHODS[method]
    words_start_as_class_nouns(family, row.attach, prompts)
    with torch.no_grad():
        for network in family.text_encoders:
            for weight in network.parameters():
                if weight.requires_grad:
                    weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert row.save is not None
    assert row.load is not None
    row.save(family, tmp_path)
    assert {"learned_embeds.safetensors", "learned_embeds_2.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    again = load_family(str(any_base))
    row.load(again, tmp_path)
    learned, loaded = family.encode_prompts(prompts), again.encode_prompts(prompts)
    assert all(torch.equal(learned[name], loaded[name]) for name in learned)
    (tmp_path / word_file(1)).unlink()
    with pytest.raises(ModelError, match=r"learned_embeds_2\.safetensors: cannot be loaded"):
        row.load(load_family(str(any_base)), tmp_path)


def words_start_as_class_nouns(family: Family, attach: Callable[..., Any], prompts: list[str]) -> None:
    with torch.no_grad():
        plain = family.encode_prompts(["a dog dog dog", "a cat cat cat beside a dog dog dog"])
        attach(family, word_settings(num_vectors=2))
        started = family.encode_prompts(["a <sks> dog", "a <olis> cat beside a <sks> dog"])
    for name in plain:
        torch.testing.assert_close(started[name], plain[name], msg=f"{name}: {prompts}")


def test_plain_diffusers_reads_every_words_file(two_file: Path, tiny_base: Path) -> None:
    words = ["subjects.0.identifier=<sks>", "subjects.1.identifier=<olis>", "method.num_vectors=2"]
    run = trained(two_file, *QUICK, *words, "method.name=textual_inversion", "optim.lr=0.1", "validate.every_steps=0")
    assert main(["export", str(run.path), "--format", "embedding", "--dtype", "float32"]) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    for number, word in enumerate(("<sks>", "<olis>")):
        path = run.path / "exports" / "embedding" / word_file(number)
        assert list(load_file(path)) == [word]
        pipeline.load_textual_inversion(path, token=word)
    told = (run.path / "exports" / "embedding" / "README.md").read_text()
    assert "# <sks> dog, <olis> cat\n" in told
    for word, file in (
        ("<sks>", f"{run.path.name}_emb_sks.safetensors"),
        ("<olis>", f"{run.path.name}_emb_olis.safetensors"),
    ):
        assert f'pipeline.load_textual_inversion(here, "{word}", weight_name="{file}")' in told
    learned = load_model(str(run.path), "cpu")
    prompt = learned.fill("{subject_2} and {subject}")
    told = learned.family.encode_prompts([prompt])["encoder_hidden_states"]
    torch.testing.assert_close(pipeline.encode_prompt(prompt, "cpu", 1, False)[0], told)
    untouched = load_family(str(tiny_base)).encode_prompts(["cat cat cat and dog dog dog"])["encoder_hidden_states"]
    assert not torch.allclose(told, untouched, atol=1e-3), "nothing was learned"


def test_a_single_file_has_the_bases_vocabulary_and_the_words_beside_it(two_file: Path, tiny_base: Path) -> None:
    words = ["subjects.0.identifier=<sks>", "subjects.1.identifier=<olis>", "method.num_vectors=2"]
    run = trained(two_file, *QUICK, *words, "method.name=textual_inversion", "validate.every_steps=0")
    assert main(["export", str(run.path), "--format", "single-file", "--dtype", "float32"]) == 0
    folder = run.path / "exports" / "single-file"
    assert {WORD_FILE, word_file(1)} <= {path.name for path in folder.iterdir()}
    tensors = load_file(folder / "model.safetensors")
    (embedding,) = (tensor for name, tensor in tensors.items() if name.endswith("token_embedding.weight"))
    assert torch.equal(embedding, load_family(str(tiny_base)).text_encoders[0].get_input_embeddings().weight)


def test_a_run_of_one_word_keeps_its_one_file(config_file: Path) -> None:
    word = ["subject.identifier=<sks>", "method.name=textual_inversion", "validate.every_steps=0"]
    run = trained(config_file, *QUICK, *word)
    assert sorted(path.name for path in run.model.iterdir()) == ["dreambooth.json", WORD_FILE]


# -------------------------------------------------------------------------------- scores


def photos_of(name: str, number: int) -> list[Image.Image]:
    return [load_image(path) for path in list_images(ROOT / "data" / name)][:number]


def test_every_row_is_scored_against_the_photos_of_the_subjects_it_names() -> None:
    encoders = load_encoders(str(ENCODERS / "vit"), str(ENCODERS / "clip"))
    robot, dog = (SubjectScorer(encoders, photos_of(name, 3)) for name in ("robot", "dog"))
    subjects = [SubjectConfig(identifier="sks", class_noun="robot"), SubjectConfig(identifier="olis", class_noun="dog")]
    prompts = expand(["{subject}", "a {class}", "{subject} and {subject_2}"], subjects)
    robots, dogs = photos_of("robot", 5)[3:], photos_of("dog", 5)[3:]
    rows = [robots, dogs, robots, dogs, [robots[0], dogs[0]]]
    score = ValidationScorer([robot, dog], prompts)
    found = score(rows, base=rows)
    own, other = robot.subject(robots, ["robot"] * 2), dog.subject(dogs, ["dog"] * 2)
    both = [each.subject(rows[4], ["robot and dog"] * 2) for each in (robot, dog)]
    for name in ("dino", "clip_i", "clip_t"):
        joined = [(a + b) / 2 for a, b in zip(both[0][name], both[1][name], strict=True)]
        assert found[name] == pytest.approx([*own[name], *other[name], *joined], abs=1e-6)
    assert found["pres"] == pytest.approx([*robot.of_class(robots)["pres"], *dog.of_class(dogs)["pres"]], abs=1e-6)
    assert found["drift"] == pytest.approx([0] * 4, abs=1e-6)
    assert min(found["dino"][:4]) > 0.2 + max(found["dino"][4:]), (
        "half of a joint picture's likeness is to another thing"
    )
    means = score.means_of_subjects(found)
    assert means["dino"] == pytest.approx([sum(own["dino"]) / 2, sum(other["dino"]) / 2])
    assert means["pres"] == pytest.approx([sum(found["pres"][:2]) / 2, sum(found["pres"][2:]) / 2])


def test_who_bleeds_into_whom_is_told_by_every_subjects_photos(tmp_path: Path) -> None:
    encoders = load_encoders(str(ENCODERS / "vit"), None)
    scorers = [SubjectScorer(encoders, photos_of(name, 3)) for name in ("robot", "dog")]
    subjects = [SubjectConfig(identifier="sks", class_noun="robot"), SubjectConfig(identifier="olis", class_noun="dog")]
    prompts = expand(["{subject}", "a {class}", "{subject} and {subject_2}"], subjects)
    robots, dogs = photos_of("robot", 5)[3:], photos_of("dog", 5)[3:]
    log = ValidationLog(tmp_path / "scores.jsonl")
    score = ValidationScorer(scorers, prompts)
    for step, rows in enumerate(([dogs] * 5, [robots, dogs, robots, dogs, dogs])):
        log.add(ValidationRecord(step, 0.5, score(rows)))
    rows = bleed_rows(log, prompts, ["sks robot", "olis dog"], ["robot", "dog"], step=1)
    assert [row.prompts for row in rows] == ["sks robot", "olis dog", "sks robot and olis dog", "robot", "dog"]
    assert [[cell.is_own for cell in row.cells] for row in rows] == [[1, 0], [0, 1], [1, 1], [0, 0], [0, 0]]
    of_robot, of_dog, of_both, *_ = rows
    assert float(of_robot.cells[0].mean) > 0.8 > float(of_robot.cells[1].mean)
    assert of_robot.cells[0].base == of_dog.cells[0].mean, "the base draws dogs for every prompt here"
    assert [cell.mean for cell in of_both.cells] == [cell.mean for cell in of_dog.cells], "the dog is all that is seen"
    assert bleed_rows(log, prompts, ["sks robot"], ["robot"], step=7) == [], "a step that was not validated"
    alone = ValidationScorer(scorers[:1], expand(["{subject}"], subjects[:1]))([robots])
    assert alone.keys() == {"dino"}, "one subject bleeds into no other"


def anchors_of(score: ValidationScorer, rows: list[list[Image.Image]]) -> Anchors:
    found = score.anchors(rows, score(rows))
    assert found is not None
    return found


def test_what_an_ignoring_model_scores_is_measured_within_each_class() -> None:
    """The robots' pictures under the robot's prompts only: under the dog's they would score less than they should."""
    encoders = load_encoders(str(ENCODERS / "vit"), str(ENCODERS / "clip"))
    scorers = [SubjectScorer(encoders, photos_of(name, 3)) for name in ("robot", "dog")]
    subjects = [SubjectConfig(identifier="sks", class_noun="robot"), SubjectConfig(identifier="olis", class_noun="dog")]
    rows = {"robot": photos_of("robot", 2), "dog": photos_of("dog", 2)}
    templates = ["a photo of {subject} on the moon", "a photo of a {class}"]
    both = anchors_of(ValidationScorer(scorers, expand(templates, subjects)), [*rows.values(), *rows.values()])
    alone = [
        anchors_of(ValidationScorer([scorer], expand(templates, [subject])), [rows[subject.class_noun]] * 2)
        for scorer, subject in zip(scorers, subjects, strict=True)
    ]
    for name, value in vars(both).items():
        assert value == pytest.approx(sum(getattr(each, name) for each in alone) / 2, abs=1e-6), name


def test_a_validation_tells_each_subjects_part(two_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoders = [f"validate.dino={ENCODERS / 'vit'}", f"validate.clip={ENCODERS / 'clip'}"]
    run = trained(two_file, *QUICK, "validate.every_steps=3", *encoders)
    entry = ValidationLog(run.scores).entries[-1]
    assert {name: len(numbers) for name, numbers in entry.scores.items()} == dict.fromkeys(
        ("dino", "clip_i", "clip_t", "pres", "div", "drift", "to_1", "to_2", "class_to_1", "class_to_2"), 4
    )
    dino = entry.scores["dino"]
    first, second = sum(dino[:2]) / 2, sum(dino[2:]) / 2
    told = caplog.text
    assert f"validation at step 3: dino {sum(dino) / 4:.3f} ({first:.3f} {second:.3f}), clip_i" in told
    assert "to_1" not in told


# -------------------------------------------------------------------------------- evaluate


def test_evaluate_asks_for_the_subject_of_the_class() -> None:
    dog, cat = (LearnedSubject(each.identifier, each.class_noun, each.prompt, each.class_prompt) for each in (DOG, CAT))
    card = SubjectInfo((dog, cat), 64, 2, 3.0, 8)
    assert learned_by(card, "cat") == cat
    assert learned_by(SubjectInfo((dog,), 64, 2, 3.0, 8), "cat") == dog, "a model of one subject is asked for that one"
    with pytest.raises(UserError, match="learned sks dog, olis cat; 0 of them are of the class 'robot'"):
        learned_by(card, "robot")
