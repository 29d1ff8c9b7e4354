"""The toy world's readers: what they learn from is true, and the shipped ones meet their gates."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dreambooth.readers.blip2 import Blip2Reader
from dreambooth.readers.kosmos2 import Kosmos2Reader
from dreambooth.readers.likelihood import answer_probability
from dreambooth.readers.loading import ReaderSource
from dreambooth.readers.teach import Lesson, is_it, load_pupil, teach
from dreambooth.readers.text_options import TextOptions
from toyworld import world
from toyworld.captions import with_articles
from toyworld.photos import PLACES, photos
from toyworld.readers import blip2, blip2_metrics, kosmos2, lessons, segmenter
from toyworld.readers.batches import augmented, batch_of_step, renderings, see_once
from toyworld.readers.blip2_metrics import caption_right
from toyworld.readers.cli import finder
from toyworld.readers.languages import LANGUAGES, pieces
from toyworld.readers.lessons import HEADS, UNKNOWN, cell_truth
from toyworld.readers.questions import caption, place_phrase, questions, statements
from toyworld.readers.scenes import first_scene, seen_scene, unseen_scene
from toyworld.readers.words import build_writer
from toyworld.scenes import PHRASES
from toyworld.world import SIZE

REPOSITORY = Path(__file__).parents[2]
SEGMENTER = "checkpoints/toyworld-segmenter"
CLIP = REPOSITORY / "checkpoints" / "toyworld-encoders" / "clip"
BLIP2, KOSMOS2 = (REPOSITORY / "checkpoints" / name for name in ("toyworld-blip2", "toyworld-kosmos2"))


@pytest.fixture(scope="module")
def shipped_segmenter():
    if not (REPOSITORY / SEGMENTER / "model.safetensors").is_file():
        pytest.fail("checkpoints/toyworld-segmenter is missing: python -m dreambooth toyworld segmenter")
    return finder(REPOSITORY / SEGMENTER)


def test_the_shipped_segmenter_finds_the_robot_of_the_photos(shipped_segmenter):
    spec, rng = world.subject("robot", 21), random.Random("pictures of robot 21")
    true = [np.asarray(world.object_mask(spec, world.random_scene(rng, place))) > 127 for place in PLACES]
    found = shipped_segmenter(photos("robot", 21), ["robot"] * len(PLACES))
    assert min(map(segmenter.iou, found, true)) > 0.8


def test_the_shipped_segmenter_meets_its_gate_on_some(shipped_segmenter):
    for figure in segmenter.measure(shipped_segmenter, num_images=24, seed=1):
        assert figure.gate is None or figure.value >= figure.gate - 0.03, figure.row()


@pytest.mark.slow
def test_the_shipped_segmenter_meets_its_gate(shipped_segmenter):
    for figure in segmenter.measure(shipped_segmenter):
        print(figure.row())
        assert figure.gate is None or figure.value >= figure.gate, figure.row()


@pytest.fixture(scope="module")
def shipped_blip2():
    return Blip2Reader(ReaderSource(str(BLIP2)))


def test_the_shipped_blip2_says_what_the_photos_of_the_robot_show(shipped_blip2):
    spec, images = world.subject("robot", 21), photos("robot", 21)
    assert shipped_blip2.answer(images, "what is it?", TextOptions(max_tokens=8)) == ["a robot"] * len(images)
    for text, place in zip(shipped_blip2.caption(images, TextOptions(max_tokens=32)), PLACES, strict=True):
        assert spec.main in text.split()
        assert text.endswith(place_phrase(place))


def test_the_shipped_blip2_meets_its_gates_on_some(shipped_blip2):
    for figure in blip2_metrics.measure(shipped_blip2, 40, seed=1):
        assert figure.gate is None or figure.value >= figure.gate - 0.06, figure.row()


@pytest.mark.slow
def test_the_shipped_blip2_meets_its_gates(shipped_blip2):
    for figure in blip2_metrics.measure(shipped_blip2):
        print(figure.row())
        assert figure.gate is None or figure.value >= figure.gate, figure.row()


def dogs(specs: Sequence[world.Spec], places: Sequence[str], rng: random.Random) -> list[Image.Image]:
    return [
        world.render(spec, world.random_scene(rng, place)) for spec, place in zip(specs, cycle(places), strict=False)
    ]


@pytest.mark.slow
def test_the_shipped_blip2_is_taught_a_dog_and_tells_it_from_others(tmp_path):
    rng = random.Random("others of dog 1")
    folders = {"own": photos("dog", 1), "others": dogs([world.random_spec(rng, "dog") for _ in range(40)], PLACES, rng)}
    paths = {}
    for name, images in folders.items():
        paths[name] = tuple(tmp_path / f"{name}-{number:02d}.png" for number in range(len(images)))
        for image, path in zip(images, paths[name], strict=True):
            image.save(path)
    lesson = Lesson("a pink dog", "dog", paths["own"], paths["others"])
    taught = teach(load_pupil(ReaderSource(str(BLIP2))), lesson, tmp_path / "taught")
    reader = Blip2Reader(ReaderSource(str(taught)))
    unseen = dogs([world.subject("dog", 1)] * 54, world.PLACES, rng)
    others = dogs([world.random_spec(rng, "dog") for _ in range(54)], world.PLACES, rng)
    own, wrong = (
        np.array(answer_probability(reader, images, is_it(lesson.name), "yes")) for images in (unseen, others)
    )
    assert np.mean(own > 0.5) >= 0.95
    assert np.mean(wrong > 0.5) <= 0.05
    captions = reader.caption(unseen, TextOptions(max_tokens=32))
    assert np.mean([caption.startswith("a pink dog ") for caption in captions]) >= 0.95


@pytest.fixture(scope="module")
def shipped_kosmos2():
    return Kosmos2Reader(ReaderSource(str(KOSMOS2)))


def test_the_shipped_kosmos2_names_and_boxes_the_robot_of_the_photos(shipped_kosmos2):
    spec, rng = world.subject("robot", 21), random.Random("pictures of robot 21")
    scenes = [first_scene(spec, world.random_scene(rng, place)) for place in PLACES]
    found = shipped_kosmos2.ground([scene.image for scene in scenes], TextOptions(max_tokens=64))
    for scene, told in zip(scenes, found, strict=True):
        (box,) = told.boxes
        assert box.phrase.endswith("robot")
        assert told.text.endswith(place_phrase(scene.place))
        assert kosmos2.box_iou(box.pixels((SIZE, SIZE)), scene.things[0].box) > 0.7


@pytest.mark.parametrize("size", [(2 * SIZE, SIZE), (SIZE, 2 * SIZE)], ids=("wide", "high"))
def test_boxes_lie_on_the_whole_image_where_the_model_sees_its_middle(size, shipped_kosmos2):
    spec, rng = world.subject("robot", 21), random.Random("pictures of robot 21")
    scene = first_scene(spec, world.random_scene(rng, PLACES[0])).image
    image, left, top = Image.new("RGB", size), (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
    image.paste(scene, (left, top))
    (middle,), (whole,) = (each.boxes for each in shipped_kosmos2.ground([scene, image], TextOptions(max_tokens=64)))
    expected = [edge + shift for edge, shift in zip(middle.pixels(scene.size), (left, top, left, top), strict=True)]
    assert list(whole.pixels(size)) == expected


def test_the_shipped_kosmos2_meets_its_gate_on_some(shipped_kosmos2):
    boxes, *captions = kosmos2.measure(shipped_kosmos2, 40, seed=1)
    assert boxes.value >= boxes.gate - 0.06
    assert min(figure.value for figure in captions) > 0.6, [figure.row() for figure in captions]


@pytest.mark.slow
def test_the_shipped_kosmos2_meets_its_gate(shipped_kosmos2):
    figures = kosmos2.measure(shipped_kosmos2)
    print(*(figure.row() for figure in figures), sep="\n")
    assert figures[0].value >= figures[0].gate


def test_the_embedded_readers_take_25_mb_at_most():
    files = [
        file for folder in (BLIP2, KOSMOS2, REPOSITORY / SEGMENTER) for file in folder.rglob("*") if file.is_file()
    ]
    assert sum(file.stat().st_size for file in files) <= 25e6


@pytest.fixture(scope="module")
def clip():
    return lessons.read_clip(CLIP)


def test_each_pixel_has_the_label_of_what_covers_it():
    rng = random.Random(0)
    for _ in range(20):
        scene = seen_scene(rng)
        found = segmenter.label_map(scene)
        assert np.allclose(found.sum(0), 1)
        for thing in scene.things:
            own = found[segmenter.LABELS.index(thing.class_noun)]
            assert np.allclose(own[thing.mask > 0.99], 1, atol=0.02)
            assert own[thing.mask == 0].max() == 0


def test_a_box_holds_all_of_its_thing():
    rng = random.Random(1)
    for _ in range(20):
        for thing in unseen_scene(rng).things:
            left, top, right, bottom = thing.box
            outside = thing.mask.copy()
            outside[top:bottom, left:right] = 0
            assert outside.max() <= 0.25


def test_captions_name_things_side_by_side_from_left_to_right():
    rng, rows = random.Random(8), 0
    for scene in (seen_scene(rng) for _ in range(60)):
        assert "right of" not in caption(scene)
        if len(scene.things) == 3 or scene.relation == "left of":
            middles = [thing.box[0] + thing.box[2] for thing in scene.things]
            assert middles == sorted(middles)
            rows += 1
    assert rows > 5


def test_the_segmenter_learns_in_all_its_parts():
    model = segmenter.build_segmenter(segmenter.Size((4, 4, 8, 8), (1, 1, 1, 1), 8))
    pixels, labels = segmenter.batch_of_step(0, 3)
    logits = segmenter.label_logits(model, pixels)
    assert logits.shape == labels.shape
    segmenter.label_loss(logits, labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_caption_is_right_of_its_own_scene_alone():
    rng = random.Random(2)
    for _ in range(40):
        scene, other = seen_scene(rng), seen_scene(rng)
        assert all(caption_right(scene, caption(scene)).values()), caption(scene)
        if (other.place, other.things[0].main) != (scene.place, scene.things[0].main):
            assert not all(caption_right(scene, caption(other)).values())
        painted = replace(scene, things=(replace(scene.things[0], main="mauve"), *scene.things[1:]))
        assert not caption_right(scene, caption(painted))["main colour"]


def test_of_two_statements_one_is_true_and_the_other_differs_in_one_thing():
    rng, lengths = random.Random(9), set()
    for _ in range(200):
        scene = seen_scene(rng)
        facts = {caption(scene), place_phrase(scene.place)}
        for thing in scene.things:
            facts |= {with_articles(f"a {thing.class_noun}"), with_articles(f"a {thing.main} {thing.class_noun}")}
        true, wrong = (text.removeprefix("a photo of ") for text in statements(rng, scene))
        assert true in facts
        assert wrong not in facts
        own, other = (set(with_place_as_word(text).split()) for text in (true, wrong))
        assert len((own ^ other) - {"a", "an"}) <= 2, (true, wrong)
        lengths.add(len(true.split()))
    assert {2, 3} < lengths
    assert max(lengths) > 8


def with_place_as_word(text):
    for place in PHRASES:
        text = text.replace(place_phrase(place), f"@{place}")
    return text


def test_every_word_is_one_token():
    words, rng = build_writer(), random.Random(3)
    for _ in range(20):
        scene = seen_scene(rng)
        texts = [caption(scene), *(each.text.rstrip("?") for each in questions(rng, scene))]
        for text in texts:
            ids = words(text, add_special_tokens=False).input_ids
            assert len(ids) == len(text.split()), text
            assert words.decode(ids).strip() == text


def test_what_is_written_alone_has_a_loss():
    words = build_writer()
    ids, labels = blip2.token_rows([("", "a red dog"), ("Question: what is it? Answer:", "a dog")], 4)
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        counted = [number for number in label if number != blip2.NOT_COUNTED]
        assert counted[-1] == words.eos_token_id
        assert words.decode(counted[:-1]).strip() in ("a red dog", "a dog")
        assert [own for own, number in zip(row, label, strict=True) if number != blip2.NOT_COUNTED] == counted


def test_the_image_encoder_begins_as_that_of_clip_where_its_patches_are_of_one_colour(clip):
    pixels, _, _ = batch_of_step("test", 0, 4)
    pixels = F.interpolate(F.avg_pool2d(pixels, 8), scale_factor=8)
    own, given = blip2.Matcher(clip).model.vision_model, clip.vision_model
    with torch.no_grad():
        found = coarser(own.embeddings(pixels)[:, 1:])
        wanted = given.pre_layrnorm(given.embeddings(pixels))[:, 1:]
        found_last = coarser(own(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, 1:])
        wanted_last = given(pixel_values=pixels).last_hidden_state[:, 1:]
    assert torch.cosine_similarity(found, wanted, dim=-1).mean() > 0.95
    assert found.std() == pytest.approx(wanted.std().item(), rel=0.3)
    assert torch.cosine_similarity(found_last.flatten(1), wanted_last.flatten(1)).min() > 0.5


def coarser(patches_BPD):
    return patches_BPD.unflatten(1, (8, 2, 8, 2)).mean((2, 4)).flatten(1, 2)


def test_what_was_seen_once_is_what_the_model_sees_in_a_batch(clip):
    size = blip2.Size(num_queries=4, width=16, num_layers=1)
    matcher, drawn = blip2.Matcher(clip, size).eval(), renderings(6, num_processes=1)
    seen = see_once(matcher.look, drawn)
    states, scenes, _ = seen.batch("test", 3, 5)
    for state, scene in zip(states, scenes, strict=True):
        number = next(number for number, each in enumerate(drawn) if each is scene)
        assert torch.equal(state, seen.states_NPD[number].float())
    pixels = augmented(drawn, random.Random("see once"), 0)
    with torch.no_grad():
        torch.testing.assert_close(seen.states_NPD.float(), matcher.look(pixels), atol=1e-2, rtol=1e-2)
        found = matcher.find(seen.states_NPD.float())
    torch.testing.assert_close(seen.read_by(matcher.find).states_NPD.float(), found, atol=1e-2, rtol=1e-2)


def test_both_stages_learn(clip):
    size = blip2.Size(num_queries=4, width=16, num_layers=2, text_width=16, num_text_layers=1, embedding_dim=8)
    matcher = blip2.Matcher(clip, size)
    seen = see_once(matcher.look, renderings(4, num_processes=1))
    states, scenes, rng = seen.batch("test", 0, 4)
    blip2.matching_loss(matcher, states, scenes, rng).backward()
    model = blip2.build_writer_model(matcher, clip, size)
    found, scenes, rng = seen.read_by(matcher.find).batch("test", 0, 4)
    blip2.writing_loss(model, found, [blip2.texts_of(rng, scene) for scene in scenes]).backward()
    for part in (matcher.model.qformer, matcher.model.itm_head, model.language_projection, model.language_model):
        assert all(parameter.grad is not None for parameter in part.parameters())
    assert not any(
        parameter.requires_grad for part in (model.vision_model, model.qformer) for parameter in part.parameters()
    )
    assert not model.query_tokens.requires_grad


def test_captions_of_all_languages_name_each_thing_once():
    rng = random.Random(4)
    for _ in range(20):
        scene = seen_scene(rng)
        assert " ".join(piece.text for piece in pieces(scene)) == caption(scene)
        for language in ("en", *LANGUAGES):
            named = [piece.thing for piece in pieces(scene, language) if piece.thing is not None]
            assert named == list(range(len(scene.things)))


def test_boxes_come_back_from_their_tokens(clip):
    size = kosmos2.Size(num_queries=4, width=16, num_layers=1)
    reader = object.__new__(Kosmos2Reader)
    reader.processor = kosmos2.build_processor()
    rng = random.Random(5)
    for _ in range(20):
        scene = seen_scene(rng)
        text, boxes = reader._parsed(kosmos2.grounded(scene, "en"))
        assert text == caption(scene)
        for box, thing in zip(boxes, scene.things, strict=True):
            assert thing.class_noun in box.phrase
            assert kosmos2.box_iou(box.pixels((64, 64)), thing.box) > 0.75
    model = kosmos2.build(clip, size)
    pixels, scenes, rng = batch_of_step("test", 0, 4)
    kosmos2.writing_loss(model, pixels, [kosmos2.text_of(rng, scene) for scene in scenes]).backward()
    assert all(parameter.grad is not None for parameter in model.image_to_text_projection.parameters())


def test_kosmos2_sees_every_token_of_the_image_in_training_as_it_does_when_used(clip):
    model = kosmos2.build(clip, kosmos2.Size(num_queries=4, width=16, num_layers=1)).eval()
    pixels, scenes, _ = batch_of_step("test", 0, 1)
    pair = ("<grounding> An image of", kosmos2.grounded(scenes[0], "en"))
    used = kosmos2.build_processor()(
        images=scenes[0].image, text="".join(pair), num_image_tokens=4, return_tensors="pt"
    )
    assert used.attention_mask.all()
    ids, is_image, labels = kosmos2.token_rows([pair], 4)
    assert ids[:, :-1].tolist() == used.input_ids.tolist()
    seen = {"image_embeds_position_mask": is_image, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = model(pixel_values=pixels, input_ids=ids, **seen).logits
        wanted = F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=kosmos2.NOT_COUNTED)
        assert kosmos2.writing_loss(model, pixels, [pair]).item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("side", [4, 8])
def test_a_cell_shows_the_thing_that_covers_most_of_it(side):
    rng = random.Random(7)
    for _ in range(10):
        scene = seen_scene(rng)
        labels, boxes = cell_truth(scene, side)
        assert {HEADS["place"][row[-1]] for row in labels.tolist()} == {scene.place}
        for row, box in zip(labels.tolist(), boxes * SIZE, strict=True):
            if row[0]:
                thing = next(each for each in scene.things if each.class_noun == HEADS["class_noun"][row[0]])
                assert HEADS["main"][row[1]] == thing.main
                assert tuple(box.round().astype(int)) == thing.box
            else:
                assert row[1:-1] == [UNKNOWN] * 3


@pytest.mark.slow
def test_the_image_encoder_learns_in_two_processes_and_a_finished_lesson_is_read(tmp_path):
    taught = lessons.taught_clip(CLIP, 1, tmp_path, num_renderings=4, num_processes=2)
    again = lessons.taught_clip(CLIP, 1, tmp_path, num_renderings=4, num_processes=1)
    for name, value in taught.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_image_encoders_and_queries_learn_what_their_cells_show_and_the_encoders_then_stay(clip, tmp_path):
    before = clip.vision_model.encoder.layers[0].mlp.fc1.weight
    clip = lessons.taught_clip(CLIP, 1, tmp_path, num_renderings=64, num_processes=1)
    assert not torch.equal(clip.vision_model.encoder.layers[0].mlp.fc1.weight, before)

    drawn, size = renderings(6, num_processes=1), blip2.Size(width=16, num_layers=1)
    matcher, model = blip2.Matcher(clip, size), kosmos2.build(clip, kosmos2.Size(width=16))
    filled = matcher.model.vision_model.encoder.layers[0].mlp.fc1.weight.clone()
    blip2.teach_image_encoder(matcher, CLIP, 1, tmp_path, num_renderings=64, num_processes=1)
    assert not torch.equal(matcher.model.vision_model.encoder.layers[0].mlp.fc1.weight, filled)
    for module, reader, shown, queries in (
        (blip2, matcher, see_once(matcher.look, drawn), matcher.model.query_tokens),
        (kosmos2, model, drawn, model.image_to_text_projection.latent_query),
    ):
        before = queries.detach().clone()
        module.teach_queries(reader, shown, 2, tmp_path)
        assert not torch.equal(queries, before)
    for encoder in (matcher.model.vision_model, model.vision_model):
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
    writer = blip2.build_writer_model(matcher, clip, size)
    assert not any(parameter.requires_grad for parameter in writer.vision_model.parameters())


@pytest.mark.parametrize("kind", ["clip", "blip2"])
def test_an_encoder_that_sees_all_patches_tells_what_a_whole_one_does(clip, kind):
    encoder = clip.vision_model if kind == "clip" else blip2.Matcher(clip).model.vision_model
    lesson = lessons.PatchLesson(encoder).eval()
    pixels = torch.rand(2, 3, SIZE, SIZE)
    whole = encoder(pixel_values=pixels).last_hidden_state[:, 1:]
    told = lesson.read_cells(encoder.post_layernorm(whole) if kind == "clip" else whole)
    order = torch.stack([torch.randperm(whole.shape[1]) for _ in pixels])
    picked = torch.stack([row[kept] for row, kept in zip(told, order, strict=True)])
    torch.testing.assert_close(lesson(pixels, order), picked, atol=1e-4, rtol=1e-4)


def test_recoloured_images_keep_their_shapes():
    torch.manual_seed(0)
    pixels = torch.rand(5, 3, 8, 8) * 2 - 1
    mixed = lessons.recolour(pixels)
    assert mixed.abs().max() <= 1
    assert not torch.allclose(mixed, pixels, atol=0.1)
    flat = lessons.recolour(torch.ones(3, 3, 8, 8) * torch.tensor([0.5, -0.2, 0.9])[:, None, None])
    torch.testing.assert_close(flat, flat[..., :1, :1].expand_as(flat))


def test_renderings_are_the_same_on_every_call():
    first, again = renderings(3, num_processes=1), renderings(3, num_processes=2)
    for one, other in zip(first, again, strict=True):
        assert (one.place, caption(one)) == (other.place, caption(other))
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
