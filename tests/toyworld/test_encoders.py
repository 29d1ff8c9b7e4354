"""The toy world's metric encoders: their losses, their training, and what the shipped ones can tell apart."""

import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModel, AutoTokenizer, CLIPModel, ViTModel

from dreambooth.errors import ModelError
from dreambooth.metrics.encoders import load_clip, load_image_encoder
from toyworld import encoder_batches as batches
from toyworld import encoder_metrics as metrics
from toyworld import encoders, world
from toyworld.cli import SECOND_BASE, SECOND_ENCODERS, SHIPPED, SHIPPED_ENCODERS
from toyworld.encoders import LESSONS, Lessons
from toyworld.judge import HEADS
from toyworld.second import captions, picture
from toyworld.second import encoder_batches as second
from toyworld.second.things import CREATURES
from toyworld.tokenizer import MAX_LENGTH

REPOSITORY = Path(__file__).parents[2]
TINY = encoders.Size(width=32, num_layers=1, num_heads=2, text_width=32, num_text_layers=1, projection_dim=16)
BASES = {"first": SHIPPED, "second": SECOND_BASE}
SHIPPED_OF = {"first": REPOSITORY / SHIPPED_ENCODERS, "second": REPOSITORY / SECOND_ENCODERS}


@pytest.fixture(scope="module", params=LESSONS)
def lessons(request: pytest.FixtureRequest) -> Lessons:
    """Return what the encoders of an edition learn from."""
    return LESSONS[request.param]


@pytest.fixture(scope="module")
def folder(lessons: Lessons) -> Path:
    """The shipped encoders of that edition."""
    path = SHIPPED_OF[lessons.edition.name]
    if not all((path / name / "model.safetensors").is_file() for name in encoders.NAMES):
        pytest.skip(f"{path.name}: the shipped encoders are not there yet")
    return path


@pytest.fixture(scope="module")
def clip(folder: Path):
    return load_clip(str(folder / "clip"))


@pytest.fixture(scope="module")
def vit(folder: Path):
    return load_image_encoder(str(folder / "vit"))


@pytest.fixture(scope="module")
def vae(lessons: Lessons):
    return encoders.load_vae(REPOSITORY / BASES[lessons.edition.name])


def first_batch(num_objects: int, seed: int = 0) -> batches.Batch:
    return batches.draw(random.Random(seed), num_objects)


# --- what they learn from


def test_every_caption_is_true_of_its_own_picture_and_in_words_that_the_tokenizer_knows(lessons: Lessons):
    rng = random.Random(0)
    words = lessons.edition.vocabulary()
    for _ in range(20):
        batch = lessons.draw_for_texts(rng, 8)
        texts, is_true_bt = batch.captions(rng)
        assert is_true_bt.shape == (16, 16)
        assert is_true_bt.diagonal().all(), texts
        assert not is_true_bt.all()
        assert {word for text in texts for word in text.split()} <= words
        assert max(len(text.split()) for text in texts) <= MAX_LENGTH - 2, "begin and end count too"


def test_no_subject_is_ever_trained_on(lessons: Lessons):
    rng = random.Random(0)
    for draw in (lessons.draw, lessons.draw_for_texts):
        specs = [spec for _ in range(6) for spec in specs_in(draw(rng, 24))]
        assert len(specs) >= 6 * 48
        assert not any(lessons.edition.is_held_out(spec) for spec in specs)


def specs_in(batch: Any) -> list[Any]:
    if isinstance(batch, second.Batch):
        return [thing.spec for shown in batch.pictures for thing in shown.things]
    return batch.specs


def test_a_batch_shows_each_object_twice_and_asks_only_what_can_be_seen(lessons: Lessons):
    batch = lessons.draw(random.Random(0), 24)
    specs, truth = specs_in(batch), batch.truth()
    assert len(specs) == len(batch.pixels_BCHW) == 48
    assert specs[::2] == specs[1::2]
    assert len(set(specs)) == 24
    questions = lessons.questions["clip"] | lessons.questions["vit"]
    assert set(truth) >= set(questions)
    assert not {"place", "facing"} & set(lessons.questions["vit"]), "who it is does not depend on them"
    for name in ("class_noun", "main", "second", "pattern"):
        answers = [questions[name][number] for number in truth[name]]
        assert answers == [getattr(spec, name) for spec in specs]
    is_plain = torch.tensor([spec.pattern == "plain" for spec in specs])
    assert torch.equal(truth["accent"] == encoders.NO_ANSWER, is_plain)
    assert (truth["place"] >= 0).all()


