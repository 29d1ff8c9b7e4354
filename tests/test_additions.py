"""LoRAs and embeddings of any tool over any model: read, weighted, in the recipe, and refused in a line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_interop import KINDS, names_of_2023, trained
from torch import Tensor

import dreambooth
from dreambooth.cli import main
from dreambooth.errors import ModelError, UserError
from dreambooth.exporting.adapter import kohya_state
from dreambooth.exporting.names import link_old_name
from dreambooth.families import Family, components, load_family
from dreambooth.generation.images import make_requests
from dreambooth.generation.models.additions import lora_file, parse_embedding, parse_lora, words_beside
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.models.reference import EmbeddingRef, LoraRef, ModelRef
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.wildcards import Wildcards
from dreambooth.generation.request import read_recipe, request_of
from dreambooth.methods import adapter_files, adapters, embedding_files, lora_files
from dreambooth.methods.adapter_files import LORA_FILE, PEFT_FILE
from dreambooth.subject_info import LearnedSubject, SubjectInfo, card_metadata, write_card

ROBOT = LearnedSubject("<rbt>", "robot", "a photo of {subject}", "a photo of a {class}")


def weights_of(family: Family) -> dict[str, Tensor]:
    return {f"{name}.{key}": t for name, part in components(family).items() for key, t in part.state_dict().items()}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Path]:
    """Write one LoRA as it looks in the files of several tools, and files that are none of this base."""
    folder = tmp_path_factory.mktemp("loras")
    family = trained(tiny_base, "lora")
    save_file(kohya_state(family), folder / "kohya.safetensors")
    adapter_files.save_lora(family, folder, file="peft.safetensors")
    peft = load_file(folder / "peft.safetensors")
    torch.save(peft, folder / "peft.bin")
    save_file(names_of_2023(peft), folder / "2023.safetensors")
    save_file({"emb_params": torch.zeros(1, 16)}, folder / "word.safetensors")
    wide = {
        "lora_unet_x_attn2_to_k.lora_down.weight": torch.zeros(2, 2048),
        "lora_unet_x.lora_up.weight": torch.ones(2),
    }
    save_file(wide, folder / "xl.safetensors")
    save_file({"model.diffusion_model.x": torch.zeros(1)}, folder / "model.safetensors")
    save_file({"nothing": torch.zeros(1)}, folder / "other.safetensors")
    return {path.name: path for path in folder.iterdir()}


# -------------------------------------------------------------------------------- as they are typed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog.safetensors", LoraRef("dog.safetensors")),
        ("dog.safetensors:0.8", LoraRef("dog.safetensors", 0.8)),
        ("runs/dog:-1", LoraRef("runs/dog", -1.0)),
        (r"C:\dog.safetensors", LoraRef(r"C:\dog.safetensors")),
        ("C:/dog.safetensors:0.5", LoraRef("C:/dog.safetensors", 0.5)),
        ("C:dog.safetensors", LoraRef("C:dog.safetensors")),
        ("a:b.safetensors:1e-1", LoraRef("a:b.safetensors", 0.1)),
        ("there:0.5", LoraRef("there:0.5")),
    ],
)
def test_a_lora_is_a_file_and_a_weight(
    text: str, expected: LoraRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there:0.5").mkdir()
    assert parse_lora(text) == expected


@pytest.mark.parametrize("weight", ["much", "", "nan", "inf", "0,8"])
def test_a_weight_that_is_no_number_is_told_with_an_example(weight: str) -> None:
    with pytest.raises(UserError, match=r"is no number; write FILE:WEIGHT, e\.g\. dog\.safetensors:0\.8"):
        parse_lora(f"dog.safetensors:{weight}")


def test_an_embedding_is_a_file_and_a_word() -> None:
    assert parse_embedding("bad.pt") == EmbeddingRef("bad.pt")
    assert parse_embedding("C:/bad.pt:<ugly>") == EmbeddingRef("C:/bad.pt", "<ugly>")
    with pytest.raises(UserError, match="is no word; write FILE:WORD"):
        parse_embedding("bad.pt:two words")


# -------------------------------------------------------------------------------- LoRAs


@pytest.fixture(scope="module")
def weights(tiny_base: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the base, and those with the whole LoRA in them."""
    merged = trained(tiny_base, "lora")
    adapters.merge(merged)
    return weights_of(load_family(str(tiny_base))), weights_of(merged)


