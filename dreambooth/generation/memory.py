"""Sample in the memory that there is: what is chosen by what is free, said in a line, and each forceable.

Offload gives the same bits. Slices decode the images of a batch one by one, halved batches sample fewer at a time: the
same images but for rounding. Tiles decode parts of an image that overlap: it differs by a few levels where they meet.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.families.quantization import stored_tensors
from dreambooth.families.runtimes import Graph

logger = logging.getLogger(__name__)

SPARE = 0.7  # of what is free, for weights; the rest is for activations
# Bytes of a decoder's activations a pixel: at the last level the input, the output and a copy, of 128 channels in
# float32, and what convolutions take beside them.
BYTES_A_PIXEL = 4 * 128 * 4


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a GPU; None for main memory, in which nothing has to wait."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def choose_offload(sizes: Sequence[int], free: int | None) -> str:
    """Return `none`, `parts` or `blocks` for networks of these bytes, of which `parts` has one at a time there."""
    if free is None or sum(sizes) < SPARE * free:
        return "none"
    return "parts" if max(sizes) < SPARE * free else "blocks"


def choose_decoding(num_pixels: int, num_images: int, free: int | None) -> str:
    """Return `whole`, `slices` or `tiles` for decoding so many images of so many pixels each."""
    if free is None or num_images * num_pixels * BYTES_A_PIXEL < free:
        return "whole"
    return "slices" if num_images > 1 and num_pixels * BYTES_A_PIXEL < free else "tiles"


def offload_for(family: Family, wanted: str, device: torch.device, text_bytes: int) -> str:
    """Return how a family that is still in main memory is to be kept off the device; says so where it was chosen.

    text_bytes: of text encoders that are loaded where a prompt is to be encoded.
    """
    if wanted != "auto":
        return wanted
    free = free_memory(device)
    networks = (family.denoiser, family.vae, *family.text_encoders)
    sizes = [sum(t.numel() * t.element_size() for t in stored_tensors(network)) for network in networks]
    chosen = choose_offload([*sizes, text_bytes], free)
    if chosen != "none" and free is not None:
        logger.info(
            f"offload: {chosen}, as the networks have {(sum(sizes) + text_bytes) / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} are free (--offload)"
        )
    return chosen


def prepare_decoding(family: Family, wanted: str, num_pixels: int, num_images: int) -> None:
    """Let the VAE decode whole, in slices or in tiles; says so where it was chosen.

    Raises UserError for a VAE that decodes whole alone, as a graph does, where something else is wanted.
    """
    vae: Any = family.vae
    if not hasattr(vae, "enable_tiling"):
        if wanted not in ("auto", "whole"):
            raise UserError(f"--decoding {wanted}: this model's VAE is a graph, which decodes whole; leave it out")
        return
    free = free_memory(next(family.vae.parameters()).device)
    chosen = choose_decoding(num_pixels, num_images, free) if wanted == "auto" else wanted
    before = decoding_of(vae)
    if chosen == "tiles":
        vae.enable_tiling()
    else:
        vae.disable_tiling()
    if chosen == "whole":
        vae.disable_slicing()
    else:
        vae.enable_slicing()
    if wanted == "auto" and free is not None and chosen not in ("whole", before):
        logger.info(f"decoding in {chosen}, as {free / 2**30:.1f} GiB are free (--decoding)")


@contextlib.contextmanager
def decoding_for(family: Family, wanted: str, num_pixels: int, num_images: int) -> Iterator[None]:
    """Let the VAE decode as `prepare_decoding` chooses while the block runs, and then as before. Raises UserError."""
    before = decoding_of(family.vae)
    prepare_decoding(family, wanted, num_pixels, num_images)
    try:
        yield
    finally:
        prepare_decoding(family, before, num_pixels, num_images)


def decoding_of(vae: Any) -> str:
    """Return how a VAE decodes: whole, slices or tiles."""
    if not hasattr(vae, "enable_tiling"):
        return "whole"
    return "tiles" if vae.use_tiling else "slices" if vae.use_slicing else "whole"


def compile_denoiser(family: Family) -> None:
    """Compile the denoiser when it is first called. Raises UserError for graphs, which are compiled already."""
    if isinstance(family.denoiser, Graph):
        raise UserError("--compile: this model is an exported graph, which is compiled already; leave it out")
    family.denoiser.compile()


def slice_attention(family: Family) -> None:
    """Compute attention a part of the heads at a time. Raises UserError for a network that has no such mode."""
    network: Any = family.denoiser
    if not hasattr(network, "set_attention_slice"):
        raise UserError("--attention-slices: this model's attention keeps no large matrices; leave it out")
    network.set_attention_slice("auto")
