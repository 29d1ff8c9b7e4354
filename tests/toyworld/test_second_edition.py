"""The second edition's promises: several things with relations, a truth about each, captions that are true."""

import argparse
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.cli import main
from dreambooth.errors import UserError
from toyworld import world
from toyworld.editions import EDITIONS, FIRST, SECOND, edition_of
from toyworld.palette import COLOURS, MIN_CONTRAST, contrast
from toyworld.scenes import PHRASES
from toyworld.second import captions, picture, truth
from toyworld.second.look import HEADS, NUM_EYES, WORN
from toyworld.second.things import CLASSES, CREATURES, SUPPORTS
from toyworld.tokenizer import MAX_LENGTH, build_tokenizer

SAMPLES = [picture.sample(seed) for seed in range(600)]


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def alone(spec: picture.Spec, size: float = 0.62, place: str = "studio", mirrored: bool = False) -> picture.Picture:
    thing = picture.Thing(spec, 0.5, 0.93, size, mirrored, (0.5, 0.5))
    return picture.Picture(place, 0, 0.58, (thing,))


def pair(relation: str, seed: int = 0) -> picture.Picture:
    rng = random.Random(f"pair {relation} {seed}")
    specs = [picture.random_spec(rng, noun) for noun in picture.random_classes(rng, 2, relation)]
    return picture.random_picture(rng, specs, relation)


# --- the renderer


def test_a_seed_gives_the_same_picture_and_image_every_time():
    for seed in range(20):
        assert picture.sample(seed) == SAMPLES[seed]
        assert picture.render(SAMPLES[seed]).tobytes() == picture.render(picture.sample(seed)).tobytes()
    assert len({picture.render(shown).tobytes() for shown in SAMPLES[:100]}) == 100


def test_pictures_show_one_to_three_things_of_different_classes_facing_both_ways():
    counts = [len(shown.things) for shown in SAMPLES]
    assert {counts.count(number) > 0.05 * len(SAMPLES) for number in (1, 2, 3)} == {True}
    for shown in SAMPLES:
        assert len({thing.spec.class_noun for thing in shown.things}) == len(shown.things)
    for class_noun in CLASSES:
        things = [thing for shown in SAMPLES for thing in shown.things if thing.spec.class_noun == class_noun]
        assert {thing.facing for thing in things} == {"left", "right"}


def test_every_relation_is_drawn_as_it_is_named():
    seen = set()
    for shown in SAMPLES:
        if shown.relation:
            stands = [(thing.center_x, thing.ground) for thing in shown.things]
            assert picture.relation_between(*stands) == shown.relation
            seen.add(shown.relation)
    assert seen == set(picture.RELATIONS)


def test_only_what_has_a_top_is_stood_on():
    below = {shown.things[1].spec.class_noun for shown in SAMPLES if shown.relation == "on"}
    assert below == set(SUPPORTS)


@pytest.mark.parametrize("class_noun", CLASSES)
def test_every_class_is_drawn_within_the_image(class_noun):
    rng = random.Random(class_noun)
    for _ in range(15):
        (mask,) = truth.truth(picture.picture_of(rng, picture.random_spec(rng, class_noun))).masks
        assert 0.05 < mask.mean() < 0.6, "a thing fills a fair part of the image"
        assert np.concatenate([mask[0], mask[:, 0], mask[:, -1]]).mean() < 0.05, "a thing does not leave the image"


FIELDS = ["main", "second", "accent", "pattern", "proportions", "head", "num_eyes", "worn", "worn_colour"]


@pytest.mark.parametrize("field", FIELDS)
def test_every_part_of_an_identity_shows(field):
    rng = random.Random(field)
    of_creatures = field in ("head", "num_eyes", "worn", "worn_colour")
    for class_noun in CREATURES if of_creatures else CLASSES:
        spec = replace(picture.random_spec(rng, class_noun), pattern="striped")
        spec = replace(spec, worn="hat") if of_creatures else spec
        assert _differing(spec, _changed(spec, field)) >= 12, f"{field} of a {class_noun} cannot be seen"


