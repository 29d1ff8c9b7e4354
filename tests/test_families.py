"""Loading a base model: every way it can be incomplete is told before training."""

import copy
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants, hf_api
from safetensors.torch import load_file, save_file

from dreambooth.cli import main
from dreambooth.errors import ModelError, UserError
from dreambooth.exporting.original import original_state
from dreambooth.families import Family, ModelSource, fingerprint, frozen_copy, load_family
from dreambooth.families.builtin_configs import make_tokenizer
from dreambooth.families.clip import check_tokenizer, is_common_token, rare_words, token_ids, truncate
from dreambooth.generation.models.loading import load_model

ROOT = Path(__file__).parent.parent


@pytest.fixture
def broken(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base to break."""
    return Path(shutil.copytree(tiny_base, tmp_path / "broken"))


def edit_weights(folder: Path, change) -> None:
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_missing_weights_are_refused(broken: Path, part: str) -> None:
    edit_weights(broken / part, lambda weights: weights.pop(sorted(weights)[-1]))
    with pytest.raises(ModelError, match=rf"{part}: 1 missing keys"):
        load_family(str(broken))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_that_are_not_finite_are_refused(broken: Path, part: str) -> None:
    edit_weights(broken / part, lambda weights: weights[sorted(weights)[0]].view(-1)[:1].fill_(float("nan")))
    with pytest.raises(ModelError, match=rf"{part}: weight .* not finite"):
        load_family(str(broken))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_one_infinite_weight_is_told_and_large_finite_ones_whose_sum_is_infinite_are_not(
    broken: Path, part: str
) -> None:
    edit_weights(broken / part, lambda weights: weights[sorted(weights)[0]].fill_(3e38))
    load_family(str(broken))
    edit_weights(broken / part, lambda weights: weights[sorted(weights)[0]].view(-1)[-1:].fill_(float("-inf")))
    with pytest.raises(ModelError, match=rf"{part}: weight .* not finite"):
        load_family(str(broken))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943\nsize 12345\n"


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "model_index.json",
    ],
)
@pytest.mark.parametrize(
    ("content", "reason"),
    [(POINTER, "a git-LFS pointer in the place of the file; run `git lfs pull`"), ("", "empty, 0 bytes")],
)
def test_a_file_that_is_a_git_lfs_pointer_or_empty_is_named(broken: Path, file: str, content: str, reason: str) -> None:
    (broken / file).write_text(content)
    with pytest.raises(ModelError) as caught:
        load_family(str(broken))
    assert f"{Path(file).name}: {reason}" in str(caught.value)
    assert str(broken / file.split("/")[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("unet", {"cross_attention_dim": 32}, "unet: cannot be loaded: .*attn2.to_k.weight expected shape"),
        ("vae", {"latent_channels": 8}, "vae: cannot be loaded: .*conv_in.weight expected shape"),
        ("text_encoder", {"hidden_size": 32}, "text_encoder: .* mismatched keys in the weights, e.g. .*embedding"),
        ("text_encoder", {"vocab_size": 10}, "text_encoder: 1 mismatched keys in the weights, e.g. .*token_embedding"),
        ("unet", {"down_block_types": ["Foo", "Bar"]}, "unet: cannot be loaded: Foo does not exist"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights_is_told_with_component_and_key(
    broken: Path, part: str, changes: dict[str, object], said: str
) -> None:
    edit_config(broken / part, **changes)
    with pytest.raises(ModelError, match=said):
        load_family(str(broken))


def test_parts_of_models_of_different_widths_are_told_with_files_and_keys(broken: Path, tiny_xl_base: Path) -> None:
    shutil.rmtree(broken / "unet")
    shutil.copytree(tiny_xl_base / "unet", broken / "unet")
    with pytest.raises(
        ModelError, match=r"unet/config.json: cross_attention_dim is 40, text_encoder/config.json: hidden_size is 16"
    ):
        load_family(str(broken))


@pytest.mark.parametrize("length", [10**30, 500])
def test_a_tokenizer_that_fills_up_beyond_the_text_encoders_places_is_told(broken: Path, length: int) -> None:
    path = broken / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": length}))
    with pytest.raises(ModelError, match=rf"model_max_length is {length}, .* max_position_embeddings is 32"):
        load_family(str(broken))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "_class_name: 'StableDiffusionPipeline' is no sampler"),
        ({"_class_name": "utils"}, "_class_name: 'utils' is no sampler"),
        ({"_class_name": None}, "_class_name: None is no sampler"),
        ({"prediction_type": "sample"}, "prediction type 'sample' is not known"),
        ({"beta_start": "much"}, "cannot be used"),
        ({"beta_start": 1.5, "beta_end": 1.6}, "its betas make no schedule"),
        ({"num_train_timesteps": 0}, "its betas make no schedule"),
    ],
)
def test_a_sampler_that_cannot_be_made_is_told(broken: Path, changes: dict[str, object], said: str) -> None:
    path = broken / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=rf"scheduler_config\.json: .*{said}|scheduler_config\.json: {said}"):
        load_family(str(broken))


@pytest.mark.parametrize("base", ["x" * 5000, "~nobody-at-all/base", "a\tb", ""])
def test_a_base_that_no_file_system_can_have_is_told(base: str) -> None:
    with pytest.raises(ModelError):
        load_family(base)


def test_an_empty_tokenizer_folder_is_refused(broken: Path) -> None:
    for file in (broken / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_family(str(broken))


def test_a_tokenizer_of_another_size_is_refused_or_told(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_tokenizer(49408, 49408)
    assert caplog.text == ""
    check_tokenizer(574, 49408)
    assert "tokenizer has 574 entries, the text encoder 49408" in caplog.text
    with pytest.raises(ModelError, match="tokenizer has 49409 entries"):
        check_tokenizer(49409, 49408)


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "unet", "vae", "text_encoder"])
def test_a_base_without_one_of_its_parts_is_refused_by_name(broken: Path, part: str) -> None:
    shutil.rmtree(broken / part)
    with pytest.raises(ModelError, match=part):
        load_family(str(broken))


def test_an_index_that_is_no_index_is_refused_by_name(broken: Path) -> None:
    (broken / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match=r"model_index\.json: not JSON"):
        load_family(str(broken))


def test_a_truncated_weight_file_is_refused(broken: Path) -> None:
    path = next((broken / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"unet: cannot be loaded: .*no \.safetensors"):
        load_family(str(broken))


def test_a_unet_that_reads_other_channels_is_refused(tiny_base: Path) -> None:
    """9 channels, of an inpainting base, are taken: tests/test_init_image.py."""
    family = load_family(str(tiny_base))
    family.unet.register_to_config(in_channels=8)
    with pytest.raises(ModelError, match="in_channels is 8, out_channels 4: they must agree"):
        type(family)(family.vae, family.unet, family.scheduler_config, family.text_encoder, family.tokenizer)


def test_a_pipeline_of_another_kind_is_refused_with_the_known_ones(broken: Path) -> None:
    index = broken / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "WuerstchenDecoderPipeline"}))
    with pytest.raises(ModelError, match=r"WuerstchenDecoderPipeline is of no known family"):
        load_family(str(broken))


@pytest.mark.parametrize("base", ["no/such/folder", "./nowhere", "/nowhere/at/all"])
def test_a_folder_that_is_not_there_is_told_without_asking_the_network(base: str) -> None:
    with pytest.raises(ModelError, match="there is no such folder or file"):
        load_family(base)


def test_a_hub_id_that_cannot_be_reached_is_told_in_a_line() -> None:
    with pytest.raises(ModelError, match=r"nobody/nothing: .*hub"):
        load_family("nobody/nothing")


class Hub(BaseHTTPRequestHandler):
    """Answers for the hub, by the name of what it is asked for."""

    def do_HEAD(self) -> None:
        names = ("RepoNotFound", "RevisionNotFound", "GatedRepo")
        code = next((name for name in names if name in self.path), "RepoNotFound")
        self.send_response(403 if code == "GatedRepo" else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a server of this process in the hub's place, as HF_ENDPOINT and HF_HUB_OFFLINE=0 would."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hf_api.api, "endpoint", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield
        server.shutdown()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("RepoNotFound", "^somebody/RepoNotFound: neither a folder here nor a model on the hub$"),
        ("RevisionNotFound", r"has no revision 'v2' \(model.revision, --revision\)"),
        ("GatedRepo", "accept its licence on the hub"),
    ],
)
def test_what_the_hub_answers_is_told(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_family(ModelSource(f"somebody/{name}", revision="v2"))


def cache_as_hub(cache: Path, folder: Path, commit: str, *names: str) -> None:
    """Lay a pipeline folder into the hub's cache as a commit of somebody/something that some names stand for."""
    repository = cache / "hub" / "models--somebody--something"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    for name in names:
        (repository / "refs" / name).write_text(commit)


def test_a_revision_of_a_hub_id_is_a_branch_a_tag_or_a_commit(
    tiny_base: Path, tiny_base_v: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commits = "1" * 40, "2" * 40
    cache_as_hub(tmp_path, tiny_base, commits[0], "main")
    cache_as_hub(tmp_path, tiny_base_v, commits[1], "v2")
    found = [
        fingerprint(load_family(ModelSource("somebody/something", revision=revision)))
        for revision in (None, "main", "v2", commits[1])
    ]
    first, second = (fingerprint(load_family(str(base))) for base in (tiny_base, tiny_base_v))
    assert found == [first, first, second, second]
    with pytest.raises(ModelError, match="somebody/something at v3: no such folder here"):
        load_family(ModelSource("somebody/something", revision="v3"))


@pytest.mark.parametrize(("key", "value"), [("revision", "main"), ("variant", "fp16")])
def test_what_a_local_base_does_not_have_is_refused(key: str, value: str, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model.{key}: '{value}' is .*{tiny_base}"):
        load_family(ModelSource(str(tiny_base), **{key: value}))
    single = tmp_path / "model.safetensors"
    single.touch()
    with pytest.raises(UserError, match=f"model.{key}: '{value}' is .*single file"):
        load_family(ModelSource(str(single), **{key: value}))


def test_a_variant_is_taken_of_the_parts_that_have_it(tiny_base: Path, broken: Path) -> None:
    plain = load_family(str(tiny_base))
    changed = copy.deepcopy(plain.pipeline().unet)
    with torch.no_grad():
        changed.conv_in.bias += 1
    changed.save_pretrained(broken / "unet", variant="non_ema")
    assert fingerprint(load_family(str(broken))) == fingerprint(plain)
    family = load_family(ModelSource(str(broken), variant="non_ema"))
    torch.testing.assert_close(family.pipeline().unet.conv_in.bias, changed.conv_in.bias)
    assert fingerprint(family) != fingerprint(plain)
    with pytest.raises(UserError, match=r"model.variant: 'fp16' is none of .*; it has non_ema"):
        load_family(ModelSource(str(broken), variant="fp16"))


def test_a_folder_with_nothing_but_a_variant_is_loaded_by_its_name(tiny_base: Path, tmp_path: Path) -> None:
    pipeline = load_family(str(tiny_base)).pipeline().to(dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    family = load_family(ModelSource(str(tmp_path / "half"), variant="fp16"))
    assert family.denoiser.dtype == torch.float32
    torch.testing.assert_close(family.denoiser.conv_in.weight, pipeline.unet.conv_in.weight.float())
    with pytest.raises(ModelError, match=r"unet: .*model.variant.* fp16"):
        load_family(str(tmp_path / "half"))


def test_an_adapter_finds_the_revision_and_variant_of_its_base_again(
    tiny_base: Path, tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    load_family(str(tiny_base)).pipeline().to(dtype=torch.float16).save_pretrained(half, variant="fp16")
    quick = ["train.max_steps=1", "optim.warmup_steps=0", "validate.every_steps=0", "prior.source=none"]
    overrides = [f"model.base={half}", "model.variant=fp16", "method.name=lora", *quick]
    run = str(tmp_path / "runs" / "run")
    assert main(["train", str(config_file), *overrides]) == 0
    assert load_model(run, "cpu").card.base_variant == "fp16"  # type: ignore[union-attr]
    out = tmp_path / "out"
    sample = ["--steps", "1", "--num-images", "1", "--size", "64x64", "--out", str(out)]
    assert main(["sample", run, "a dog", *sample, "--base", str(half), "--variant", "fp16"]) == 0
    assert main(["sample", "--from-image", str(next(out.glob("00000-*.png"))), "--out", str(tmp_path / "again")]) == 0
    assert main(["sample", run, "a dog", *sample, "--base", str(half)]) == 3
    assert main(["sample", str(half), "a dog", *sample, "--revision", "main"]) == 2
    assert main(["sample", str(half), "a dog", *sample, "--base", str(tiny_base)]) == 2
    assert f"--base {tiny_base}: {half} is a whole model" in capsys.readouterr().err


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"anything")
    with pytest.raises(ModelError, match=r"must be \.safetensors"):
        load_family(str(tmp_path / "model.ckpt"))


def test_an_unknown_family_is_refused(tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"model\.family=flux: unknown family; use auto or one of sd, sdxl"):
        load_family(ModelSource(str(tiny_base), "flux"))


def test_a_quantization_that_is_not_known_is_refused(tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"model\.quantize=int3: unknown quantization"):
        load_family(ModelSource(str(tiny_base), quantize="int3"))


@pytest.mark.parametrize("as_single_file", [False, True])
def test_a_dtype_is_that_of_what_trains_and_the_vae_stays_float32(
    as_single_file: bool, tiny_base: Path, tmp_path: Path
) -> None:
    whole, base = load_family(str(tiny_base)), str(tiny_base)
    if as_single_file:
        base = str(tmp_path / "model.safetensors")
        save_file(original_state(whole), base)
    half = load_family(ModelSource(base, config=str(tiny_base), dtype=torch.bfloat16))
    for part, exact in ((half.denoiser, whole.denoiser), (half.text_encoders[0], whole.text_encoders[0])):
        for weight, wide in zip(part.parameters(), exact.parameters(), strict=True):
            assert torch.equal(weight, wide.to(torch.bfloat16))
    assert all(map(torch.equal, half.vae.parameters(), whole.vae.parameters()))


def test_latents_are_scaled_as_the_pipeline_scales_them(family: Family) -> None:
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = family.encode_images(pixels)
    expected = family.pipeline().vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, expected.mean * 0.5)
    torch.testing.assert_close(std, expected.std * 0.5)
    torch.testing.assert_close(family.decode_latents(mean), family.pipeline().vae.decode(expected.mean).sample)


def test_the_condition_is_that_of_the_pipeline(family: Family) -> None:
    pipeline: StableDiffusionPipeline = family.pipeline()
    prompts = ["a photo of a dog", ""]
    expected = pipeline.encode_prompt(prompts, "cpu", 1, False)[0]
    torch.testing.assert_close(family.encode_prompts(prompts)["encoder_hidden_states"], expected)


def test_remembered_prompts_need_no_text_encoder(family: Family) -> None:
    expected = (
        family.encode_prompts(["a dog"])["encoder_hidden_states"],
        family.encode_prompts([""])["encoder_hidden_states"],
    )
    family.cache_prompts(["", "a dog", "a dog"])
    family.text_encoders[0].to("meta")
    found = family.encode_prompts(["a dog", "", "a dog"])["encoder_hidden_states"]
    assert torch.equal(found, torch.cat([*expected, expected[0]]))


def test_a_prompt_that_is_too_long_is_read_by_whole_words_as_far_as_it_goes(family: Family) -> None:
    assert truncate(family.tokenizer, "dog " * 30) == ("dog " * 30, "")
    assert truncate(family.tokenizer, "dog " * 40) == (("dog " * 30).strip(), ("dog " * 10).strip())
    long = "dog " * 28 + "rumpelstilz cat"  # a word of several tokens is not torn
    assert truncate(family.tokenizer, long) == (("dog " * 28).strip(), "rumpelstilz cat")
    assert truncate(family.tokenizer, "x" * 500) == ("", "x" * 500)
    for prompt in ("dog " * 40, long, "a\n dog  " * 20):
        one, other = (
            family.encode_prompts([each])["encoder_hidden_states"]
            for each in (prompt, truncate(family.tokenizer, prompt)[0])
        )
        assert torch.equal(one, other)


def test_words_that_are_proposed_are_single_tokens_and_rare(family: Family) -> None:
    for tokenizer in (family.tokenizer, make_tokenizer("!")):
        words = rare_words(tokenizer)
        assert "sks" in words
        assert all(len(token_ids(tokenizer, word)) == 1 for word in words)
        assert len(words) > 5
    common = {
        word: is_common_token(tokenizer, token_ids(tokenizer, word)[0])
        for word in ("the", "robot", "firefly", "sks", "olis")
    }
    assert common == {"the": True, "robot": True, "firefly": True, "sks": False, "olis": False}


def test_a_frozen_copy_shares_the_vae_and_nothing_that_trains(family: Family) -> None:
    frozen = frozen_copy(family, torch.bfloat16)
    assert frozen.vae is family.vae
    assert frozen.denoiser is not family.denoiser
    assert not any(p.requires_grad for p in frozen.denoiser.parameters())
    assert next(family.denoiser.parameters()).dtype == torch.float32
    assert next(frozen.denoiser.parameters()).dtype == torch.bfloat16


def test_the_fingerprint_notices_a_single_changed_weight(family: Family) -> None:
    before = fingerprint(family)
    assert before == fingerprint(family)
    with torch.no_grad():
        next(family.text_encoders[0].parameters()).view(-1)[3] += 1e-7
    assert fingerprint(family) != before