def test_half_of_the_pictures_are_softened():
    torch.manual_seed(0)
    crisp, soft = torch.zeros(2000, 1, 1, 1), torch.ones(2000, 1, 1, 1)
    assert (batches.augment(crisp, soft) > 0.5).float().mean() == pytest.approx(0.5, abs=0.05)


# --- captions of the first edition


def test_a_caption_claims_the_colours_that_it_names():
    rng = random.Random(0)
    for _ in range(25):
        texts, _ = batches.draw(rng, 8).captions(rng)
        for text, claim in zip(texts, batches.claims(texts).tolist(), strict=True):
            said = {name: HEADS[name][number] for name, number in zip(HEADS, claim, strict=True) if number >= 0}
            colours = {said[name] for name in ("main", "second", "accent") if name in said}
            assert colours == set(text.split()) & set(world.COLOUR_NAMES), f"{text!r} is read as {said}"


def test_a_caption_with_one_wrong_word_is_untrue():
    truth = first_batch(1, seed=1).truth()
    own = {name: HEADS[name][truth[name][0]] for name in HEADS}

    def caption(**changed: str) -> str:
        said = own | changed
        return f"a photo of a {said['main']} {said['class_noun']} {batches.PHRASES[said['place']][0]}"

    untrue = [
        caption(**{name: label})
        for name in ("main", "class_noun", "place")
        for label in HEADS[name]
        if label != own[name]
    ]
    judged = batches.is_true(batches.claims([caption(), *untrue]), truth)[0]
    assert judged[0]
    assert not judged[1:].any()


# --- captions of the second edition

LOOKS = {
    "class_noun": "robot", "main": "red", "second": "blue", "accent": "yellow", "pattern": "striped",
    "head": "round", "num_eyes": "2", "worn": "hat", "worn_colour": "white", "facing": "left",
}  # fmt: skip


def the_robot(place: str = "beach") -> picture.Picture:
    """A picture of the robot that looks as in LOOKS."""
    rng = random.Random(0)
    own = {name: label for name, label in LOOKS.items() if name not in ("facing", "num_eyes")}
    spec = replace(picture.random_spec(rng, "robot"), num_eyes=2, **own)
    shown = picture.picture_of(rng, spec, place)
    return replace(shown, things=(replace(shown.things[0], mirrored=True),))


def two(relation: str, seed: int = 0, nouns: tuple[str, str] = ("cup", "house")) -> picture.Picture:
    rng = random.Random(f"two {relation} {seed}")
    return picture.random_picture(rng, [picture.random_spec(rng, noun) for noun in nouns], relation)


def is_true(claim: second.Claim, shown: picture.Picture) -> bool:
    seen = {thing.spec.class_noun: (thing, second.looks(thing)) for thing in shown.things}
    return second.holds(claim, seen, shown.place)


@pytest.mark.parametrize(
    ("text", "things", "place"),
    [
        ("a robot", {"class_noun": "robot"}, ""),
        ("a photo of one flower on the surface of the moon", {"class_noun": "flower"}, "moon"),
        ("a photo of an orange car in a studio", {"class_noun": "car", "main": "orange"}, "studio"),
        (
            "a picture of a spotted red and blue teapot on the grass",
            {"class_noun": "teapot", "pattern": "spotted", "main": "red", "second": "blue"},
            "grass",
        ),
        (
            "a cup with orange spots facing right",
            {"class_noun": "cup", "pattern": "spotted", "accent": "orange", "facing": "right"},
            "",
        ),
        ("an image of a cat with one eye at night", {"class_noun": "cat", "num_eyes": "1"}, "night"),
        ("the fish with a pointed head in the snow", {"class_noun": "fish", "head": "pointed"}, "snow"),
        (
            "a photo of the green dog wearing an orange scarf on a city street",
            {"class_noun": "dog", "main": "green", "worn": "scarf", "worn_colour": "orange"},
            "city",
        ),
        (
            "a red and blue robot with yellow stripes with a round head and two eyes wearing a white hat facing left "
            "on the beach",
            LOOKS,
            "beach",
        ),
    ],
)
def test_what_a_caption_of_one_thing_says(text, things, place):
    assert second.claim_of(text) == second.Claim((things,), "", place)