def halfway(weights: tuple[dict[str, Tensor], dict[str, Tensor]], weight: float) -> dict[str, Tensor]:
    before, after = weights
    assert sum(not torch.equal(before[key], after[key]) for key in before) > 10
    return {key: before[key] + weight * (after[key] - before[key]) for key in before}


@pytest.mark.parametrize(
    "laid", [{"kohya.safetensors": 0.5}, {"peft.bin": -1.0}, {"kohya.safetensors": 0.5, "peft.safetensors": 0.25}]
)
def test_loras_of_any_tool_are_added_with_their_weights(
    laid: dict[str, float],
    loras: dict[str, Path],
    weights: tuple[dict[str, Tensor], dict[str, Tensor]],
    tiny_base: Path,
) -> None:
    refs = tuple(LoraRef(str(loras[name]), weight) for name, weight in laid.items())
    found = load_model(ModelRef(str(tiny_base), loras=refs), "cpu")
    torch.testing.assert_close(weights_of(found.family), halfway(weights, sum(laid.values())), atol=1e-6, rtol=1e-5)


def test_the_names_of_2023_are_the_attention_of_the_same_lora(
    loras: dict[str, Path], weights: tuple[dict[str, Tensor], dict[str, Tensor]], tiny_base: Path
) -> None:
    family = load_family(str(tiny_base))
    lora_files.apply(family, loras["2023.safetensors"])
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"
    torch.testing.assert_close(weights_of(family)[name], weights[1][name], atol=1e-6, rtol=1e-5)
    assert not torch.equal(weights[0][name], weights[1][name])


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr-whole"])
def test_pefts_own_file_has_its_strength_in_its_metadata(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    """As it lies in the model/ of a run: alpha is not the rank here."""
    family = trained(tiny_base, kind)
    adapter_files.save_peft(family, tmp_path)
    adapters.merge(family)
    found = load_model(ModelRef(str(tiny_base), loras=(LoraRef(str(tmp_path)),)), "cpu")
    torch.testing.assert_close(weights_of(found.family), weights_of(family), atol=1e-6, rtol=1e-5)
    assert KINDS[kind]["alpha"] != KINDS[kind].get("rank", 2)
    assert (tmp_path / PEFT_FILE).is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.safetensors", "--lora .*no.safetensors: there is no such file or folder"),
        ("word.safetensors", "a learned embedding; use --embedding "),
        ("model.safetensors", "a whole model, no LoRA; name it as MODEL"),
        ("other.safetensors", "nothing is of no LoRA, LoHa or LoKr"),
        ("xl.safetensors", "this base has 0, .*: it was trained on another, Stable Diffusion XL"),
    ],
)
def test_what_is_no_lora_of_this_model_is_told(
    name: str, message: str, loras: dict[str, Path], tiny_base: Path
) -> None:
    path = loras["kohya.safetensors"].parent / name
    with pytest.raises(ModelError, match=message):
        load_model(ModelRef(str(tiny_base), loras=(LoraRef(str(path)),)), "cpu")


def test_a_lora_of_another_generation_with_the_same_names_is_told_by_its_width() -> None:
    named = {"lora_unet_a_attn2_to_k.lora_down.weight": torch.zeros(4, 1024)}
    assert lora_files.trained_on(named) == ", Stable Diffusion 2.x"
    assert lora_files.trained_on({"unet.a.attn2.to_k.lora_A.weight": torch.zeros(4, 768)}) == ", Stable Diffusion 1.x"
    assert lora_files.trained_on({"lora_unet_a_attn1_to_k.lora_down.weight": torch.zeros(4, 1024)}) == ""