def _changed(spec: picture.Spec, field: str) -> picture.Spec:
    changes = {
        "main": "teal" if spec.main != "teal" else "red",
        "second": "pink" if spec.second != "pink" else "green",
        "accent": "white" if spec.accent != "white" else "black",
        "worn_colour": "white" if spec.worn_colour != "white" else "black",
        "pattern": "spotted",
        "proportions": tuple((value + 0.5) % 1.0 for value in spec.proportions),
        "num_eyes": spec.num_eyes % 3 + 1,
        "head": HEADS[(HEADS.index(spec.head) + 1) % 3] if spec.head else "",
        "worn": "scarf",
    }
    return replace(spec, **{field: changes[field]})


def _differing(first: picture.Spec, second: picture.Spec) -> int:
    """Return the number of pixels in which two things clearly differ where they stand in the same way."""
    one, other = (pixels_of(picture.render(alone(spec))) for spec in (first, second))
    return int((np.abs(one - other).max(-1) > 40).sum())


@pytest.mark.parametrize("number", range(3))
def test_every_accessory_shows(number):
    rng = random.Random(number)
    for class_noun in CLASSES:
        spec = replace(picture.random_spec(rng, class_noun), main="red", second="blue", accent="white", worn="")
        kinds = [replace(spec, accessories=tuple(kind if i == number else 1 for i in range(3))) for kind in range(3)]
        for i in range(3):
            assert _differing(kinds[i], kinds[i - 1]) >= 8, f"accessory {number} of a {class_noun} cannot be seen"


@pytest.mark.parametrize("class_noun", CLASSES)
def test_a_thing_shows_which_way_it_faces_and_is_the_same_thing(class_noun):
    spec = picture.random_spec(random.Random(class_noun), class_noun)
    ahead, back = (truth.truth(alone(spec, mirrored=flag)).masks[0] for flag in (False, True))
    assert np.abs(ahead[:, ::-1] - back).mean() < 0.02
    images = [pixels_of(picture.render(alone(spec, mirrored=flag))) for flag in (False, True)]
    assert (np.abs(images[0] - images[1]).max(-1) > 40).sum() >= 12


def test_identity_does_not_depend_on_the_place():
    for class_noun in CLASSES:
        spec = picture.random_spec(random.Random(class_noun), class_noun)
        views = [alone(spec, place=place) for place in ("beach", "night")]
        inside = truth.truth(views[0]).masks[0] == 1
        assert np.array_equal(*(pixels_of(picture.render(view))[inside] for view in views))


def test_what_is_worn_differs_from_the_thing_in_colour():
    for shown in SAMPLES:
        for spec in (thing.spec for thing in shown.things):
            if spec.worn_colour:
                assert contrast(spec.main, spec.worn_colour) > MIN_CONTRAST
                assert spec.worn_colour not in (spec.second, spec.accent)


def test_an_unknown_class_place_or_relation_is_named_with_the_known_ones():
    rng = random.Random(0)
    with pytest.raises(UserError, match=r"'dragon'.*robot"):
        picture.random_spec(rng, "dragon")
    spec = picture.random_spec(rng, "robot")
    with pytest.raises(UserError, match=r"'volcano'.*beach"):
        picture.random_picture(rng, [spec], "", "volcano")
    with pytest.raises(UserError, match=r"'on' of 1 things"):
        picture.random_picture(rng, [spec], "on")


# --- what the renderer knows


def test_masks_of_the_things_do_not_overlap_and_boxes_hold_them():
    for shown in SAMPLES[:60]:
        known = truth.truth(shown)
        assert known.masks.sum(0).max() <= 1 + 1e-6
        for mask, (left, top, right, bottom) in zip(known.masks, known.boxes, strict=True):
            assert mask[top:bottom, left:right].sum() >= 0.97 * mask.sum()
            assert mask.sum() > 0.25 * (right - left) * (bottom - top)


def test_a_thing_in_front_hides_the_one_behind():
    shown = pair("in front of")
    behind = replace(shown, things=shown.things[1:], relation="")
    assert truth.truth(shown).masks[1].sum() < truth.truth(behind).masks[0].sum()