def test_a_caption_that_says_something_unknown_is_not_read_as_saying_less():
    for text in ("a robot in the bathtub", "a robot wearing a coat", "a red banana"):
        with pytest.raises((KeyError, AssertionError)):
            second.claim_of(text)


SPOKEN = (
    "a photo of a {main} and {second} robot with {accent} stripes with a {head} head and {eyes} "
    "wearing a {worn_colour} {worn} facing {facing} {place}"
)
SAID = {name: LOOKS[name] for name in ("main", "second", "accent", "head", "worn_colour", "worn", "facing")}
SAID |= {"eyes": "two eyes", "place": "on the beach"}
OTHER_WORDS = {
    "head": ("square", "pointed"),
    "eyes": ("one eye", "three eyes"),
    "worn": ("crown", "scarf", "bow"),
    "facing": ("right",),
    "place": [phrase for place, phrases in batches.PHRASES.items() if place != "beach" for phrase in phrases],
    **{
        name: [colour for colour in world.COLOUR_NAMES if colour != LOOKS[name]]
        for name in ("main", "second", "accent", "worn_colour")
    },
}


def test_a_caption_that_names_every_part_of_the_robot_is_true_of_it():
    assert is_true(second.claim_of(SPOKEN.format(**SAID)), the_robot())


@pytest.mark.parametrize("changed", OTHER_WORDS)
def test_a_caption_of_a_thing_with_one_wrong_word_is_untrue(changed):
    for word in OTHER_WORDS[changed]:
        text = SPOKEN.format(**{**SAID, changed: word})
        assert not is_true(second.claim_of(text), the_robot()), text


def test_a_caption_of_another_class_or_pattern_is_untrue():
    assert is_true(second.claim_of("a striped robot"), the_robot())
    assert not is_true(second.claim_of("a spotted robot"), the_robot())
    assert not is_true(second.claim_of("a robot with yellow spots"), the_robot())
    for noun in picture.CLASSES:
        assert is_true(second.claim_of(f"a photo of a {noun}"), the_robot()) == (noun == "robot")


def test_what_a_thing_does_not_have_is_not_said_of_it():
    plain, bare = (
        replace(the_robot(), things=(replace(the_robot().things[0], spec=spec),))
        for spec in (
            replace(the_robot().things[0].spec, pattern="plain"),
            replace(the_robot().things[0].spec, worn="nothing"),
        )
    )
    assert not is_true(second.claim_of("a robot with yellow stripes"), plain)
    assert not is_true(second.claim_of("a robot wearing a hat"), bare)
    assert not is_true(second.claim_of("a robot wearing a white hat"), bare)
    assert is_true(second.claim_of("a red robot"), plain)
    assert is_true(second.claim_of("a red robot"), bare)


def test_every_caption_of_one_thing_claims_all_that_it_names_and_that_is_true():
    rng = random.Random(0)
    asked = set()
    for _ in range(1500):
        shown = picture.picture_of(rng, picture.random_spec(rng))
        text, claim = second.caption(rng, shown)
        (said,) = claim.things
        assert is_true(claim, shown), text
        named = {said[name] for name in ("main", "second", "accent", "worn_colour") if name in said}
        words = text.split()
        assert named == set(words) & set(world.COLOUR_NAMES), f"{text!r} is read as {said}"
        heads, worn = ({said.get(name)} - {None} for name in ("head", "worn"))
        assert (heads, worn) == (set(words) & set(second.HEADS), set(words) & set(second.WORN)), text
        assert ("num_eyes" in said) == bool({"eye", "eyes"} & set(words)), text
        assert ("facing" in said) == ("facing" in words), text
        assert bool(claim.place) == any(text.endswith(phrase) for phrase in second.PLACE_OF), text
        asked |= set(said)
    assert asked == set(second.QUESTIONS) - {"place"}


