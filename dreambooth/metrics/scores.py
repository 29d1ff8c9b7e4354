"""Embeddings to scores: one number per image.

The measures of the DreamBooth paper (arXiv 2208.12242, section 4.2 and its supplement): subject fidelity DINO and
CLIP-I, prompt fidelity CLIP-T, prior preservation PRES and DIV. All embeddings have length 1.
Shapes: B images, N references, D embedding dimensions.
"""

from torch import Tensor


def similarity(images_BD: Tensor, references_ND: Tensor) -> Tensor:
    """Return each image's mean cosine to all references, [B]. The mean over B is the mean pairwise cosine.

    DINO and CLIP-I where the images are of the subject and the references its photos; PRES where the images are of
    the class prompt (then low is good: what the class has taken over from the subject).
    """
    return (images_BD @ references_ND.T).mean(1)


def prompt_similarity(images_BD: Tensor, texts_BD: Tensor) -> Tensor:
    """Return CLIP-T, the cosine of each image to the text of its prompt, [B]."""
    return (images_BD * texts_BD).sum(1)


def diversity(distance_BB: Tensor) -> Tensor:
    """Return DIV, each image's mean distance to the others of its prompt, [B]; 0 where all are the same. B >= 2.

    The paper takes it among images of one prompt with the subject (section 4.3); among those of the class prompt it
    shows whether the class has collapsed. `evaluate` has both, validation the second.
    """
    num_images = len(distance_BB)
    assert num_images > 1, "one image has no diversity"
    return (distance_BB.sum(1) - distance_BB.diagonal()) / (num_images - 1)


def cosine_distance(images_BD: Tensor) -> Tensor:
    """Return 1 - cosine of all pairs, [B, B]."""
    return 1 - images_BD @ images_BD.T


def drift(images_BD: Tensor, base_BD: Tensor) -> Tensor:
    """Return 1 - cosine of each image to the untouched base's of the same prompt and seed, [B]; 0: no change."""
    return (1 - (images_BD * base_BD).sum(1)).clamp(min=0)  # the same image may be a rounding error nearer than itself


def self_similarity(photos_ND: Tensor) -> float:
    """Return the mean cosine among different photos of a subject, the score of a perfect image; 1 for one photo."""
    num_photos = len(photos_ND)
    if num_photos == 1:
        return 1.0
    return float(1 - diversity(cosine_distance(photos_ND)).mean())