@pytest.mark.parametrize("class_noun", CREATURES)
def test_parts_of_a_creature_are_told(class_noun):
    rng = random.Random(class_noun)
    for number in NUM_EYES:
        spec = replace(picture.random_spec(rng, class_noun), num_eyes=number, worn="hat", head="round")
        known = truth.truth(alone(spec, size=0.8))
        areas = {name: int(known.part(0, name).sum()) for name in ("body", "head", "eye", "worn")}
        assert min(areas.values()) >= 10, areas
    bare = truth.truth(alone(replace(spec, worn="nothing"), size=0.8))
    assert not bare.part(0, "worn").any()


def test_parts_belong_to_the_thing_that_has_them():
    shown = pair("left of")
    known = truth.truth(shown)
    for number, thing in enumerate(shown.things):
        columns = np.flatnonzero((known.owners == number).any(0))
        assert abs(columns.mean() / 64 - thing.center_x) < 0.15
    assert ((known.owners >= 0) == (known.parts > 0)).all()


def test_edges_are_where_the_outlines_are():
    shown = SAMPLES[0]
    drawn = pixels_of(truth.edges(shown))
    assert drawn.max() > 200
    assert (drawn > 0).mean() < 0.5
    inside = truth.truth(shown).masks.sum(0)
    assert drawn[inside == 0].max() == 0


# --- held-out subjects


def test_no_training_picture_shows_a_class_in_the_colours_of_one_of_its_subjects():
    for shown in SAMPLES:
        assert not any(picture.is_held_out(thing.spec) for thing in shown.things)
    assert all(picture.is_held_out(picture.subject(noun, seed)) for noun in CLASSES for seed in range(5))
    shown = picture.any_picture(random.Random(0), must_be_held_out=True)
    assert all(picture.is_held_out(thing.spec) for thing in shown.things)


def test_a_subject_keeps_the_colours_and_pattern_that_it_has_in_the_first_edition():
    for class_noun, seed in (("robot", 21), ("dog", 1)):
        first, second = world.subject(class_noun, seed), picture.subject(class_noun, seed)
        for field in ("main", "second", "accent", "pattern", "proportions", "accessories"):
            assert getattr(first, field) == getattr(second, field)
        assert second.head in HEADS
        assert second == picture.subject(class_noun, seed)


# --- captions


def all_captions() -> list[tuple[picture.Picture, str]]:
    return [(shown, captions.caption(random.Random(i), shown)) for i, shown in enumerate(SAMPLES)]


def test_captions_use_known_words_fit_and_come_out_whole():
    tokenizer = build_tokenizer(captions.vocabulary())
    for _, text in all_captions():
        assert set(text.split()) <= captions.vocabulary()
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.split()) + 2 <= MAX_LENGTH
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_captions_name_every_class_and_nothing_untrue():
    for shown, text in all_captions():
        words = set(text.split())
        specs = [thing.spec for thing in shown.things]
        assert words & set(CLASSES) == {spec.class_noun for spec in specs}
        named = {colour for s in specs for colour in (s.main, s.second, s.accent, s.worn_colour)}
        assert words & set(COLOURS) <= named
        assert words & set(WORN) <= {spec.worn for spec in specs}
        assert words & set(HEADS) <= {spec.head for spec in specs}
        eyes = re.findall(r"(one|two|three) eyes?", text)
        assert {captions.EYE_PHRASES[spec.num_eyes].split()[0] for spec in specs if spec.num_eyes} >= set(eyes)
        elsewhere = {phrase for place, phrases in PHRASES.items() if place != shown.place for phrase in phrases}
        assert not any(text.endswith(phrase) for phrase in elsewhere)


def test_captions_tell_relations_from_either_side():
    for relation in picture.RELATIONS:
        shown = pair(relation)
        first, second = (thing.spec.class_noun for thing in shown.things)
        told = set()
        for seed in range(60):
            text = captions.caption(random.Random(seed), shown)
            a_first = text.split().index(first) < text.split().index(second)
            phrases = captions.RELATION_PHRASES if a_first else captions.INVERSE_PHRASES
            known = any(f" {phrase} " in text for phrase in phrases[relation])
            assert known or (relation in ("left of", "right of") and any(f" {n} " in text for n in captions.NEUTRAL))
            told.add((a_first, known))
        assert {(True, True), (False, True)} <= told


