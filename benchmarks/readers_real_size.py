"""BLIP-2 and Kosmos-2 in their real shapes, random weights: loading them and one answer. Time and memory.

    python benchmarks/readers_real_size.py --image data/robot/00.png

The shapes are those of Salesforce/blip2-opt-2.7b-coco and microsoft/kosmos-2-patch14-224, which `describe` takes by
default. Each model is made in --work, in bfloat16 (7.5 and 3.3 GB), unless it lies there already. The answer is the
command's own, in a process of its own; memory is the peak that the system counts. With random weights it says nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from real_size import fill, measure, tell
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
)

from toyworld.readers.kosmos2 import build_processor
from toyworld.readers.words import IMAGE, build_writer

COCO_SIZE = 364  # pixels; BLIP-2 tuned on captions reads larger images than the others
OPT = {
    "vocab_size": 50304,
    "hidden_size": 2560,
    "word_embed_proj_dim": 2560,
    "ffn_dim": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "dropout": 0.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=Path("data/robot/00.png"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", choices=MAKERS, help="this one alone")
    parser.add_argument("--only-make", action="store_true", help="only make the models, in --work")
    parser.add_argument("--work", type=Path, default=Path("outputs/readers-real-size"))
    args = parser.parse_args()
    for name in [args.only] if args.only else MAKERS:
        folder = args.work / name
        if not (folder / "config.json").is_file():
            MAKERS[name](folder)
        if not args.only_make:
            question = ["--question", "what is it?", "--max-tokens", "8", "--dtype", args.dtype]
            command = ["-m", "dreambooth", "describe", str(args.image), "--model", str(folder), *question]
            tell(name, *measure([*command, "--out", str(args.work / f"{name}-out")]))


def make_blip2(folder: Path) -> None:
    """Write BLIP-2 with OPT 2.7B, with the toy world's few words in a vocabulary of the real size."""
    words = build_writer()
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config: Any = Blip2Config(
        vision_config={"image_size": COCO_SIZE},
        text_config={"model_type": "opt", **OPT, **ids},
        num_query_tokens=32,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
    )
    write(Blip2ForConditionalGeneration, config, folder)
    images = BlipImageProcessor(size={"height": COCO_SIZE, "width": COCO_SIZE})
    Blip2Processor(images, words, num_query_tokens=32).save_pretrained(folder)


def make_kosmos2(folder: Path) -> None:
    """Write Kosmos-2; its classes have the published one's shape by default."""
    processor = build_processor()
    images = processor.image_processor
    images.size, images.crop_size = {"shortest_edge": 224}, {"height": 224, "width": 224}
    words = processor.tokenizer
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    write(Kosmos2ForConditionalGeneration, Kosmos2Config(text_config=ids), folder)
    processor.save_pretrained(folder)


def write(network_class: Any, config: Any, folder: Path) -> None:
    """Write a network of random weights in bfloat16, made without a copy in single precision."""
    with torch.device("meta"):
        network = network_class(config)
    network = network.bfloat16().to_empty(device="cpu")
    fill(network)
    network.tie_weights()
    network.save_pretrained(folder)


MAKERS = {"blip2": make_blip2, "kosmos2": make_kosmos2}

if __name__ == "__main__":
    main()
