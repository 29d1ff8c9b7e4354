"""LoRA files under the names of every tool, read into one form.

    kohya             lora_unet_mid_block_attentions_0_proj_in.lora_down.weight, .lora_up.weight, .alpha, .dora_scale;
                      of XL also the original names: lora_unet_middle_block_1_proj_in
    LyCORIS           the same modules with .hada_w1_a ... (LoHa), .lokr_w1 ... (LoKr), .lora_mid.weight (LoCon)
    diffusers, peft   unet.mid_block.attentions.0.proj_in.lora_A.weight, .lora_B.weight, .lora_magnitude_vector
    diffusers, 2023   mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight;
                      text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight
    peft's own        base_model.model. before the names of one network, and alpha in adapter_config.json

An adapted weight is W + scale * change, scale = alpha / rank, or 1 where neither the file nor peft's config names an
alpha. With a magnitude m (DoRA, Liu et al. 2024, arXiv 2402.09353) it is m * W' / |W'| of that sum W', |W'| being the
length of each row.
Shapes: O and I outputs and inputs of a module, R rank; of a convolution each tensor has its kernel behind.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dreambooth.errors import ModelError
from dreambooth.families import Family, components
from dreambooth.families.original_names import original_modules
from dreambooth.methods import joined_files, peft_config
from dreambooth.methods.weight_files import read_weights

# The end of a tensor's name, and which tensor of its module that is.
LEAVES = (
    (r"(\.lora_A|\.lora_down|\.lora\.down|\.lora_linear_layer\.down|_lora\.down)(\.default)?\.weight", "lora_A"),
    (r"(\.lora_B|\.lora_up|\.lora\.up|\.lora_linear_layer\.up|_lora\.up)(\.default)?\.weight", "lora_B"),
    (r"\.lora_mid\.weight", "lora_mid"),
    (r"\.alpha", "alpha"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.lora_magnitude_vector(\.default)?(\.weight)?", "magnitude"),
    *((rf"\.{leaf}", leaf) for leaf in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    *((rf"\.{leaf}", leaf) for leaf in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")),
    *((rf"\.{leaf}", leaf) for leaf in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")),
)
NEEDED = {
    "lora": ({"lora_A", "lora_B"},),
    "loha": ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},),
    "lokr": (
        {"lokr_w1", "lokr_w2"},
        {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
        {"lokr_w1_a", "lokr_w1_b", "lokr_w2"},
        {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
    ),
}
TEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 768 + 1280: "Stable Diffusion XL"}


@dataclass(frozen=True)
class Change:
    """Hold what a file changes in one module.

    kind: 'lora', 'loha' or 'lokr'. tensors: by peft's names. rank: of its matrices; of a Kronecker product of two whole
    ones, which has none, the rank that its training was set to, None where the file does not say. magnitude: of DoRA,
    one number an output.
    """

    kind: str
    tensors: dict[str, Tensor]
    rank: int | None
    scale: float = 1.0
    magnitude_O: Tensor | None = None

    @property
    def is_any(self) -> bool:
        """Return whether it changes anything: the second matrix of a LoRA may be zero."""
        return self.kind != "lora" or bool(self.tensors["lora_B"].any())

    def applied_to(self, weight: Tensor) -> Tensor:
        """Return the adapted weight of a linear module or a convolution, float32."""
        changed = weight.float() + self.scale * self._unscaled(weight.shape)
        if self.magnitude_O is None:
            return changed
        lengths_O = changed.flatten(1).norm(dim=1)
        return changed * (self.magnitude_O / lengths_O).view(-1, *[1] * (changed.ndim - 1))

    def _unscaled(self, shape: torch.Size) -> Tensor:
        product = {"lora": lora_product, "loha": loha_product, "lokr": lokr_product}[self.kind]
        return product({name: tensor.float() for name, tensor in self.tensors.items()}).reshape(shape)


def lora_product(tensors: dict[str, Tensor]) -> Tensor:
    """Return B A, [O, I]."""
    return tensors["lora_B"].flatten(1) @ tensors["lora_A"].flatten(1)


def loha_product(tensors: dict[str, Tensor]) -> Tensor:
    """Return (w1_a w1_b) * (w2_a w2_b), elementwise, [O, I]; each with its core where the file has one."""
    first, second = (
        _with_core(tensors[f"hada_t{n}"], tensors[f"hada_w{n}_a"], tensors[f"hada_w{n}_b"])
        if f"hada_t{n}" in tensors
        else tensors[f"hada_w{n}_a"] @ tensors[f"hada_w{n}_b"].flatten(1)
        for n in (1, 2)
    )
    return first * second


def lokr_product(tensors: dict[str, Tensor]) -> Tensor:
    """Return w1 (x) w2, the Kronecker product; each of the two may be a product of two matrices itself."""
    first = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    if "lokr_w2" in tensors:
        second = tensors["lokr_w2"]
    elif "lokr_t2" in tensors:
        second = _with_core(tensors["lokr_t2"], tensors["lokr_w2_a"], tensors["lokr_w2_b"])
    else:
        second = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    return torch.kron(first.view(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())


def _with_core(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return a convolution's weight out of Tucker's three factors: core [R, R, k, k], a [R, O], b [R, I]."""
    return torch.einsum("ijkl,ip,jr->prkl", core, a, b)