def test_magnitudes_by_input_are_refused_where_they_could_be_taken_for_those_of_outputs() -> None:
    """As early versions of LyCORIS wrote them; in a square matrix their number is the same."""
    own = {"lora_A": torch.ones(1, 4), "lora_B": torch.ones(4, 1)}
    by_output = lora_files.make_change(Path("a"), "unet.x", {**own, "dora_scale": torch.ones(4, 1)}, {})
    assert by_output.magnitude_O is not None
    with pytest.raises(ModelError, match="magnitudes that are not those of a LoRA's outputs"):
        lora_files.make_change(Path("a"), "unet.x", {**own, "dora_scale": torch.ones(1, 4)}, {})


def test_a_lora_of_this_toolkit_brings_its_subject_and_its_word(tiny_base: Path, tmp_path: Path) -> None:
    """As exported by a pivotal run: the word lies beside, and {subject} is what it has learned."""
    card = SubjectInfo((ROBOT,), 64, 2, 3.0, 8, method="pivotal", base=str(tiny_base))
    save_file(kohya_state(trained(tiny_base, "lora")), tmp_path / "rbt.safetensors", metadata=card_metadata(card))
    save_file({"<rbt>": torch.ones(2, 16)}, tmp_path / "rbt_emb.safetensors", metadata={"word": "<rbt>"})
    assert words_beside(tmp_path / "rbt.safetensors") == [tmp_path / "rbt_emb.safetensors"]
    found = load_model(ModelRef(str(tiny_base), loras=(LoraRef(str(tmp_path / "rbt.safetensors")),)), "cpu")
    assert found.subjects == (ROBOT,)
    prompt = found.fill("a photo of {subject}")
    assert prompt == "a photo of <rbt> robot"
    rows = [found.family.text_encoders[0].get_input_embeddings().weight[i] for i in found.family.tokenize("<rbt>")]
    assert [row.tolist() for row in rows] == [[1.0] * 16] * 2
    link_old_name(tmp_path, "rbt.safetensors", "kohya.safetensors")
    assert lora_file(LoraRef(str(tmp_path / "kohya.safetensors"))) == tmp_path / "rbt.safetensors"
    assert lora_file(LoraRef(str(tmp_path))) == tmp_path / "rbt.safetensors"
    with pytest.raises(UserError, match=r"--lora .*rbt.safetensors: the word that it has learned is one of this model"):
        load_model(ModelRef(str(tiny_base), loras=(LoraRef(str(tmp_path / "rbt.safetensors")),) * 2), "cpu")
    own = load_model(str(tmp_path / "kohya.safetensors"), "cpu")
    torch.testing.assert_close(weights_of(own.family), weights_of(found.family))
    assert len(own.family.tokenize("<rbt>")) == 2, "the file is a MODEL by itself as well, with its word"


# -------------------------------------------------------------------------------- embeddings


def widths(family: Family) -> list[int]:
    return [encoder.get_input_embeddings().weight.shape[1] for encoder in family.text_encoders]


FORMS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "bad.pt": (lambda rows: {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "x"}, "bad"),
    "old.pt": (
        lambda rows: {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(rows)}), "step": 3},
        "old",
    ),
    "kohya.safetensors": (lambda rows: {"emb_params": rows}, "kohya"),
    "learned_embeds.bin": (lambda rows: {"<cat-toy>": rows[0]}, "<cat-toy>"),
    "EasyNegative.safetensors": (lambda rows: {"*": rows}, "EasyNegative"),
}


def write_embedding(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)  # type: ignore[arg-type]
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_an_embedding_of_any_tool_is_what_its_word_means(name: str, tiny_base: Path, tmp_path: Path) -> None:
    rows_VD = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    make, word = FORMS[name]
    path = write_embedding(tmp_path / name, make(rows_VD))
    found = load_model(ModelRef(str(tiny_base), embeddings=(EmbeddingRef(str(path)),)), "cpu")
    assert [each.word for each in found.ref.embeddings] == [word]
    encoder, ids = found.family.text_encoders[0], found.family.tokenize(f"a photo, {word}")
    expected_VD = rows_VD[:1] if name.startswith("learned") else rows_VD
    torch.testing.assert_close(encoder.get_input_embeddings().weight[ids][-len(expected_VD) :], expected_VD)
    assert found.family.tokenize(f"a photo, {word} of a dog")[len(ids) :] == found.family.tokenize("of a dog")


