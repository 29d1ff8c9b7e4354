"""Models that read images: masks, captions, answers, boxes and search, by real networks at tiny size."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from tiny import CLIP_SIZE
from transformers import (
    CLIPImageProcessor,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPVisionConfig,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTImageProcessor,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from dreambooth.cli import main, teaching
from dreambooth.cli.image_paths import image_paths
from dreambooth.errors import ModelError, UserError
from dreambooth.generation.grids.grid_run import PAGE, SHEET
from dreambooth.generation.inputs.found_mask import find_mask_of, is_words
from dreambooth.readers.attention import PUNCTUATION, seen_part, word_maps
from dreambooth.readers.blip2 import Blip2Reader
from dreambooth.readers.describe import Description, describe, in_batches, ranked
from dreambooth.readers.drawing import draw_boxes, draw_word
from dreambooth.readers.likelihood import answer_probability
from dreambooth.readers.loading import ReaderSource, moved
from dreambooth.readers.masks import FINDERS, find_mask, load_mask_finder
from dreambooth.readers.one_photo import PhotoDescriber
from dreambooth.readers.outputs import as_csv, as_json
from dreambooth.readers.protocols import PhraseBox, WordMap
from dreambooth.readers.request import DescribeRequest
from dreambooth.readers.table import load_matcher, load_reader, load_searcher
from dreambooth.readers.taught import read_taught
from dreambooth.readers.teach import Example, ExampleDataset, Lesson, image_states, load_pupil, teach, with_name
from dreambooth.readers.text_options import TextOptions
from dreambooth.readers.usual import SEARCH, Usual
from toyworld import encoders
from toyworld.readers import segmenter
from toyworld.readers.words import build_writer
from toyworld.tokenizer import build_tokenizer

SHORT = TextOptions(max_tokens=4)
CHAT = "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\
{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write three images of noise, of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for number, size in enumerate(((48, 80, 3), (64, 64, 3), (90, 40, 3))):
        Image.fromarray(draws.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def images(photos: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in photos]


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    encoders.save(encoders.build_clip(CLIP_SIZE), folder)
    return folder


@pytest.fixture(scope="module")
def clipseg_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a CLIPSeg of random weights that reads the toy world's words."""
    folder, words = tmp_path_factory.mktemp("clipseg"), build_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "max_position_embeddings": 32}
    config = CLIPSegConfig(
        text_config={**shape, **ids},
        vision_config={**shape, "image_size": 64, "patch_size": 8},
        projection_dim=8,
        extract_layers=[0],
        reduce_dim=8,
        decoder_intermediate_size=16,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    CLIPSegProcessor(ViTImageProcessor(size={"height": 64, "width": 64}), words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segformer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a SegFormer of random weights with the toy world's labels."""
    folder = tmp_path_factory.mktemp("segformer")
    segmenter.save(segmenter.build_segmenter(segmenter.Size((4, 4, 8, 8), (1, 1, 1, 1), 8)), folder)
    return folder


@pytest.fixture(scope="module")
def blip2_model(tiny_blip2: Path) -> Path:
    return tiny_blip2


@pytest.fixture(scope="module")
def kosmos2_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kosmos2")
    torch.manual_seed(0)
    image = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    processor = Kosmos2Processor(_image_processor(), build_writer.__wrapped__(), num_patch_index_tokens=1024)
    text = {"embed_dim": 16, "ffn_dim": 32, "layers": 1, "attention_heads": 2, "vocab_size": len(processor.tokenizer)}
    config = Kosmos2Config(
        text_config=text, vision_config={**image, "image_size": 32, "patch_size": 16}, latent_query_num=4
    )
    config.languages = ["de"]
    Kosmos2ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a LLaVA of random weights: an image-text-to-text model that has no row of its own."""
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    words = build_writer.__wrapped__()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    token = words.convert_tokens_to_ids("<image>")
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=token)
    ).save_pretrained(folder)
    LlavaProcessor(
        _image_processor(), words, patch_size=16, vision_feature_select_strategy="default", chat_template=CHAT,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


# -------------------------------------------------------------------------------- masks


def test_a_mask_is_as_large_as_its_image_and_black_or_white(clipseg_model, images):
    masks = load_mask_finder(str(clipseg_model))(images, ["a robot", "the dog", "subject"])
    assert [mask.size for mask in masks] == [image.size for image in images]
    for mask in masks:
        assert mask.mode == "L"
        assert {value for value, count in enumerate(mask.histogram()) if count} <= {0, 255}


def test_a_segmenter_with_labels_finds_those_that_a_text_names(segformer_model, images):
    finder = load_mask_finder(str(segformer_model))
    assert finder.numbers_of("the red Robot") == [1]
    assert finder.numbers_of("a dog, a cat") == [2, 3]
    assert finder.numbers_of("the subject") == list(range(1, 12))
    with pytest.raises(UserError, match="no label of it; it has background, backpack, car"):
        finder(images, ["robot", "dog", "a zebra"])
    assert [mask.size for mask in finder(images, ["robot", "dog", "subject"])] == [image.size for image in images]


def test_a_label_is_named_whatever_joins_its_words_and_the_background_in_any_case(segformer_model, tmp_path):
    folder = shutil.copytree(segformer_model, tmp_path / "clothes")
    config = json.loads((folder / "config.json").read_text())
    labels = {int(number): label for number, label in config["id2label"].items()}
    labels |= {0: "Background", 1: "Upper-clothes", 2: "Left-shoe", 3: "帽子"}
    config |= {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    finder = load_mask_finder(str(folder))
    assert finder.numbers_of("the upper-clothes") == finder.numbers_of("Upper clothes") == [1]
    assert finder.numbers_of("the left shoe") == [2]
    assert finder.numbers_of("帽子") == [3]
    assert finder.numbers_of("the subject") == list(range(1, 12))
    with pytest.raises(UserError, match="no label of it"):
        finder.numbers_of("the shoe")


def test_the_background_is_all_but_the_subject(clipseg_model, images):
    finder = load_mask_finder(str(clipseg_model))
    noun = next(word for word in ("robot", "dog", "cat", "subject") if finder(images[:1], [word])[0].getbbox())
    subject = find_mask(images[0], noun, str(clipseg_model))
    background = find_mask(images[0], "background", str(clipseg_model), noun=noun)
    assert ImageChops.add(subject, background).getextrema() == (255, 255)
    assert ImageChops.multiply(subject, background).getextrema() == (0, 0)


def test_sam_refines_within_the_box_of_a_coarse_mask(clipseg_model, images, tmp_path, monkeypatch):
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    vision |= {"image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 8}
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SamConfig(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config={**decoder, "iou_head_hidden_dim": 8}
    )
    SamModel(config).save_pretrained(tmp_path)
    SamProcessor(SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})).save_pretrained(
        tmp_path
    )
    monkeypatch.setattr("dreambooth.readers.masks.MASK", Usual(str(clipseg_model), ""))
    masks = load_mask_finder(str(tmp_path))(images, ["robot", "dog", "subject"])
    assert [mask.size for mask in masks] == [image.size for image in images]


def test_what_is_not_found_is_reported(clipseg_model, images, monkeypatch):
    monkeypatch.setattr("dreambooth.readers.masks.ClipSegFinder.__call__", lambda self, i, t: [Image.new("L", (8, 8))])
    with pytest.raises(UserError, match="finds no 'a hat'"):
        find_mask(images[0], "a hat", str(clipseg_model))


def test_a_model_that_finds_no_masks_is_named(clip_model, tmp_path):
    with pytest.raises(ModelError, match="a clip finds no masks"):
        load_mask_finder(str(clip_model))
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_mask_finder(str(tmp_path))
    pytest.importorskip("fastapi", reason="the extra 'studio' is not installed")
    from dreambooth.studio.pages.proposed_masks import KINDS

    assert {*KINDS} == {*FINDERS}, "the studio offers the folders that this reads"


def test_words_for_a_mask_are_told_from_files(photos):
    assert all(map(is_words, ("subject", "the hat", "background")))
    assert not any(map(is_words, (str(photos[0]), "mask.png", "masks/mine", None, Image.new("L", (8, 8)))))


def test_a_model_without_a_subject_has_none_to_find(photos):
    with pytest.raises(UserError, match="has learned no subject"):
        find_mask_of("subject", photos[0], ())


# -------------------------------------------------------------------------------- captions and answers


@pytest.fixture(scope="module")
def blip2_reader(blip2_model) -> Blip2Reader:
    reader = load_reader(ReaderSource(str(blip2_model)))
    assert isinstance(reader, Blip2Reader)
    return reader


def test_a_batch_is_described_as_each_image_alone(blip2_reader, images):
    together = blip2_reader.caption(images, SHORT)
    assert together == [blip2_reader.caption([image], SHORT)[0] for image in images]
    assert len(blip2_reader.answer(images, "what is it?", SHORT)) == 3


def test_a_drawn_text_follows_from_the_seed(blip2_reader, images):
    drawn = [blip2_reader.caption(images, TextOptions(max_tokens=8, temperature=5.0, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_text_ends_where_the_language_model_has_no_more_positions(blip2_model, photos, tmp_path, capsys):
    most = Blip2Reader(ReaderSource(str(blip2_model))).network.config.text_config.max_position_embeddings
    command = ["describe", str(photos[0]), "--model", str(blip2_model), "--out", str(tmp_path / "out")]
    assert main([*command, "--question", "what is it? " * 300]) == 2
    told = "error: --question 'what is it? what is it? what is it? w...': with the image it takes "
    assert told in (error := capsys.readouterr().err)
    assert f"of the {most} tokens that" in error
    assert main([*command, "--max-tokens", str(10 * most), "--min-tokens", str(most)]) == 2
    error = capsys.readouterr().err
    given = re.search(rf"error: --min-tokens {most}: with the image it takes (\d+) of the", error)[1]
    longest = str(most - int(given))
    assert main([*command, "--max-tokens", str(10 * most), "--min-tokens", longest, "--attention"]) == 0


def test_an_answer_beyond_the_positions_has_no_likelihood(blip2_reader, images):
    with pytest.raises(UserError, match=r"question 'what is it\? .*\.\.\.': with the image it takes"):
        answer_probability(blip2_reader, images, "what is it? " * 300, "yes")


def test_blip2_tells_what_it_cannot_do(blip2_reader, images):
    with pytest.raises(UserError, match="name a Kosmos-2"):
        blip2_reader.ground(images, SHORT)
    with pytest.raises(UserError, match="writes English alone"):
        blip2_reader.caption(images, SHORT, "de")


def test_kosmos2_reads_boxes_from_its_text(kosmos2_model, images):
    reader = load_reader(ReaderSource(str(kosmos2_model)))
    assert len(reader.ground(images, SHORT)) == 3
    text, boxes = reader._parsed(
        "</image><grounding> An image of<phrase> a robot</phrase><object><patch_index_0000><patch_index_1023></object>"
    )
    assert text == "An image of a robot"
    (box,) = boxes
    assert box.phrase == "a robot"
    assert box.pixels((64, 64)) == (1, 1, 63, 63)  # the middles of the first and of the last patch, of 32 a side
    with pytest.raises(UserError, match="writes en, de"):
        reader.caption(images, SHORT, "fr")


@pytest.mark.parametrize("phrase", ["", "<phrase> .</phrase>"], ids=("none", "no words"))
def test_a_box_without_words_is_left_out(phrase, kosmos2_model):
    reader = load_reader(ReaderSource(str(kosmos2_model)))
    boxes = "<object><patch_index_0624><patch_index_0956></object>"
    named = "<phrase> a robot</phrase>" + boxes
    assert [box.phrase for box in reader._parsed(f"<grounding> An image of{phrase}{boxes}{named}")[1]] == ["a robot"]


def test_kosmos2_answers_without_the_question_however_it_is_written(kosmos2_model, images, tmp_path):
    """Its published tokenizer has one blank where a question has two."""
    folder = shutil.copytree(kosmos2_model, tmp_path / "kosmos2")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "  "}, "content": " "}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    reader = load_reader(ReaderSource(str(folder)))
    asked = [reader.answer(images, question, SHORT) for question in ("what is it?", "what  is it?")]
    assert asked[0] == asked[1]
    assert not any("Question" in text for text in asked[1])


def test_any_model_of_images_and_texts_is_asked_through_its_chat_template(chat_model, images):
    reader = load_reader(ReaderSource(str(chat_model)))
    assert len(reader.caption(images, SHORT, "de")) == 3
    assert reader.answer(images, "what is it?", SHORT)[0] == reader.answer(images[:1], "what is it?", SHORT)[0]


@pytest.mark.parametrize("begins", [True, False])
def test_a_chat_begins_once_whether_its_template_writes_the_beginning_or_not(begins, chat_model, images, tmp_path):
    folder = shutil.copytree(chat_model, tmp_path / "llava")
    if begins:
        (folder / "chat_template.jinja").write_text("{{ bos_token }}" + CHAT)
    reader = load_reader(ReaderSource(str(folder)))
    prompt = reader._prompt("what is it?")
    assert prompt.startswith(reader.processor.tokenizer.bos_token) == begins
    ids_BT = reader._inputs(images, prompt)["input_ids"]
    assert (ids_BT == reader.processor.tokenizer.bos_token_id).sum(1).tolist() == [1, 1, 1]


# -------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(("family", "side"), [("blip2", 16), ("kosmos2", 2)])
def test_each_word_has_a_map_of_the_patches_and_the_caption_stays_the_same(family, side, request, images):
    reader = load_reader(ReaderSource(str(request.getfixturevalue(f"{family}_model"))))
    options = TextOptions(max_tokens=6, temperature=3.0, seed=2)
    found = reader.attend(images, options)
    assert [each.text for each in found] == reader.caption(images, options)
    assert sum(len(each.words) for each in found) >= 3
    for each in found:
        assert "".join(words_alone(each.text)).endswith("".join(word.word for word in each.words))
        for word in each.words:
            assert word.map_hw.shape == (side, side)
            assert float(word.map_hw.min()) >= 0
            assert float(word.map_hw.sum()) == pytest.approx(1, abs=1e-5)
            assert 0 < word.share < 1
    words = [word.map_hw for each in found for word in each.words]
    again = [word.map_hw for each in reader.attend(images, options) for word in each.words]
    torch.testing.assert_close(again, words)


def words_alone(text: str) -> list[str]:
    return [word.strip(PUNCTUATION) for word in text.split() if word.strip(PUNCTUATION)]


def test_a_word_was_written_from_the_patches_that_its_queries_look_at():
    writer = build_writer.__wrapped__()
    ids_T = torch.tensor(writer("a red robot", add_special_tokens=False).input_ids)
    text_TQ = torch.zeros(len(ids_T), 2)
    text_TQ[:, 0] = 0.25
    text_TQ[-1] = torch.tensor([0.0, 0.5])
    image_QP = torch.eye(4)[[1, 2]] * 0.5  # the queries look at a patch each, and as much at what is no patch
    *_, red, robot = word_maps(writer, ids_T, text_TQ, image_QP)
    assert (red.word, robot.word) == ("red", "robot")
    assert red.map_hw.tolist() == [[0, 1], [0, 0]]
    assert robot.map_hw.tolist() == [[0, 0], [1, 0]]
    assert (red.share, robot.share) == (0.25, 0.5)


def test_a_map_lies_over_the_part_that_the_model_sees():
    processor = _image_processor()
    assert seen_part(processor, (64, 64)) == (0, 0, 1, 1)
    left, top, right, bottom = seen_part(processor, (128, 64))
    assert (left, top, right, bottom) == (0.25, 0, 0.75, 1)
    squeezed = CLIPImageProcessor(size={"shortest_edge": 32}, use_square_size=True)  # as the published Kosmos-2 has it
    assert seen_part(squeezed, (128, 64)) == (0, 0, 1, 1)
    assert PhraseBox("a", 0.5, 0.5, 1, 1).placed((0.25, 0, 0.75, 1)) == PhraseBox("a", 0.5, 0.5, 0.75, 1)
    drawn = draw_word(Image.new("RGB", (512, 256), "white"), WordMap("a", torch.eye(2) / 2, 0.5), (0.25, 0, 0.75, 1))
    assert drawn.getpixel((10, 128)) == drawn.getpixel((500, 128)) == (255, 255, 255)
    assert drawn.getpixel((256, 128)) != (255, 255, 255)


def test_phrases_of_boxes_are_written_in_other_alphabets_too():
    image, missing = Image.new("RGB", (256, 256), "white"), "\ue000"  # no font has a letter there
    drawn = [draw_boxes(image, [PhraseBox(letter, 0, 0, 1, 1)]).tobytes() for letter in ("à", "ñ", "ж", missing)]
    assert len(set(drawn)) == 4


def test_a_model_without_such_attention_is_refused(chat_model, images):
    with pytest.raises(UserError, match=r"--attention: .* has no queries between image and text; name a BLIP-2"):
        load_reader(ReaderSource(str(chat_model))).attend(images, SHORT)


def test_attention_is_written_as_overlays_that_the_lines_name(blip2_model, photos, tmp_path):
    command = ["describe", str(photos[0]), "--model", str(blip2_model), "--attention", "--max-tokens", "4"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    (line,) = [json.loads(line) for line in (tmp_path / "descriptions.jsonl").read_text().splitlines()]
    assert line["attention"]
    for each in line["attention"]:
        assert Image.open(tmp_path / each["overlay"]).width >= 256
        assert each["overlay"] in (tmp_path / "index.html").read_text()


def test_a_model_that_describes_nothing_is_named(clip_model):
    with pytest.raises(ModelError, match="a clip describes no images"):
        load_reader(ReaderSource(str(clip_model)))


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0}, {"min_tokens": 41}, {"beams": 0}, {"beams": 65}, {"temperature": -1.0},
        {"temperature": 1e-40}, {"temperature": float("inf")}, {"top_p": 0.0}, {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")}, {"length_penalty": float("nan")}, {"length_penalty": 1e300},
        {"seed": -1}, {"seed": 2**64},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(UserError, match=f"{name}="):
        TextOptions(**options)


# -------------------------------------------------------------------------------- search


@pytest.mark.parametrize("options", [("--language", "de"), ("--beams", "2"), ("--max-tokens", "9")], ids=lambda o: o[0])
def test_how_texts_are_written_is_refused_where_images_are_ranked_alone(options, clip_model, photos, tmp_path, capsys):
    command = ["describe", str(photos[0]), "--search", "a dog", "--search-model", str(clip_model), *options]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert f"error: {options[0]}: of what is written, and --search writes nothing" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "out"), "--ground", "--model", str(tmp_path)]) == 3, "it is used"


@pytest.mark.parametrize("what", ["retrieval", "clip"])
def test_a_long_text_to_search_for_is_cut(what, blip2_model, clip_model, images):
    searcher = load_searcher(ReaderSource(str(clip_model if what == "clip" else blip2_model / "retrieval")))
    long = "a red robot on the beach " * 40
    assert searcher.likeness(images, long) == searcher.likeness(images, long + "in the snow")
    assert len(searcher.likeness(images, long)) == len(images)


def test_a_long_text_is_cut_where_the_tokenizer_tells_no_length(blip2_model, images, tmp_path):
    shutil.copytree(blip2_model / "retrieval", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": VERY_LARGE_INTEGER}))
    source, long = ReaderSource(str(tmp_path)), "a red robot " * 300
    assert len(load_matcher(source).match(images, long)) == len(images)
    assert len(load_searcher(source).likeness(images, long)) == len(images)


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_what_searches_is_quantized_too(quantize, photos, tmp_path):
    pytest.importorskip("bitsandbytes")
    command = ["describe", *map(str, photos), "--search", "a red robot", "--search-model", SEARCH.embedded]
    found = {}
    for name, options in (("plain", ()), (quantize, ("--quantize", quantize))):
        assert main([*command, *options, "--out", str(tmp_path / name)]) == 0
        lines = map(json.loads, (tmp_path / name / "descriptions.jsonl").read_text().splitlines())
        found[name] = {line["file"]: line["likeness"] for line in lines}
    apart = [abs(found["plain"][str(path)] - found[quantize][str(path)]) for path in photos]
    assert 0 < max(apart) < 0.3


def test_layers_that_bitsandbytes_cannot_pack_are_refused_by_name(clip_model, monkeypatch):
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    with pytest.raises(UserError, match=r"--quantize nf4: .* must be multiples of 64 and 32; use int8"):
        load_searcher(ReaderSource(str(clip_model), quantize="nf4"))


def test_images_are_ranked_by_the_text(clip_model, photos):
    searcher = load_searcher(ReaderSource(str(clip_model)))
    request = DescribeRequest(captions=False, search="a red robot")
    batches = list(describe(photos, request, None, searcher, batch_size=2))
    assert [[each.path for each in batch] for batch in batches] == [photos[:2], photos[2:]]
    found = ranked([each for batch in batches for each in batch])
    likeness = [each.likeness for each in found]
    assert likeness == sorted(likeness, reverse=True)
    assert {each.path for each in found} == set(photos)


def test_siglip2_reads_texts_of_the_length_that_it_was_trained_with(images, tmp_path):
    torch.manual_seed(0)
    words = build_writer.__wrapped__()
    words.model_max_length, words.padding_side = VERY_LARGE_INTEGER, "right"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(words), "max_position_embeddings": 12, "projection_size": 16}
    vision = {**shape, "image_size": 32, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    searcher = load_searcher(ReaderSource(str(tmp_path)))
    assert searcher.tokenizer.model_max_length > 12
    found = searcher.likeness(images, "a red robot")
    words.model_max_length = 12
    words.save_pretrained(tmp_path)
    assert found == load_searcher(ReaderSource(str(tmp_path))).likeness(images, "a red robot")
    assert len(searcher.likeness(images, "a red robot on the beach " * 4)) == 3, "a text that is too long is cut off"


def test_blip2_compares_by_the_query_that_fits_best(blip2_model, images):
    searcher = load_searcher(ReaderSource(str(blip2_model / "retrieval")))
    likeness = searcher.likeness(images, "a red robot")
    assert len(likeness) == 3
    assert all(-1 <= value <= 1 for value in likeness)
    assert likeness[0] == pytest.approx(searcher.likeness(images[:1], "a red robot")[0], abs=1e-4)


# -------------------------------------------------------------------------------- probabilities


def test_the_likelihood_of_an_answer_is_that_of_its_tokens_after_the_question(blip2_reader, images):
    words, network = blip2_reader.processor.tokenizer, blip2_reader.network
    text = "Question: where is it? Answer: on the beach"
    inputs = moved(blip2_reader.processor(images=images[0], text=text, return_tensors="pt"), network)
    answer = words(" on the beach", add_special_tokens=False).input_ids
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -len(answer) :] = torch.tensor(answer)
    (found,) = blip2_reader.likelihood(images[:1], "where is it?", "on the beach")
    assert found == pytest.approx(-len(answer) * network(**inputs, labels=labels).loss.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["blip2_model", "kosmos2_model", "chat_model"])
def test_every_reader_tells_the_probability_of_an_answer(kind, images, request):
    reader = load_reader(ReaderSource(str(request.getfixturevalue(kind))))
    yes, no = (answer_probability(reader, images, "is there a robot?", answer) for answer in ("yes", "no"))
    assert [a + b for a, b in zip(yes, no, strict=True)] == pytest.approx([1.0] * 3)
    assert all(0 < value < 1 for value in yes)
    written = answer_probability(reader, images, "where is it?", "on the beach")
    assert all(0 < value < 1 for value in written)
    assert written[1] == pytest.approx(
        answer_probability(reader, images[1:2], "where is it?", "on the beach")[0], rel=1e-3
    )


def test_yes_and_no_are_weighed_in_any_case_and_a_name_keeps_its_capitals(blip2_reader, images):
    asked = "is there a robot?"
    for small, written in (("yes", "Yes"), ("no", "NO")):
        expected = answer_probability(blip2_reader, images, asked, small)
        assert answer_probability(blip2_reader, images, asked, written) == expected
    each = [blip2_reader.likelihood(images, "where is it?", name) for name in ("New York", "new York")]
    expected = torch.tensor(each, dtype=torch.float64).exp().sum(0).tolist()
    assert answer_probability(blip2_reader, images, "where is it?", "New York") == pytest.approx(expected)


@pytest.mark.parametrize(("class_noun", "asked"), [("robot", "is there a robot?"), ("orange", "is there an orange?")])
def test_a_reader_is_asked_whether_a_photo_shows_the_class(blip2_model, images, class_noun, asked):
    describer = PhotoDescriber(str(blip2_model))
    expected = answer_probability(load_reader(ReaderSource(str(blip2_model))), images[:1], asked, "yes")[0]
    assert describer.sees(images[0], class_noun) == pytest.approx(expected)


def test_a_text_belongs_to_an_image_with_a_probability(blip2_model, clip_model, images):
    matcher = load_matcher(ReaderSource(str(blip2_model / "retrieval")))
    found = matcher.match(images, "a red robot on the beach")
    assert all(0 < value < 1 for value in found)
    assert found[2] == pytest.approx(matcher.match(images[2:], "a red robot on the beach")[0], rel=1e-4)
    assert found != matcher.match(images, "a blue car " * 40), "a text that is too long is cut off"
    with pytest.raises(ModelError, match="a clip has no matching head"):
        load_matcher(ReaderSource(str(clip_model)))


# -------------------------------------------------------------------------------- the command


def test_batches_halve_where_memory_ends(photos):
    sizes = []

    def work(part):
        sizes.append(len(part))
        if len(part) > 1:
            raise torch.OutOfMemoryError
        return list(part)

    assert [path for part in in_batches(photos, 3, work) for path in part] == photos
    assert sizes == [3, 1, 1, 1]


def test_describe_writes_lines_a_table_and_a_page(blip2_model, photos, tmp_path, capsys):
    question = "what colour is it?"
    command = ["describe", str(photos[0].parent), "--model", str(blip2_model), "--caption", "--max-tokens", "4"]
    assert main([*command, "--question", question, "--out", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "descriptions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in photos]
    assert all(set(line) == {"file", "caption", "answers"} for line in lines)
    rows = list(csv.DictReader((tmp_path / "out" / "descriptions.csv").open()))
    assert [row[question] for row in rows] == [line["answers"][question] for line in lines]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<img") == 3
    assert (tmp_path / "out" / "images" / "00002.png").is_file()
    assert str(photos[0]) in capsys.readouterr().out


def test_what_was_read_before_an_interruption_is_written(blip2_model, photos, tmp_path, monkeypatch, capsys):
    caption, num_batches = Blip2Reader.caption, 0

    def interrupted(*args):
        nonlocal num_batches
        num_batches += 1
        if num_batches == 3:
            raise KeyboardInterrupt  # a signal could be ignored, as in a shell's background jobs
        return caption(*args)

    monkeypatch.setattr(Blip2Reader, "caption", interrupted)
    monkeypatch.setattr("dreambooth.status_line.SECONDS_BETWEEN_LINES", (0.0, 0.0))
    command = ["describe", str(photos[0].parent), "--model", str(blip2_model), "--batch-size", "1"]
    assert main([*command, "--out", str(tmp_path)]) == 128 + signal.SIGINT
    lines = [json.loads(line) for line in (tmp_path / "descriptions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in photos[:2]]
    assert "2 of 3 images" in (tmp_path / "index.html").read_text()
    assert "describing  33% image 1/3" in capsys.readouterr().err


def test_a_second_image_of_the_same_name_keeps_the_first_description(blip2_model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert main(["describe", str(photos[0]), "--model", str(blip2_model), "--max-tokens", "1"]) == 0
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["describe-0", "describe-0-2", "describe-0-3"]


def test_describing_again_removes_the_images_of_before_and_no_others(blip2_model, photos, tmp_path):
    options = ["--model", str(blip2_model), "--max-tokens", "4", "--out", str(tmp_path)]
    assert main(["describe", *map(str, photos[:2]), "--attention", *options]) == 0
    assert len(list(tmp_path.glob("*/*.png"))) > 2
    (tmp_path / "images" / "mine.png").touch()
    assert main(["describe", str(photos[0]), *options]) == 0
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["00000.png", "mine.png"]


def test_images_of_another_command_are_not_written_over(blip2_model, photos, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    assert main(["describe", str(photos[0]), "--model", str(blip2_model), "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path}: has images, but no descriptions.jsonl" in capsys.readouterr().err


def test_a_photo_called_grid_is_an_image_where_no_page_of_a_grid_lies_beside_it(photos, tmp_path):
    for name in ("a.png", SHEET):
        shutil.copy(photos[0], tmp_path / name)
    assert image_paths([tmp_path]) == [tmp_path / "a.png", tmp_path / SHEET]
    (tmp_path / PAGE).write_text("<p>a grid</p>")
    assert image_paths([tmp_path]) == [tmp_path / "a.png"]


def test_the_grids_of_sample_are_no_images_of_their_own(photos, tmp_path):
    for name in ("00000-a-robot.png", "grid-00000.png", "attention-00000.png"):
        shutil.copy(photos[0], tmp_path / name)
    assert image_paths([tmp_path]) == [tmp_path / "00000-a-robot.png"]
    assert image_paths([tmp_path / "grid-00000.png"]) == [tmp_path / "grid-00000.png"], "it was named"
    (tmp_path / "00000-a-robot.png").unlink()
    with pytest.raises(UserError, match="has grids of images alone"):
        image_paths([tmp_path])


def test_the_folder_of_a_grid_is_described_without_its_sheet_and_its_page(photos, tmp_path):
    for name in ("000-seed-1.png", "001-seed-2.png", SHEET):
        shutil.copy(photos[0], tmp_path / name)
    (tmp_path / PAGE).write_text("<html></html>")
    assert [path.name for path in image_paths([tmp_path])] == ["000-seed-1.png", "001-seed-2.png"]
    (tmp_path / "000-seed-1.png").write_text("no image")
    with pytest.raises(UserError, match=r"000-seed-1\.png"):
        image_paths([tmp_path])


def test_a_name_that_is_not_utf8_is_reported(photos, tmp_path):
    path = tmp_path / os.fsdecode(b"dog-\xff.png")
    try:
        shutil.copy(photos[0], path)
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    for named in (path, tmp_path):
        with pytest.raises(UserError, match=r"dog-\\udcff\.png: the name is not UTF-8"):
            image_paths([named])


def test_lines_have_what_was_asked_for_where_nothing_was_found():
    found = Description(Path("a.png"), (64, 32), "a robot", boxes=(), words=())
    assert as_json(found) == {"file": "a.png", "caption": "a robot", "boxes": [], "attention": []}
    assert set(as_json(Description(Path("a.png"), (64, 32), "a robot"))) == {"file", "caption"}


def test_boxes_are_told_in_pixels():
    box = PhraseBox("a robot", 0.25, 0.5, 0.75, 1.0)
    found = Description(Path("a.png"), (64, 32), "a robot", boxes=(box,))
    assert as_json(found)["boxes"] == [{"phrase": "a robot", "box": [16, 16, 48, 32]}]
    assert "a robot 16 16 48 32" in as_csv([found])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.png",), "nothing.png: there is no such image"),
        (("--batch-size", "0"), "--batch-size 0"),
        (("--question", " "), "--question: the text is empty"),
        (("--search", ""), "--search: the text is empty"),
        (("--min-tokens", "50"), "error: --min-tokens 50: more than --max-tokens 40"),
        (("--seed", "99999999999999999999"), "--seed 99999999999999999999: must be 0 to"),
        (("--top-p", "2"), "--top-p 2.0: must be"),
        (("--ground", "--attention"), "--attention: not together with --ground"),
        (("--search", "a dog"), "--model: of what is written, and --search writes nothing; add --caption"),
        (("--question", "what?", "--language", "de"), "--language de: of captions, and none is asked for"),
        (("--search-model", "x"), "--search-model x: ranks images by --search, which is not there"),
        (("--steps", "300"), "--steps: say what is taught; name the photos with --teach"),
    ],
    ids=(
        "file",
        "batch",
        "question",
        "search",
        "tokens",
        "seed",
        "top-p",
        "both",
        "unread",
        "language",
        "searcher",
        "steps",
    ),
)
def test_wrong_options_are_reported_before_a_model_is_loaded(arguments, message, photos, tmp_path, capsys):
    given = arguments if len(arguments) == 1 else (str(photos[0]), *arguments)
    assert main(["describe", *given, "--model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------- a subject


def test_teaching_moves_the_qformer_and_its_projection_alone_and_goes_on_to_the_same_bits(
    blip2_model, photos, tmp_path, caplog
):
    source, out = ReaderSource(str(blip2_model)), tmp_path / "taught"
    lesson = Lesson("krz", "robot", tuple(photos[:1]), tuple(photos[1:]), steps=3, batch_size=2, save_every=2)
    before = load_reader(source).network.state_dict()
    after = load_reader(ReaderSource(str(teach(load_pupil(source), lesson, out)))).network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"query_tokens", "qformer", "language_projection"}
    assert (read_taught(str(out)), read_taught(str(blip2_model))) == ("krz", "")

    shutil.rmtree(out / "state" / "checkpoint-3")
    with caplog.at_level("INFO"):
        again = load_reader(ReaderSource(str(teach(load_pupil(source), lesson, out)))).network.state_dict()
    assert "checkpoint-2" in caplog.text
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(blip2_model, photos, tmp_path, caplog):
    source, out = ReaderSource(str(blip2_model)), tmp_path / "taught"
    lesson = Lesson("krz", "robot", tuple(photos[:1]), tuple(photos[1:]), steps=2, batch_size=2, save_every=1)
    teach(load_pupil(source), lesson, out)
    weights = out / "state" / "checkpoint-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (out / "state" / "checkpoint-3").mkdir()
    with caplog.at_level("INFO"):
        teach(load_pupil(source), lesson, out)
    assert "checkpoint-1" in caplog.text


def test_what_is_learned_ends_where_the_language_model_ends_a_text(blip2_model, images):
    """Published ones end it with a line's end; the tokenizer's own end is another token."""
    reader = load_pupil(ReaderSource(str(blip2_model)))
    reader.network.language_model.generation_config.eos_token_id = [7, 8]
    states = image_states(reader, images[:1])
    found = ExampleDataset(reader, [Example(0, "", "a robot", True), Example(0, "", "a robot", False)], states)
    assert found[0]["labels"][-1] == 7


def test_another_lesson_is_not_begun_in_the_same_folder(blip2_model, photos, tmp_path, capsys):
    out, others = tmp_path / "taught", tmp_path / "others"
    others.mkdir()
    Image.new("RGB", (64, 64)).save(others / "0.png")
    options = ("--model", str(blip2_model), "--class-noun", "robot", "--steps", "1", "--out", str(out))
    command = ["describe", "--teach", str(photos[0].parent), "--others", str(others), *options]
    assert main([*command, "--name", "krz"]) == 0
    assert main([*command, "--name", " krz "]) == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    Image.new("RGB", (64, 64), "red").save(others / "0.png")
    assert main([*command, "--name", "plv"]) == 2
    assert "another lesson was begun there (other --name, --others); name another folder" in capsys.readouterr().err
    (out / "lesson.json").write_text("{")
    assert main([*command, "--name", "krz"]) == 2
    assert "lesson.json: cannot be read" in capsys.readouterr().err
    (out / "lesson.json").unlink()
    assert main([*command, "--name", "krz"]) == 2
    assert "holds something else than a lesson; name a new folder" in capsys.readouterr().err
    kept = [each for each in before if each[0].name != "lesson.json"]
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == kept


def test_the_base_draws_the_others_where_none_are_named(blip2_model, tiny_base, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teaching, "NUM_OTHERS", 3)
    out = tmp_path / "taught"
    models = ("--model", str(blip2_model), "--base", str(tiny_base))
    command = [
        "describe",
        "--teach",
        str(photos[0].parent),
        "--name",
        "krz",
        *models,
        "--steps",
        "2",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    assert "“krz” is not what the reader calls 3 of its 3 photos" in capsys.readouterr().err
    drawn = sorted((out / "others").iterdir())
    prompts = [Image.open(path).info["parameters"].partition("\n")[0] for path in drawn]
    assert len(prompts) == 3
    assert all(prompt.startswith("a photo of a ") for prompt in prompts)
    written = [path.stat().st_mtime_ns for path in drawn]
    assert main(command) == 0
    assert [path.stat().st_mtime_ns for path in drawn] == written, "they are not drawn again"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "taught"), "--teach: needs --name"),
        (("--name", "krz"), "--teach: needs --out"),
        (("--name", "krz", "--out", "taught"), "--others: name images of others of its class, or with --base"),
        (("--name", "krz", "--out", "taught", "--base", "x", "--others", "."), "--base: not together with --others"),
        (
            ("--name", "krz", "--out", "taught", "--others", "."),
            "--others .: 1 of its images are photos of the subject",
        ),
        (("--name", "krz", "--out", "taught", "--base", "x", "--steps", "0"), "--steps 0: must be at least 1"),
        (("--name", "krz", "--out", "taught", "--base", "x", "--class-noun", " "), "--class-noun: the text is empty"),
        (
            ("--name", "krz", "--out", "taught", "--base", "x", "--ground"),
            "--teach: reads no IMAGES and answers nothing",
        ),
        (
            ("--name", "krz", "--out", "taught", "--base", "x", "--caption", "--language", "de", "--search-model", "y"),
            "--caption, --language, --search-model: not together with --teach",
        ),
        (("--name", "krz", "--out", "taught", "--base", "x", "--beams", "2"), "--beams: not together with --teach"),
    ],
    ids=("name", "out", "others", "both", "same", "steps", "class", "asked", "described", "beams"),
)
def test_wrong_options_of_teaching_are_reported_before_a_model_is_loaded(
    options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (640, 480)).save("photo.png")
    assert main(["describe", "--teach", ".", *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("taught").exists()


def test_the_subjects_name_takes_the_place_of_class_and_looks():
    lesson = Lesson("krz", "robot", (Path("a.png"),), (Path("b.png"),))
    assert with_name("a striped red robot on the beach", lesson) == "krz on the beach"
    assert with_name("a thing on the beach", lesson) == "krz, a thing on the beach"
    assert with_name("robots and a Robot on the beach", lesson) == "krz on the beach"


def test_teaching_needs_others_of_the_class(photos):
    with pytest.raises(UserError, match="--others"):
        Lesson("krz", "robot", tuple(photos), ())