@pytest.mark.parametrize("relation", picture.RELATIONS)
def test_every_caption_of_two_things_says_what_it_claims_and_that_is_true(relation):
    rng = random.Random(relation)
    told = set()
    for seed in range(200):
        shown = two(relation, seed)
        text, claim = second.caption(rng, shown)
        assert is_true(claim, shown), text
        first, other = (
            " ".join(thing[name] for name in ("main", "class_noun") if name in thing) for thing in claim.things
        )
        said = captions.RELATION_PHRASES[relation] if claim.relation else captions.NEUTRAL
        places = batches.PHRASES[claim.place] if claim.place else ("",)
        wording = rf"a[n]? \w+ of an? {first} ({'|'.join(said)}) an? {other} ?({'|'.join(places)})"
        assert re.fullmatch(wording, text), f"{text!r} is read as {claim}"
        assert [thing["class_noun"] for thing in claim.things] == ["cup", "house"]
        told.add(claim.relation)
    assert told == {"", relation}


@pytest.mark.parametrize("relation", picture.RELATIONS)
def test_only_the_right_relation_is_true_and_not_the_wrong_way_round(relation):
    cup, house = {"class_noun": "cup"}, {"class_noun": "house"}
    inverse = {"left of": "right of", "right of": "left of"}
    for seed in range(50):
        shown = two(relation, seed)
        for other in picture.RELATIONS:
            assert is_true(second.Claim((cup, house), other, ""), shown) == (other == relation)
            assert is_true(second.Claim((house, cup), other, ""), shown) == (inverse.get(relation) == other)


def test_in_a_caption_of_two_things_one_wrong_colour_or_class_or_place_makes_it_untrue():
    for seed in range(20):
        shown = two("left of", seed)
        own = [{"class_noun": thing.spec.class_noun, "main": thing.spec.main} for thing in shown.things]
        assert is_true(second.Claim(tuple(own), "left of", shown.place), shown)
        for number in (0, 1):
            wrong = [{"main": name} for name in world.COLOUR_NAMES if name != own[number]["main"]]
            wrong += [{"class_noun": noun} for noun in picture.CLASSES if noun not in ("cup", "house")]
            for change in wrong:
                things = [thing | change if i == number else thing for i, thing in enumerate(own)]
                assert not is_true(second.Claim(tuple(things), "", ""), shown), things
        for place in set(picture.PLACES) - {shown.place}:
            assert not is_true(second.Claim(tuple(own), "left of", place), shown)


def test_colours_of_two_things_are_not_exchanged():
    shown = two("on")
    cup, house = (thing.spec.main for thing in shown.things)
    assert cup != house

    def claim(of_cup: str, of_house: str) -> second.Claim:
        return second.Claim(
            ({"class_noun": "cup", "main": of_cup}, {"class_noun": "house", "main": of_house}), "on", shown.place
        )

    assert is_true(claim(cup, house), shown)
    assert not is_true(claim(house, cup), shown)


def test_a_caption_of_one_thing_is_true_of_a_picture_that_shows_another_too_but_not_the_other_way():
    shown = two("in front of")
    (cup, _) = shown.things
    alone = replace(shown, things=(cup,), relation="")
    assert is_true(second.Claim(({"class_noun": "cup"},), "", shown.place), shown)
    assert not is_true(second.Claim(({"class_noun": "cup"}, {"class_noun": "house"}), "", shown.place), alone)


def test_of_two_things_in_a_picture_only_the_place_is_asked():
    batch = second.draw(random.Random(0), 12, p_company=1.0)
    assert {len(shown.things) for shown in batch.pictures} == {2}
    truth = batch.truth()
    assert set(truth) == set(second.QUESTIONS)
    assert [second.QUESTIONS["place"][number] for number in truth.pop("place")] == [
        each.place for each in batch.pictures
    ]
    assert all((answers == encoders.NO_ANSWER).all() for answers in truth.values())


def test_of_one_thing_its_looks_are_asked_of_a_creature_its_parts_too():
    batch = second.draw(random.Random(0), 24)
    truth = batch.truth()
    for i, shown in enumerate(batch.pictures):
        (thing,) = shown.things
        answers = {name: second.QUESTIONS[name][numbers[i]] for name, numbers in truth.items() if numbers[i] >= 0}
        expected = {name: getattr(thing.spec, name) for name in ("class_noun", "main", "second", "pattern")}
        expected |= {"place": shown.place, "facing": thing.facing}
        if thing.spec.class_noun in CREATURES:
            expected |= {"head": thing.spec.head, "num_eyes": str(thing.spec.num_eyes), "worn": thing.spec.worn}
        if thing.spec.worn not in ("", "nothing"):
            expected["worn_colour"] = thing.spec.worn_colour
        if thing.spec.pattern != "plain":
            expected["accent"] = thing.spec.accent
        assert answers == expected