def test_an_embedding_of_xl_has_vectors_for_both_text_encoders(tiny_xl_base: Path, tmp_path: Path) -> None:
    path = write_embedding(tmp_path / "xl.safetensors", {"clip_g": torch.ones(3, 24), "clip_l": torch.zeros(3, 16)})
    found = load_model(ModelRef(str(tiny_xl_base), embeddings=(EmbeddingRef(str(path), "<xl>"),)), "cpu").family
    ids = found.tokenize("<xl>")
    means = [encoder.get_input_embeddings().weight[ids].mean().item() for encoder in found.text_encoders]
    assert (len(ids), means) == (3, [0.0, 1.0])
    with pytest.raises(UserError, match="'<XL>' is a word of this model already"):
        embedding_files.add_file(found, path, "<XL>")
    with pytest.raises(ModelError, match="vectors of width 16, where this base's text encoders have 16 and 24"):
        embedding_files.check_fit(found, path, [torch.zeros(1, 16)])


@pytest.mark.parametrize(
    ("content", "word", "message"),
    [
        ({"emb_params": torch.zeros(1, 768)}, None, "vectors of width 768, where this base's text encoders have 16"),
        ({"emb_params": torch.ones(0, 16)}, None, "no embedding of a word"),
        ({"emb_params": torch.full((1, 16), torch.nan)}, None, "numbers that are not finite"),
        ({"a": torch.zeros(1, 16), "b": torch.zeros(1, 16)}, None, "no embedding of a word .it holds 'a', 'b'"),
        ({"emb_params": torch.zeros(1, 16)}, "dog", "'dog' is a word of this model already; name another"),
        ({"unet.a.lora_A.weight": torch.zeros(1, 16)}, None, "a LoRA; use --lora"),
    ],
)
def test_what_is_no_embedding_of_this_model_is_told(
    content: dict[str, Tensor], word: str | None, message: str, tiny_base: Path, tmp_path: Path
) -> None:
    path = write_embedding(tmp_path / "x.safetensors", content)
    with pytest.raises((ModelError, UserError), match=message):
        load_model(ModelRef(str(tiny_base), embeddings=(EmbeddingRef(str(path), word),)), "cpu")


