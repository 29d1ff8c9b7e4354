"""The toy world's metric encoders: their losses, their training, and what the shipped ones can tell apart."""

import math
import random
import subprocess
import sys
from pathlib import Path

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
from toyworld.cli import SHIPPED, SHIPPED_ENCODERS
from toyworld.judge import HEADS
from toyworld.tokenizer import MAX_LENGTH

REPOSITORY = Path(__file__).parents[2]
TINY = encoders.Size(width=32, num_layers=1, num_heads=2, text_width=32, num_text_layers=1, projection_dim=16)


@pytest.fixture(scope="module")
def clip():
    return load_clip(str(REPOSITORY / SHIPPED_ENCODERS / "clip"))


@pytest.fixture(scope="module")
def vit():
    return load_image_encoder(str(REPOSITORY / SHIPPED_ENCODERS / "vit"))


@pytest.fixture(scope="module")
def vae():
    return encoders.load_vae(REPOSITORY / SHIPPED)


# --- what they learn from


def test_every_caption_is_true_of_its_own_picture_and_claims_what_it_says():
    rng = random.Random(0)
    for _ in range(25):
        batch = batches.draw(rng, 8)
        texts = batch.captions(rng)
        claims = batches.claims(texts)
        assert batches.is_true(claims, batch.truth()).diagonal().all(), texts
        for text, claim in zip(texts, claims.tolist(), strict=True):
            said = {name: HEADS[name][number] for name, number in zip(HEADS, claim, strict=True) if number >= 0}
            colours = {said[name] for name in ("main", "second", "accent") if name in said}
            assert colours == set(text.split()) & set(world.COLOUR_NAMES), f"{text!r} is read as {said}"


def test_a_caption_with_one_wrong_word_is_untrue():
    batch = batches.draw(random.Random(1), 1)
    truth = batch.truth()
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


def test_no_subject_is_ever_trained_on():
    rng = random.Random(0)
    assert not any(world.is_held_out(spec) for _ in range(8) for spec in batches.draw(rng, 24).specs)


def test_half_of_the_pictures_are_softened():
    torch.manual_seed(0)
    crisp, soft = torch.zeros(2000, 1, 1, 1), torch.ones(2000, 1, 1, 1)
    assert (batches.augment(crisp, soft) > 0.5).float().mean() == pytest.approx(0.5, abs=0.05)


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
def test_a_few_steps_lower_the_loss_of_a_batch_that_is_repeated(name, vae):
    student = encoders.build_student(name, TINY)
    loss_at = encoders.loss_of_step(name, student, vae, num_objects=6)
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
def test_the_loss_of_a_step_follows_from_the_step_alone(name, vae):
    student = encoders.build_student(name, TINY)
    first = encoders.loss_of_step(name, student, vae, num_objects=3)
    second = encoders.loss_of_step(name, student, vae, num_objects=3)
    soft_step = 2 * encoders.SOFT_BATCH_EVERY * encoders.SOFT_BATCH_USES
    once = [first(step).item() for step in (0, 1, soft_step)]
    assert once == [second(step).item() for step in (0, 1, soft_step)]
    assert len(set(once)) == 3


def test_objects_without_a_pattern_are_not_asked_for_the_accent_colour():
    torch.manual_seed(0)
    pattern = torch.tensor([0, 1, 2])
    truth = {"pattern": pattern, "accent": torch.tensor([5, 6, 7])}
    accent = torch.randn(3, 12)
    expected = F.cross_entropy(accent[1:], truth["accent"][1:])
    torch.testing.assert_close(encoders.questions_loss({"accent": accent}, truth), expected)
    nobody = {"pattern": torch.zeros(3, dtype=torch.long), "accent": truth["accent"]}
    assert encoders.questions_loss({"accent": accent}, nobody) == 0.0