# -------------------------------------------------------------------------------- reading


Changes = dict[str, dict[str, Change]]  # by the network's name in the pipeline, then by the module's name in it


def read_changes(family: Family, path: Path) -> Changes:
    """Read what a file changes in a family's networks.

    Raises ModelError for a file that cannot be read, is no LoRA, or was trained on another base.
    """
    tensors, metadata = read_weights(path)
    modules = module_names(family)
    found: dict[tuple[str, tuple[str, ...]], dict[str, Tensor]] = {}
    unknown = set()
    for key, tensor in tensors.items():
        named, leaf = split_name(path, str(key))
        if not isinstance(tensor, Tensor):
            raise ModelError(f"{path}: {key} is no tensor")
        if named in modules:
            found.setdefault(modules[named], {})[leaf] = tensor
        else:
            unknown.add(named)
    if unknown:
        check_encoders(family, path, unknown)
        raise ModelError(
            f"{path}: adapts {len(unknown) + len(found)} modules, of which this base has {len(found)}, and not "
            f"{min(unknown)}: it was trained on another{trained_on(tensors)}"
        )
    config = peft_config.find_config(path, metadata, map(str, tensors))
    changes: Changes = {}
    for (part, members), joined in found.items():
        for module, own in joined_files.split(path, family, part, members, joined).items():
            changes.setdefault(part, {})[module] = make_change(path, f"{part}.{module}", own, config)
    check_fit(family, path, changes, trained_on(tensors))
    return changes


def trained_on(tensors: dict[str, Any]) -> str:
    """Return ", Stable Diffusion XL" or the like for a message: by the width of the text that its attention reads."""
    leaves = ("lora_down.weight", "lora_A.weight", ".down.weight", "hada_w1_b")
    widths = {
        tensor.shape[1] for key, tensor in tensors.items() if re.search("attn2.*to_k", key) and key.endswith(leaves)
    }
    return next((f", {TEXT_WIDTHS[width]}" for width in widths if width in TEXT_WIDTHS), "")


def split_name(path: Path, key: str) -> tuple[str, str]:
    """Split a tensor's name into its module's and which tensor it is. Raises ModelError for one of no LoRA."""
    for pattern, leaf in LEAVES:
        if found := re.fullmatch(rf"(.+?)({pattern})", key):
            return found[1].removeprefix(peft_config.PREFIX), leaf
    raise ModelError(f"{path}: {key} is of no LoRA, LoHa or LoKr; other kinds cannot be read here")


def check_encoders(family: Family, path: Path, unknown: set[str]) -> None:
    """Raise ModelError for the bare name of a module that several text encoders have."""
    named = bare_text_names(family)
    for name in sorted(unknown & named.keys()):
        encoders = [f"{part_name}." for part_name, _ in named[name]]
        raise ModelError(
            f"{path}: adapts {name} of a text encoder, and this base has it in {len(encoders)}; write "
            f"{' or '.join(encoders)} before its names"
        )


def module_names(family: Family) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return (network, modules) by every name that files have for a module, or for several that are one matrix."""
    named = {name: ("transformer", members) for name, members in joined_files.authors_names(family).items()}
    for part_name, part in components(family).items():
        originals = original_modules(part) if part_name == "unet" else {}
        for name, module in part.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                named |= dict.fromkeys(aliases(part_name, name, originals), (part_name, (name,)))
    alone = {name: found[0] for name, found in bare_text_names(family).items() if len(found) == 1}
    return alone | named


def bare_text_names(family: Family) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Return (network, modules) of each text encoder that has a module of this name, as peft's own files write it."""
    named: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for part_name, part in components(family).items():
        if not part_name.startswith("text_encoder"):
            continue
        for name, module in part.named_modules():
            if isinstance(module, nn.Linear):
                inner = name.removeprefix("text_model.")
                for bare in (inner, f"text_model.{inner}"):
                    named.setdefault(bare, []).append((part_name, (name,)))
    return named


def aliases(part_name: str, name: str, originals: dict[str, str]) -> Iterator[str]:
    """Yield the names that files have for a module. originals: `original_modules` of a UNet."""
    if part_name == "unet":
        yield from unet_names(name, originals)
    elif part_name == "transformer":
        yield from transformer_names(name)
    else:
        yield from text_names(part_name, name)


def transformer_names(name: str) -> Iterator[str]:
    """Yield the names that files have for a module of a transformer: of diffusers, ComfyUI, kohya's scripts, LyCORIS.

    Some write the output of attention without the list that it is in diffusers.
    """
    for each in dict.fromkeys((name, name.replace(".to_out.0", ".out"))):
        underscored = each.replace(".", "_")
        yield from (each, f"transformer.{each}", f"diffusion_model.{each}")
        yield from (f"lora_unet_{underscored}", f"lycoris_{underscored}")


