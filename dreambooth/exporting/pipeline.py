"""A diffusers pipeline folder that each diffusers from 0.30 on, and transformers from 4.44 on, reads and draws with.

`save_pretrained` alone writes folders that only the newest versions read whole: transformers 5.6 took the level
"text_model" out of the names of CLIP's weights, so that earlier versions find none of them and initialize the text
encoder at random, with a warning at most; and transformers before 5 reads a tokenizer from vocab.json and merges.txt.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from dreambooth.families import Family
from dreambooth.files import write_text
from dreambooth.subject_info import ExportCard, write_card

TEXT_FILE = "model.safetensors"


def write(family: Family, card: ExportCard, folder: Path, name: str) -> None:
    """Write the whole model, adapters merged already, with the subject's card; the folder itself has the name."""
    save_pipeline(family.pipeline(), folder)
    write_card(replace(card, method="full"), folder)


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline in the dtype of its networks."""
    tokenizers = {name: part for name, part in pipeline.components.items() if isinstance(part, PreTrainedTokenizerFast)}
    for tokenizer in tokenizers.values():
        forget_calls(tokenizer)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name, tokenizer in tokenizers.items():
        save_vocabulary(tokenizer, folder / name)
    for name, part in pipeline.components.items():
        if isinstance(part, CLIPTextModel | CLIPTextModelWithProjection):
            save_text_encoder(part, folder / name)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer by itself, for every version of transformers."""
    forget_calls(tokenizer)
    tokenizer.save_pretrained(folder)
    save_vocabulary(tokenizer, folder)


def forget_calls(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a tokenizer be saved as it was loaded.

    It is saved as it was called last, so an interrupted run would write another file than a whole one.
    """
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def save_vocabulary(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write vocab.json and merges.txt beside a tokenizer that was saved."""
    tokenizer.backend_tokenizer.model.save(str(folder))
    save_added_tokens(tokenizer, folder)


def save_text_encoder(text_encoder: CLIPTextModel | CLIPTextModelWithProjection, folder: Path) -> None:
    """Write the weights under the names of all versions, over those that `save_pretrained` wrote to the folder.

    The config says float32 whatever the file holds: transformers 5 loads in the config's dtype while diffusers loads
    the UNet in float32, and the two would not multiply. `from_pretrained(..., dtype=...)` overrides it.
    """
    save_file(nested_names(text_encoder), folder / TEXT_FILE, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_text(folder / "config.json", json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def nested_names(text_encoder: CLIPTextModel | CLIPTextModelWithProjection) -> dict[str, torch.Tensor]:
    """Return the weights with the level "text_model" in their names, which today's CLIPTextModel lacks."""
    outside = ("text_model.", "text_projection.")
    return {
        name if name.startswith(outside) else f"text_model.{name}": tensor.detach().contiguous()
        for name, tensor in text_encoder.state_dict().items()
    }


def save_added_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokens behind the vocabulary, learned words say, where transformers before 5 looks for them."""
    size = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    added = {token: number for token, number in tokenizer.get_added_vocab().items() if number >= size}
    if added:
        write_text(folder / "added_tokens.json", json.dumps(added, indent=2, ensure_ascii=False) + "\n")