def test_a_soft_batch_serves_several_steps_each_time_softened_elsewhere(vae):
    decoded = []
    hook = vae.decoder.register_forward_hook(lambda *_: decoded.append(1))
    loss_at = encoders.loss_of_step("vit", encoders.build_student("vit", TINY), vae, num_objects=3)
    period = encoders.SOFT_BATCH_EVERY * encoders.SOFT_BATCH_USES
    losses = [loss_at(step).item() for step in range(0, period, encoders.SOFT_BATCH_EVERY)]
    hook.remove()
    assert len(decoded) == 1
    assert len(set(losses)) == encoders.SOFT_BATCH_USES


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
    model = encoders.build_student("vit", TINY).model.eval()
    encoders.save(model, tmp_path)
    again = ViTModel.from_pretrained(tmp_path, dtype=torch.float32, add_pooling_layer=False)
    pixels = batches.draw(random.Random(0), 2).pixels_BCHW
    with torch.no_grad():
        torch.testing.assert_close(
            encoders.vit_embedding(again, pixels), encoders.vit_embedding(model, pixels), atol=5e-3, rtol=0
        )


def test_a_saved_clip_loads_with_plain_transformers_and_embeds_the_same(tmp_path):
    model = encoders.build_student("clip", TINY).model.eval()
    encoders.save(model, tmp_path)
    again = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32)
    pixels = batches.draw(random.Random(0), 2).pixels_BCHW
    tokens = AutoTokenizer.from_pretrained(tmp_path)(["a robot", "a photo of a dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, got = (m(pixel_values=pixels, **tokens) for m in (model, again))
    torch.testing.assert_close(got.image_embeds, expected.image_embeds, atol=5e-3, rtol=0)
    torch.testing.assert_close(got.text_embeds, expected.text_embeds, atol=5e-3, rtol=0)


# --- the shipped encoders


def test_the_shipped_encoders_are_small_and_half_precision():
    from safetensors.torch import load_file

    files = [path for path in (REPOSITORY / SHIPPED_ENCODERS).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert not any(path.suffix in {".bin", ".pt"} for path in files), "weights are safetensors only"
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 2
    for path in weights:
        for name, tensor in load_file(path).items():
            assert tensor.isfinite().all(), f"{name} in {path}"
            assert tensor.dtype == torch.float16 or not tensor.is_floating_point(), f"{name} in {path}"


@pytest.mark.parametrize(("name", "kind"), [("clip", CLIPModel), ("vit", ViTModel)])
def test_auto_model_finds_the_class_of_a_shipped_encoder(name, kind):
    assert isinstance(AutoModel.from_pretrained(REPOSITORY / SHIPPED_ENCODERS / name), kind)


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


def test_the_shipped_encoders_order_known_cases_rightly(vae):
    """Weaker than the gates of the model card, on fewer pictures."""
    orderings = metrics.measure(REPOSITORY / SHIPPED_ENCODERS, vae, subjects_per_class=1, images_per_place=1)
    by_name = {ordering.name: ordering for ordering in orderings}
    assert len(by_name) == 8
    for name, ordering in by_name.items():
        for margin in ordering.margins:
            assert margin > 0, f"{name}: {ordering.row()}"
        gate_crisp, gate_softened = ordering.gates
        assert ordering.percents[0] >= (gate_crisp or 70) - 7, f"{name}: {ordering.row()}"
        assert ordering.percents[1] >= (gate_softened or 70) - 7, f"{name}: {ordering.row()}"


def test_an_exam_compares_pictures_of_one_place():
    test_set = metrics.build_test_set(subjects_per_class=1, images_per_place=1)
    num = len(test_set.classes) * len(test_set.places)
    assert {kind: len(images) for kind, images in test_set.images.items()} == dict.fromkeys(metrics.KINDS, num)
    assert len(test_set.photos) == 5 * len(test_set.classes)
    assert not set(metrics.PHOTO_PLACES) & set(test_set.places)


def test_a_folder_without_encoders_is_named(tmp_path, vae):
    with pytest.raises(ModelError, match="vit: no encoder to measure with"):
        metrics.measure(tmp_path, vae)


def test_equal_pictures_are_wholly_alike(clip, vit):
    image = Image.new("RGB", (64, 64), (200, 30, 30))
    for encoder in (clip, vit):
        first, second = encoder.images([image, image])
        assert (first @ second).item() == pytest.approx(1.0, abs=1e-5)