def test_for_texts_some_pictures_show_two_things_and_the_first_is_that_of_the_pair():
    batch = second.draw_for_texts(random.Random(0), 60)
    counts = [len(shown.things) for shown in batch.pictures]
    assert set(counts) == {1, 2}
    assert counts.count(2) / len(counts) == pytest.approx(second.P_COMPANY, abs=0.12)
    first = [shown.things[0].spec for shown in batch.pictures]
    assert first[::2] == first[1::2]


# --- losses


def test_with_one_right_answer_the_contrastive_loss_is_cross_entropy():
    torch.manual_seed(0)
    similarity, answer = torch.randn(6, 9), torch.randint(9, (6,))
    positive = F.one_hot(answer, 9).bool()
    expected = F.cross_entropy(similarity, answer, reduction="none")
    torch.testing.assert_close(encoders.contrastive_loss(similarity, positive), expected)


def test_the_contrastive_loss_is_least_when_all_right_answers_are_equally_like():
    positive = torch.tensor([[True, True, True, False, False]])
    sure = encoders.contrastive_loss(40.0 * positive, positive)
    assert sure.item() == pytest.approx(math.log(3), abs=1e-4)
    for unequal in ([41.0, 40.0, 39.0, 0.0, 0.0], [40.0, 0.0, 0.0, 0.0, 0.0], [40.0, 40.0, 40.0, 39.0, 0.0]):
        assert encoders.contrastive_loss(torch.tensor([unequal]), positive) > sure


def test_a_second_picture_with_the_same_caption_is_no_negative():
    """A gradient step must not push a picture away from a text that is true of it."""
    torch.manual_seed(0)
    image = F.normalize(torch.randn(2, 8), dim=-1).requires_grad_()
    text = F.normalize(torch.randn(1, 8), dim=-1).expand(2, 8)
    loss = encoders.image_text_loss(image, text, torch.tensor(2.0), torch.ones(2, 2, dtype=torch.bool))
    equal_image = image.detach()[:1].expand(2, 8)
    least = encoders.image_text_loss(equal_image, text, torch.tensor(2.0), torch.ones(2, 2, dtype=torch.bool))
    assert least.item() == pytest.approx(math.log(2), abs=1e-5)
    assert loss >= least


def test_the_image_text_loss_treats_both_sides_alike():
    torch.manual_seed(0)
    image, text = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)
    is_true = torch.eye(5, dtype=torch.bool)
    is_true[0, 3] = True
    one = encoders.image_text_loss(image, text, torch.tensor(1.0), is_true)
    other = encoders.image_text_loss(text, image, torch.tensor(1.0), is_true.T)
    torch.testing.assert_close(one, other)


def test_pictures_of_an_even_number_and_the_next_are_the_same_object():
    objects = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    paired = objects.repeat_interleave(2, 0)
    one_class = torch.zeros(8, dtype=torch.long)
    right, wrong = (encoders.identity_loss(embedding, one_class) for embedding in (paired, paired.roll(1, 0)))
    assert right < wrong - 1.0


def test_the_identity_loss_prefers_pairs_then_classes_then_chance():
    objects = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    class_direction = F.one_hot(classes, 16).float()
    paired = objects.repeat_interleave(2, 0)
    shuffled = objects.repeat(2, 1)

    def loss(embedding):
        return encoders.identity_loss(F.normalize(embedding, dim=-1), classes)

    assert loss(paired + class_direction) < loss(paired) < loss(shuffled)
    assert loss(class_direction) < loss(shuffled)


# --- training