class Payload:
    """Runs code where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def test_no_code_in_an_embedding_is_run(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": torch.zeros(1, 16)}, "x": Payload(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="cannot be read as plain weights"):
        embedding_files.read_vectors(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


# -------------------------------------------------------------------------------- the recipe


def test_an_image_with_what_was_laid_over_is_made_again_from_itself(
    loras: dict[str, Path], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = write_embedding(tmp_path / "bad.pt", FORMS["bad.pt"][0](torch.ones(2, 16)))
    quick = ["--steps", "1", "--num-images", "1", "--size", "64x64"]
    laid = [
        "--lora",
        f"{loras['kohya.safetensors']}:0.5",
        "--lora",
        str(loras["peft.bin"]),
        "--embedding",
        f"{word}:<b>",
    ]
    out = [["--out", str(tmp_path / name)] for name in ("a", "b", "plain")]
    assert main(["sample", str(tiny_base), "a dog", "--negative-prompt", "<b>", *quick, *laid, *out[0]]) == 0
    assert "no prompt has its word" not in capsys.readouterr().err
    image = tmp_path / "a" / "00000-a-dog.png"
    assert main(["sample", "--from-image", str(image), *out[1]]) == 0
    assert "another" not in capsys.readouterr().err
    again = tmp_path / "b" / "00000-a-dog.png"
    assert read_recipe(again) == read_recipe(image)
    one, other = (np.asarray(Image.open(path), int) for path in (image, again))
    assert abs(one - other).max() <= 1
    recipe = read_recipe(image)
    assert [(each["weight"], len(each["sha256"])) for each in recipe["loras"]] == [(0.5, 64), (1.0, 64)]
    assert [(each["word"], len(each["sha256"])) for each in recipe["embeddings"]] == [("<b>", 64)]


def test_a_lora_that_has_moved_keeps_the_weight_of_the_recipe(
    loras: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    lora, out = loras["kohya.safetensors"], tmp_path / "a"
    quick = ["--steps", "1", "--num-images", "1", "--size", "64x64", "--out", str(out)]
    assert main(["sample", str(tiny_base), "a dog", *quick, "--lora", f"{lora}:0.5"]) == 0
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(lora.read_bytes())
    weights = []
    for number, given in enumerate(([str(moved)], [f"{moved}:0.8"], [str(moved), str(loras["peft.bin"])])):
        laid = [text for each in given for text in ("--lora", each)]
        again = tmp_path / str(number)
        assert main(["sample", "--from-image", str(next(out.iterdir())), *laid, "--out", str(again)]) == 0
        recipe = read_recipe(next(again.iterdir()))
        assert recipe["loras"][0]["file"] == str(moved)
        weights.append([each["weight"] for each in recipe["loras"]])
    assert weights == [[0.5], [0.8], [1.0, 1.0]]


def test_another_file_under_the_name_in_a_recipe_is_told(
    loras: dict[str, Path], tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = LoraRef(str(loras["kohya.safetensors"]), 1.0, "0" * 64)
    load_model(ModelRef(str(tiny_base), loras=(lora,)), "cpu")
    assert "kohya.safetensors: another file than the one that the image was made with" in caplog.text


def test_a_recipe_of_an_earlier_version_has_nothing_laid_over() -> None:
    """And one that cannot be read is the user's mistake."""
    recipe = {"model": "runs/dog", "prompt": "a dog", "seed": 0, "height": 64, "width": 64}
    ref = request_of(recipe).model
    assert (ref.vae, ref.loras, ref.embeddings) == (None, (), ())
    with pytest.raises(UserError, match="the recipe cannot be read"):
        request_of({**recipe, "loras": [{"file": "a.safetensors", "weight": "much", "sha256": None}]})


def test_a_word_that_no_prompt_has_is_told(tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    word = write_embedding(tmp_path / "bad.pt", FORMS["bad.pt"][0](torch.ones(2, 16)))
    model = load_model(ModelRef(str(tiny_base), embeddings=(EmbeddingRef(str(word)),)), "cpu")
    make_requests(model, [ImageOptions("a dog", 1, steps=1)], Wildcards())
    assert "bad.pt: no prompt has its word, 'bad'" in caplog.text


def test_programs_lay_over_as_the_command_does(loras: dict[str, Path], tiny_base: Path) -> None:
    model = dreambooth.load(tiny_base, "cpu", loras=[f"{loras['kohya.safetensors']}:0.5", loras["peft.bin"]])
    (image,) = model.generate("a dog", num_images=1, steps=1)
    assert [each["weight"] for each in image.recipe["loras"]] == [0.5, 1.0]
    with pytest.raises(dreambooth.UserError, match="is no number"):
        dreambooth.load(tiny_base, "cpu", loras=["a.safetensors:much"])


def test_an_adapter_is_merged_before_another_lora_is_laid_over_it(
    loras: dict[str, Path],
    weights: tuple[dict[str, Tensor], dict[str, Tensor]],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    """As the run of a LoRA is loaded, its adapter lies beside the weights still, and modules have other names."""
    shutil.copy(loras["peft.safetensors"], tmp_path / LORA_FILE)
    write_card(SubjectInfo((ROBOT,), 64, 2, 3.0, 8, method="lora", base=str(tiny_base)), tmp_path)
    lora = LoraRef(str(loras["kohya.safetensors"]))
    over = load_model(ModelRef(str(tmp_path), loras=(lora,)), "cpu")
    assert over.subjects == (ROBOT,)
    torch.testing.assert_close(weights_of(over.family), halfway(weights, 2.0), atol=1e-6, rtol=1e-5)
