"""Read this toolkit's adapter files with the code of SD.Next and of kohya's sd-scripts, and compare the weights.

    python benchmarks/other_programs.py --sdnext CHECKOUT --sd-scripts CHECKOUT

Each kind of adapter learns something random on a tiny Stable Diffusion 1.x, is written under kohya's names, and applied
to the untouched base by the other program's own classes. The table tells how many modules those found, and the largest
difference from the weights that the toolkit merges. Only the files with the arithmetic of adapters are loaded; what
else they import is replaced by empty modules. No other package of these programs is needed.
"""

import argparse
import importlib
import logging
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_interop import KINDS, trained, write_kohya_names  # noqa: E402
from tiny import make_tiny_base  # noqa: E402

from dreambooth.families import Family, components, load_family  # noqa: E402
from dreambooth.methods import adapters  # noqa: E402

Weights = dict[str, Tensor]
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}


def empty_modules(names: list[str], **content: Any) -> None:
    """Put modules that hold nothing but `content` where the other program's imports look for them."""
    for name in names:
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module


def sdnext(checkout: Path) -> Callable[[Family, Path], None]:
    """Return what applies a file to a family with SD.Next's classes of modules."""
    imported = ("hashes", "shared", "sd_checkpoint", "devices", "errors")
    empty_modules([f"modules.{name}" for name in imported])
    package, lora = types.ModuleType("modules"), types.ModuleType("modules.lora")
    for name in imported:
        setattr(package, name, sys.modules[f"modules.{name}"])
    sys.modules["modules.shared"].log = logging.getLogger("sdnext")  # type: ignore[attr-defined]
    lora.__path__ = [str(checkout / "modules" / "lora")]
    sys.modules |= {"modules": package, "modules.lora": lora}
    load = importlib.import_module
    network = load("modules.lora.network")
    kinds = (("lora", "Lora"), ("hada", "Hada"), ("lokr", "Lokr"))
    readers = [getattr(load(f"modules.lora.network_{file}"), f"ModuleType{name}")() for file, name in kinds]

    def apply(family: Family, path: Path) -> None:
        groups: dict[str, Weights] = {}
        for key, tensor in load_file(path).items():
            module, _, name = key.partition(".")
            groups.setdefault(module, {})[name] = tensor
        settings = types.SimpleNamespace(te_multiplier=1.0, unet_multiplier=[1.0] * 3, dyn_dim=None)
        for part, parent in components(family).items():
            for name, module in parent.named_modules():
                key = PREFIXES[part] + name.replace(".", "_")
                if key not in groups:
                    continue
                weights = network.NetworkWeights(key, key, groups.pop(key), module)
                made = next(made for reader in readers if (made := reader.create_module(settings, weights)) is not None)
                change, _ = made.calc_updown(module.weight.data)
                module.weight.data += change.reshape(module.weight.shape)
        assert not groups, f"{sorted(groups)} fit no module"

    return apply


def sd_scripts(checkout: Path) -> Callable[[Family, Path], None]:
    """Return what merges a file's UNet part with sd-scripts' LoRA network.

    Its text part is left out: sd-scripts goes by the level `text_model` in transformers 4's modules.
    """
    empty_modules(["library", "library.utils"], setup_logging=lambda: None)
    empty_modules(["library.sdxl_original_unet"], SdxlUNet2DConditionModel=type("SdxlUNet2DConditionModel", (), {}))
    sys.path.insert(0, str(checkout))
    lora = importlib.import_module("networks.lora")

    def apply(family: Family, path: Path) -> None:
        text_encoder, unet = family.text_encoders[0], family.denoiser
        network, weights = lora.create_network_from_weights(
            1.0, str(path), None, text_encoder, unet, for_inference=True
        )
        network.merge_to(text_encoder, unet, weights, torch.float32, "cpu")

    return apply


def compare(base: Path, kind: str, apply: Callable[[Family, Path], None], parts: tuple[str, ...]) -> tuple[int, float]:
    """Return how many tensors another program changed, and the largest difference from what the toolkit merges."""
    with tempfile.TemporaryDirectory() as folder:
        expected, path = trained(base, kind), Path(folder) / "adapter.safetensors"
        write_kohya_names(expected, path)
        adapters.merge(expected)
        reader, untouched = load_family(str(base)), load_family(str(base))
        apply(reader, path)
    num_changed, largest = 0, 0.0
    for part in parts:
        found, before = components(reader)[part].state_dict(), components(untouched)[part].state_dict()
        for name, tensor in components(expected)[part].state_dict().items():
            num_changed += not torch.equal(found[name], before[name])
            largest = max(largest, float((found[name] - tensor).abs().max()))
    return num_changed, largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdnext", type=Path, help="a checkout of SD.Next")
    parser.add_argument("--sd-scripts", type=Path, help="a checkout of kohya's sd-scripts")
    args = parser.parse_args()
    print("| program | adapter | tensors changed | largest difference |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        base = make_tiny_base(Path(folder) / "base" / "epsilon")
        if args.sdnext:
            apply = sdnext(args.sdnext)
            for kind in KINDS:
                found = compare(base, kind, apply, ("unet", "text_encoder"))
                print(f"| SD.Next | {kind} | {found[0]} | {found[1]:.1e} |", flush=True)
        if args.sd_scripts:
            apply = sd_scripts(args.sd_scripts)
            for kind in (kind for kind in KINDS if kind.startswith("lora")):
                found = compare(base, kind, apply, ("unet",))
                print(f"| sd-scripts (UNet) | {kind} | {found[0]} | {found[1]:.1e} |", flush=True)


if __name__ == "__main__":
    main()