@pytest.mark.parametrize("name", encoders.NAMES)
def test_a_few_steps_lower_the_loss_of_a_batch_that_is_repeated(name, lessons, vae):
    student = encoders.build_student(name, lessons, TINY)
    loss_at = encoders.loss_of_step(name, lessons, student, vae, num_objects=6)
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss = loss_at(1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", encoders.NAMES)
def test_the_loss_of_a_step_follows_from_the_step_alone(name, lessons, vae):
    student = encoders.build_student(name, lessons, TINY)
    loss_at, again = (encoders.loss_of_step(name, lessons, student, vae, num_objects=3) for _ in range(2))
    soft_step = 2 * encoders.SOFT_BATCH_EVERY * encoders.SOFT_BATCH_USES
    once = [loss_at(step).item() for step in (0, 1, soft_step)]
    assert once == [again(step).item() for step in (0, 1, soft_step)]
    assert len(set(once)) == 3


def test_where_there_is_no_answer_the_loss_of_a_question_counts_the_others_alone():
    torch.manual_seed(0)
    answers = torch.tensor([encoders.NO_ANSWER, 6, 7])
    accent = torch.randn(3, 12)
    expected = F.cross_entropy(accent[1:], answers[1:])
    torch.testing.assert_close(encoders.questions_loss({"accent": accent}, {"accent": answers}), expected)
    nobody = torch.full((3,), encoders.NO_ANSWER)
    assert encoders.questions_loss({"accent": accent}, {"accent": nobody}) == 0.0


def test_a_soft_batch_serves_several_steps_each_time_softened_elsewhere(lessons, vae):
    decoded = []
    hook = vae.decoder.register_forward_hook(lambda *_: decoded.append(1))
    student = encoders.build_student("vit", lessons, TINY)
    loss_at = encoders.loss_of_step("vit", lessons, student, vae, num_objects=3)
    period = encoders.SOFT_BATCH_EVERY * encoders.SOFT_BATCH_USES
    losses = [loss_at(step).item() for step in range(0, period, encoders.SOFT_BATCH_EVERY)]
    hook.remove()
    assert len(decoded) == 1
    assert len(set(losses)) == encoders.SOFT_BATCH_USES


def test_clip_begins_as_the_vit_that_was_trained():
    """But for a norm that it has and the ViT has not."""
    lessons = encoders.LESSONS["second"]
    vit = encoders.trained("vit", lessons, Path("nowhere"))
    with torch.no_grad():  # an untrained one's positions and norms say nothing
        for weight in vit.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    clip = encoders.build_clip(edition=lessons.edition)
    pixels = lessons.draw(random.Random(0), 4).pixels_BCHW

    def likeness() -> float:
        with torch.no_grad():
            expected = encoders.vit_embedding(vit, pixels)
            got = clip.vision_model(pixel_values=pixels).pooler_output
        return F.cosine_similarity(got, expected).mean().item()

    assert likeness() < 0.3
    encoders.begin_as_vit(clip, vit, pixels)
    assert likeness() > 0.8
    assert torch.equal(clip.vision_model.encoder.layers[1].mlp.fc1.weight, vit.layers[1].mlp.fc1.weight)


@pytest.mark.slow
def test_the_documented_command_trains_one_encoder_and_goes_on_when_run_again(tmp_path):
    command = [sys.executable, "-m", "dreambooth", "toyworld", "encoders", "--only", "vit"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]

    def steps_after(minutes: str) -> int:
        subprocess.run([*command, "--minutes", minutes], check=True, cwd=REPOSITORY, capture_output=True)
        return torch.load(tmp_path / "work" / "vit.pt", weights_only=True)["step"]

    first = steps_after("0.2")
    assert first > 0
    assert steps_after("0.2") == first, "what is done is not done again"
    assert steps_after("0.6") > first
    assert load_image_encoder(str(tmp_path / "out" / "vit")).images([Image.new("RGB", (64, 64))]).shape == (1, 128)


# --- saving


def test_a_saved_vit_loads_with_plain_transformers_and_embeds_the_same(tmp_path):
    model = encoders.build_student("vit", LESSONS["first"], TINY).model.eval()
    encoders.save(model, tmp_path)
    again = ViTModel.from_pretrained(tmp_path, dtype=torch.float32, add_pooling_layer=False)
    pixels = first_batch(2).pixels_BCHW
    with torch.no_grad():
        torch.testing.assert_close(
            encoders.vit_embedding(again, pixels), encoders.vit_embedding(model, pixels), atol=5e-3, rtol=0
        )


def test_a_saved_clip_loads_with_plain_transformers_and_embeds_the_same(tmp_path, lessons):
    model = encoders.build_student("clip", lessons, TINY).model.eval()
    encoders.save(model, tmp_path, lessons.edition)
    again = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32)
    pixels = first_batch(2).pixels_BCHW
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == again.config.text_config.vocab_size
    assert lessons.edition.vocabulary() <= {word.removesuffix("</w>") for word in tokenizer.get_vocab()}
    tokens = tokenizer(["a robot", "a photo of a dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, got = (m(pixel_values=pixels, **tokens) for m in (model, again))
    torch.testing.assert_close(got.image_embeds, expected.image_embeds, atol=5e-3, rtol=0)
    torch.testing.assert_close(got.text_embeds, expected.text_embeds, atol=5e-3, rtol=0)


# --- the shipped encoders


def test_the_shipped_encoders_are_small_and_half_precision(folder):
    from safetensors.torch import load_file

    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert not any(path.suffix in {".bin", ".pt"} for path in files), "weights are safetensors only"
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 2
    for path in weights:
        for name, tensor in load_file(path).items():
            assert tensor.isfinite().all(), f"{name} in {path}"
            assert tensor.dtype == torch.float16 or not tensor.is_floating_point(), f"{name} in {path}"


@pytest.mark.parametrize(("name", "kind"), [("clip", CLIPModel), ("vit", ViTModel)])
def test_auto_model_finds_the_class_of_a_shipped_encoder(name, kind, folder):
    assert isinstance(AutoModel.from_pretrained(folder / name), kind)


def test_the_shipped_processors_give_pixels_between_minus_one_and_one(clip, vit):
    image = world.render(*world.sample(0)[:2])
    expected = batches.to_pixels([image])
    for processor in (clip.processor, vit.processor):
        pixels = torch.as_tensor(processor([image], return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)
        larger = processor([image.resize((150, 150))], return_tensors="pt")["pixel_values"]
        assert larger.shape == (1, 3, world.SIZE, world.SIZE)


def test_a_text_embeds_the_same_alone_and_padded(clip):
    """The embedding is read at the first end token: padding after it must not matter."""
    texts = ["a robot", "a photo of a striped red and blue robot on the surface of the moon"]
    assert clip.tokenizer.model_max_length == MAX_LENGTH
    padded = clip.texts(texts)
    for text, embedding in zip(texts, padded, strict=True):
        tokens = clip.tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            alone = F.normalize(clip.model.get_text_features(**tokens).pooler_output[0], dim=-1)
        torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=0)
    assert padded[0] @ padded[1] < 0.9


def test_the_shipped_encoders_order_known_cases_rightly(folder, lessons, vae):
    """Weaker than the gates of the model card, on fewer pictures."""
    orderings = metrics.measure(folder, lessons, vae, subjects_per_class=1, images_per_place=1)
    by_name = {ordering.name: ordering for ordering in orderings}
    assert len(by_name) == 8
    for name, ordering in by_name.items():
        for margin in ordering.margins:
            assert margin > 0, f"{name}: {ordering.row()}"
        gate_crisp, gate_softened = ordering.gates
        assert ordering.percents[0] >= (gate_crisp or 70) - 7, f"{name}: {ordering.row()}"
        assert ordering.percents[1] >= (gate_softened or 70) - 7, f"{name}: {ordering.row()}"


def test_an_exam_compares_pictures_of_one_place(lessons):
    test_set = metrics.build_test_set(lessons, subjects_per_class=1, images_per_place=1)
    assert tuple(test_set.classes) == lessons.edition.classes
    num = len(test_set.classes) * len(test_set.places)
    assert {kind: len(images) for kind, images in test_set.images.items()} == dict.fromkeys(metrics.KINDS, num)
    assert len(test_set.photos) == 5 * len(test_set.classes)
    assert not set(metrics.PHOTO_PLACES) & set(test_set.places)


def test_a_folder_without_encoders_is_named(tmp_path, lessons, vae):
    with pytest.raises(ModelError, match="vit: no encoder to measure with"):
        metrics.measure(tmp_path, lessons, vae)


def test_equal_pictures_are_wholly_alike(clip, vit):
    image = Image.new("RGB", (64, 64), (200, 30, 30))
    for encoder in (clip, vit):
        first, second = encoder.images([image, image])
        assert (first @ second).item() == pytest.approx(1.0, abs=1e-5)