def test_details_of_creatures_are_named_sometimes():
    texts = [text for shown, text in all_captions() if len(shown.things) == 1]
    for words in ("head", "eye", "wearing", "facing"):
        share = sum(words in text for text in texts) / len(texts)
        assert 0.05 < share < 0.9, words


# --- the judge


def test_the_right_answers_are_those_of_the_things_in_a_picture():
    from toyworld.judge import NO_ANSWER
    from toyworld.second.judge import QUESTIONS
    from toyworld.second.judge_training import truth_of

    shown = pair("on", 3)
    right = truth_of([shown])
    assert right.present_BK.sum() == 2
    for thing in shown.things:
        k = CLASSES.index(thing.spec.class_noun)
        assert QUESTIONS["main"][right.answers["main"][0, k]] == thing.spec.main
        assert right.stand_BK3[0, k].tolist() == pytest.approx([thing.center_x, thing.ground, thing.size])
        is_creature = thing.spec.class_noun in CREATURES
        assert (right.answers["num_eyes"][0, k] != NO_ANSWER) == is_creature
    absent = next(k for k, noun in enumerate(CLASSES) if not right.present_BK[0, k])
    assert all(right.answers[name][0, absent] == NO_ANSWER for name in QUESTIONS)


@pytest.fixture(scope="module")
def untrained_judge():
    from toyworld.second.judge import Judge, JudgeNet

    torch.manual_seed(0)
    return Judge(JudgeNet())


def test_a_verdict_tells_of_each_class_alone(untrained_judge):
    shown = pair("left of", 1)
    verdict = untrained_judge([picture.render(shown), picture.render(SAMPLES[0])])
    assert verdict.place(0) in picture.PLACES
    assert len(verdict.seen(1)) >= 1
    assert verdict.answer(0, "robot", "head") in HEADS
    assert verdict.relation(0, "robot", "cup") in (*picture.RELATIONS, "behind", "under")
    assert torch.allclose(verdict.embedding("fish").norm(dim=-1), torch.ones(2), atol=1e-4)


def test_a_cut_out_shows_a_thing_as_large_wherever_it_stands():
    from toyworld.latents import to_pixels
    from toyworld.second.judge import CUT_SIZE, cut_outs

    spec = picture.random_spec(random.Random(4), "house")
    near = picture.Thing(spec, 0.5, 0.95, 0.8, False, (0.5, 0.5))
    far = replace(near, center_x=0.7, ground=0.8, size=0.4)
    pixels = to_pixels([picture.render(picture.Picture("studio", 0, 0.6, (thing,))) for thing in (near, far)])
    stand = torch.tensor([[thing.center_x, thing.ground, thing.size] for thing in (near, far, near)])
    cut = cut_outs(pixels, stand, torch.tensor([0, 1, 1]))
    assert cut.shape == (3, 3, CUT_SIZE, CUT_SIZE)
    same, elsewhere = ((cut[0] - other).abs().mean() for other in (cut[1], cut[2]))
    assert same < 0.5 * elsewhere


def test_the_weights_of_a_point_have_it_as_their_mean():
    from toyworld.second.judge_training import corner_weights

    points = torch.tensor([[0.3, 0.96], [0.0, 1.0], [0.5, 1.2]])
    weights = corner_weights(points, (5, 8)).view(3, 5, 8)
    assert torch.allclose(weights.sum((1, 2)), torch.ones(3))
    mean_x = weights.sum(1) @ torch.linspace(0, 1, 8)
    mean_y = weights.sum(2) @ torch.linspace(0, 1, 5)
    assert torch.allclose(torch.stack([mean_x, mean_y], 1), points.clamp(max=1), atol=1e-5)


def test_a_near_miss_differs_in_one_thing_and_its_colours_can_be_told_apart():
    from toyworld.second.judge_training import near_miss

    rng = random.Random(0)
    for _ in range(200):
        spec = picture.random_spec(rng)
        assert picture.can_be_told(spec)
        other = near_miss(rng, spec)
        assert picture.can_be_told(other)
        assert sum(getattr(spec, name) != getattr(other, name) for name in spec.__dataclass_fields__) == 1