def unet_names(name: str, originals: dict[str, str]) -> Iterator[str]:
    """Yield the names that files have for a module of the UNet.

    The last two are of attention processors; `to_out` is a list of two modules there is no second name for.
    """
    yield from (name, f"unet.{name}", f"lora_unet_{name.replace('.', '_')}")
    if name in originals:
        yield f"lora_unet_{originals[name].replace('.', '_')}"
    if re.search(r"\.to_(q|k|v|out\.0)$", name):
        processor = name.removesuffix(".0").replace(".to_", ".processor.to_")
        yield from (processor, f"unet.{processor}")


def text_names(part_name: str, name: str) -> Iterator[str]:
    """Yield the names that files have for a module of a text encoder.

    transformers 5.6 took the level "text_model" out of one of its classes; files have it.
    """
    inner = name.removeprefix("text_model.")
    underscored = f"text_model_{inner.replace('.', '_')}"
    number = "2" if part_name.endswith("_2") else "1"
    dotted = (f"{part_name}.{inner}", f"{part_name}.text_model.{inner}")
    yield from (*dotted, f"lora_te{number}_{underscored}")
    if number == "1":
        yield f"lora_te_{underscored}"
    if inner == "text_projection":  # outside that level
        yield f"lora_te{number}_{inner}"
    for here, in_2023 in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
        if name.endswith(f"self_attn.{here}"):
            yield from (each.removesuffix(here) + in_2023 for each in dotted)


def make_change(path: Path, name: str, own: dict[str, Tensor], config: dict[str, Any]) -> Change:
    """Return what the tensors of one module, "unet.down_blocks.0 ...", mean together.

    config: of peft, by `peft_config.find_config`. Raises ModelError where tensors are missing.
    """
    own = dict(own)
    alpha, dora_scale = own.pop("alpha", None), own.pop("dora_scale", None)
    magnitude = own.pop("magnitude", dora_scale)
    if "lora_mid" in own and "lora_A" in own:  # LoCon's core and its 1 x 1 input are one convolution
        own["lora_A"] = torch.einsum("ijkl,jr->irkl", own.pop("lora_mid").float(), own["lora_A"].flatten(1).float())
    matrices = own.keys() - {"hada_t1", "hada_t2", "lokr_t2"}
    kind = next((kind for kind, needed in NEEDED.items() if matrices in needed), None)
    if kind is None:
        raise ModelError(f"{path}: {name} has {', '.join(sorted(own)) or 'no matrices'} alone: the file is incomplete")
    is_of_inputs = dora_scale is not None and dora_scale.ndim > 1 and len(dora_scale) == 1  # of LyCORIS before 3
    if magnitude is not None and (kind != "lora" or is_of_inputs or len(magnitude.flatten()) != len(own["lora_B"])):
        raise ModelError(f"{path}: {name}: magnitudes that are not those of a LoRA's outputs cannot be read here")
    magnitude_O = None if magnitude is None else magnitude.float().flatten()
    lows = ("lora_A", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    rank = next((len(own[leaf]) for leaf in lows if leaf in own), None)
    if rank is None:  # its strength is in the matrices; but for peft's own files
        return Change(kind, own, None if alpha is None else round(float(alpha)), peft_config.whole_scale(name, config))
    scale = peft_config.scale_in_config(name, rank, config) if alpha is None else float(alpha) / rank
    return Change(kind, own, rank, scale, magnitude_O)


def check_fit(family: Family, path: Path, changes: Changes, other: str = "") -> None:
    """Raise ModelError for tensors that do not fit the base's weights, and for numbers that are not finite.

    other: `trained_on`.
    """
    for part_name, own in changes.items():
        part = components(family)[part_name]
        for name, change in own.items():
            weight = cast(Tensor, part.get_submodule(name).weight)
            for leaf, tensor in change.tensors.items():
                if not bool(tensor.isfinite().all()):
                    raise ModelError(f"{path}: {part_name}.{name}: {leaf} holds numbers that are not finite")
            if not _fits(change, weight):
                raise ModelError(
                    f"{path}: cannot be loaded into this base: {part_name}.{name} is {list(weight.shape)} here; it was "
                    f"trained on another{other}"
                )


def _fits(change: Change, weight: Any) -> bool:
    """Return whether a change fits a weight, by the shapes alone, without computing the product."""
    try:
        with torch.device("meta"):
            on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in change.tensors.items()}
            magnitude = None if change.magnitude_O is None else torch.empty_like(change.magnitude_O, device="meta")
            empty = torch.empty(weight.shape)
        return Change(change.kind, on_meta, None, 1.0, magnitude).applied_to(empty).shape == weight.shape
    except (RuntimeError, IndexError):
        return False


# -------------------------------------------------------------------------------- applying


@torch.no_grad()
def apply(family: Family, path: Path, weight: float = 1.0) -> None:
    """Add what a LoRA's file changes to a family's weights, times `weight`. Raises ModelError as `read_changes`."""
    for part_name, changes in read_changes(family, path).items():
        part: nn.Module = components(family)[part_name]
        for name, change in changes.items():
            parameter = part.get_parameter(f"{name}.weight")
            whole = change.applied_to(parameter)
            parameter.add_((weight * (whole - parameter)).to(parameter.dtype))
