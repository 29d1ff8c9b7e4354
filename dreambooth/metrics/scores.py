"""Embeddings to scores: one number per picture.

The measures of the DreamBooth paper (arXiv 2208.12242, section 4.2 and its supplement): subject fidelity DINO and
CLIP-I, prompt fidelity CLIP-T, prior preservation PRES and DIV. All embeddings have length 1.
Shapes: B pictures, N references, D embedding dimensions.
"""

from torch import Tensor


def similarity(pictures_BD: Tensor, references_ND: Tensor) -> Tensor:
    """Return each image's mean cosine to all references, [B]. The mean over B is the mean pairwise cosine.

    DINO and CLIP-I where the pictures are of the subject and the references its photos; PRES where the pictures are of
    the class prompt (then low is good: what the class has taken over from the subject).
    """
    return (pictures_BD @ references_ND.T).mean(1)


def prompt_similarity(pictures_BD: Tensor, texts_BD: Tensor) -> Tensor:
    """Return CLIP-T, the cosine of each image to the text of its prompt, [B]."""
    return (pictures_BD * texts_BD).sum(1)


def diversity(distance_BB: Tensor) -> Tensor:
    """Return DIV, each image's mean distance to the others of its prompt, [B]; 0 where all are the same. B >= 2.

    The paper takes it among pictures of one prompt with the subject (section 4.3); among those of the class prompt it
    tells whether the class has collapsed. `evaluate` has both, validation the second.
    """
    num_pictures = len(distance_BB)
    assert num_pictures > 1, "one picture has no diversity"
    return (distance_BB.sum(1) - distance_BB.diagonal()) / (num_pictures - 1)


def cosine_distance(pictures_BD: Tensor) -> Tensor:
    """Return 1 - cosine of all pairs, [B, B]."""
    return 1 - pictures_BD @ pictures_BD.T


def drift(pictures_BD: Tensor, base_BD: Tensor) -> Tensor:
    """Return 1 - cosine of each image to the untouched base's of the same prompt and seed, [B]; 0: no change."""
    return 1 - (pictures_BD * base_BD).sum(1)


def self_similarity(photos_ND: Tensor) -> float:
    """Return the mean cosine among different photos of a subject, the score of a perfect image; 1 for one photo."""
    num_photos = len(photos_ND)
    if num_photos == 1:
        return 1.0
    return float(1 - diversity(cosine_distance(photos_ND)).mean())