def test_a_verdict_on_a_class_is_what_is_read_in_its_own_cut_out(untrained_judge):
    from toyworld.latents import to_pixels

    net = untrained_judge.net
    pixels = to_pixels([picture.render(pair("left of", seed)) for seed in (1, 2)])
    with torch.no_grad():
        readings = net(pixels)
        for i, noun in ((0, "cup"), (1, "robot")):
            k = CLASSES.index(noun)
            answers, embedding = net.look(pixels, readings.stand[i, k : k + 1], torch.tensor([i]), torch.tensor([k]))
            for name, answer in answers.items():
                assert torch.allclose(answer[0], readings.answers[name][i, k], atol=1e-4)
            assert torch.allclose(embedding[0], readings.embedding[i, k], atol=1e-4)


def test_training_moves_the_judge_towards_the_truth():
    from toyworld.latents import to_pixels
    from toyworld.second.judge import JudgeNet
    from toyworld.second.judge_training import judge_loss, training_pictures, truth_of

    torch.manual_seed(0)
    net = JudgeNet()
    pictures = training_pictures(random.Random(0), 8)
    pixels, right = to_pixels([picture.render(shown) for shown in pictures]), truth_of(pictures)
    assert pictures[0].things[0].spec == pictures[1].things[0].spec, "two pictures of one thing side by side"
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = judge_loss(net, pixels, right)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_judge_is_saved_and_loaded_and_tells_its_edition(untrained_judge, tmp_path):
    from toyworld.second.judge import Judge

    untrained_judge.save(tmp_path)
    assert edition_of(tmp_path) is SECOND
    image = picture.render(SAMPLES[0])
    saved, own = Judge.load(tmp_path)([image]), untrained_judge([image])
    assert torch.allclose(saved.readings.present, own.readings.present, atol=0.05)
    with pytest.raises(UserError, match=r"no judge in .*model\.safetensors"):
        Judge.load(tmp_path / "none")
    assert edition_of(tmp_path / "none") is FIRST


def test_the_truth_itself_would_pass_every_measurement():
    """Readings that say what the renderer knows agree with prompts that say the same."""
    from toyworld.second.evaluate import agreement, questions
    from toyworld.second.judge import QUESTIONS, Readings, Verdict
    from toyworld.second.judge_training import truth_of

    asked = questions(per_class=4)
    rng = random.Random(0)
    pictures = []
    for question in asked:
        specs = [picture.random_spec(rng, noun) for noun in question.class_nouns]
        changes = [question.named] if len(specs) == 1 else [{"main": colour} for colour in question.colours]
        specs = [replace(spec, **_as_fields(change)) for spec, change in zip(specs, changes, strict=True)]
        shown = picture.random_picture(rng, specs, question.relation, question.place)
        if "facing" in question.named:
            shown = replace(shown, things=(replace(shown.things[0], mirrored=question.named["facing"] == "left"),))
        pictures.append(shown)
    right = truth_of(pictures)
    answers = {name: torch.nn.functional.one_hot(right.answers[name].clamp(min=0), len(QUESTIONS[name])).float()
               for name in QUESTIONS}  # fmt: skip
    place = torch.nn.functional.one_hot(right.place_B, len(picture.PLACES)).float()
    readings = Readings(place, 20 * (right.present_BK - 0.5), right.stand_BK3, answers, torch.zeros(len(asked), 11, 2))
    shares = agreement(Verdict(readings), asked)
    assert len(shares) == 11
    assert all(share == 100 for share in shares.values()), shares


def _as_fields(named: dict[str, str]) -> dict[str, object]:
    of_spec = {name: answer for name, answer in named.items() if name != "facing"}
    return {name: int(answer) if name == "num_eyes" else answer for name, answer in of_spec.items()}


# --- training


def test_the_data_set_holds_masks_and_several_captions_of_each_image(tmp_path):
    from toyworld import dataset

    small = replace(SECOND, latent_channels=16)
    folder = tmp_path / "work"
    folder.mkdir()
    dataset.fit_codec(dataset.to_pixels([picture.render(shown) for shown in SAMPLES[:40]]), 16, 8).save(
        folder / "codec.safetensors"
    )
    made = dataset.load_or_make_dataset(folder, small, 12)
    assert made.latents.shape == (12, 16, 8, 8)
    assert made.masks.shape == (12, 2, 8, 8)
    assert made.tokens.shape == (12, 4, MAX_LENGTH)
    latents, masks, tokens = made.batch(torch.tensor([3, 5]), torch.tensor([0, 2]))
    assert tokens[1].tolist() == made.tokens[5, 2].tolist()
    known = truth.truth(picture.sample(3)).masks.sum(0).reshape(8, 8, 8, 8).mean((1, 3))
    assert masks[0, 0].numpy() == pytest.approx(known, abs=2e-3)
    pixels = dataset.to_pixels([SECOND.image(3)])
    assert torch.allclose(
        dataset.LinearCodec.load(folder / "codec.safetensors").encode(pixels)[0], latents[0], atol=0.02
    )


def test_several_processes_make_the_same_data_set_and_one_of_another_size_lies_beside_it(tmp_path):
    from toyworld import dataset

    folders = [tmp_path / name for name in ("one", "two")]
    codec = dataset.fit_codec(dataset.to_pixels([picture.render(shown) for shown in SAMPLES[:40]]), 64, 8)
    for folder in folders:
        folder.mkdir()
        codec.save(folder / "codec.safetensors")
    one, two = (dataset.load_or_make_dataset(folder, SECOND, 12, i + 1) for i, folder in enumerate(folders))
    assert torch.equal(one.latents, two.latents)
    assert torch.equal(one.tokens, two.tokens)
    assert len(dataset.load_or_make_dataset(folders[0], SECOND, 5)) == 5
    assert len(dataset.load_or_make_dataset(folders[0], SECOND, 12)) == 12


def test_a_codec_of_another_edition_is_refused(tmp_path):
    from toyworld import dataset

    pixels = dataset.to_pixels([picture.render(shown) for shown in SAMPLES[:40]])
    dataset.fit_codec(pixels, 8, 4).save(tmp_path / "codec.safetensors")
    with pytest.raises(UserError, match="8 channels of 4 px, the second edition 64 channels of 8 px"):
        dataset.load_or_make_codec(tmp_path, SECOND)


def test_a_budget_of_steps_ends_after_so_many_and_one_of_minutes_by_the_clock():
    from toyworld.training import Budget

    assert Budget(steps=8).spent(step=4, seconds=1e9) == 0.5
    assert Budget(minutes=2).spent(step=10**9, seconds=60) == 0.5
    assert Budget().spent(step=0, seconds=0) == 1.0


@pytest.mark.parametrize("name", ["first", "second"])
def test_networks_of_each_edition_fit_its_latents_and_words(name):
    from toyworld.base import BaseSettings, BaseTask, build_modules
    from toyworld.dataset import Dataset

    edition = replace(EDITIONS[name], unet_widths=(32, 32))
    settings = BaseSettings(folder=None, edition=edition, batch_size=2)
    tokens = torch.ones((3, MAX_LENGTH) if edition.name == "first" else (3, 4, MAX_LENGTH), dtype=torch.int16)
    masks = torch.zeros(3, len(edition.mask_weights), 8, 8, dtype=torch.float16)
    data = Dataset(torch.zeros(3, edition.latent_channels, 8, 8, dtype=torch.float16), masks, tokens)
    loss = BaseTask(build_modules(settings), data, settings)(0)
    assert loss.isfinite()


def test_an_edition_is_trained_beside_the_shipped_base_not_over_it():
    from toyworld.cli import SHIPPED, _folders, add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert _folders(parser.parse_args(["train"]))[1] == SHIPPED
    work, out = _folders(parser.parse_args(["train", "--edition", "second"]))
    assert SHIPPED not in (work, out)
    assert work != out


def test_render_writes_a_contact_sheet_of_an_edition(tmp_path):
    sheets = []
    for name in ("first", "second"):
        sheets.append(tmp_path / f"{name}.png")
        assert main(["toyworld", "render", "--edition", name, "--count", "12", "--out", str(sheets[-1])]) == 0
    assert Image.open(sheets[0]).tobytes() != Image.open(sheets[1]).tobytes()
