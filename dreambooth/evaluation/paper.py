"""The paper's own results, to read beside ours. Subjects, models and encoders differ: values are not comparable."""

from dataclasses import dataclass

SOURCE = "Ruiz et al. 2023, DreamBooth, arXiv 2208.12242, tables 1 and 3"
MARK = "from the paper (other data, other models; not comparable row by row)"
DATA = (
    "Table 1: 30 subjects x 25 prompts x 4 images. Prior preservation (table 3): 15 of these subjects, Imagen. "
    "DINO and PRES by DINO ViT-S/16, DIV by LPIPS"
)


@dataclass(frozen=True)
class PaperRow:
    """Hold a row of the paper's tables: the means that it reports."""

    name: str
    means: dict[str, float]


ROWS = (
    PaperRow("Real images", {"dino": 0.774, "clip_i": 0.885}),
    PaperRow("DreamBooth, Imagen", {"dino": 0.696, "clip_i": 0.812, "clip_t": 0.306}),
    PaperRow("DreamBooth, Stable Diffusion", {"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305}),
    PaperRow("Textual Inversion, Stable Diffusion", {"dino": 0.569, "clip_i": 0.780, "clip_t": 0.255}),
    PaperRow(
        "DreamBooth, Imagen, 15 subjects, with prior preservation",
        {"dino": 0.684, "clip_i": 0.815, "clip_t": 0.308, "div": 0.391, "pres": 0.493},
    ),
    PaperRow(
        "DreamBooth, Imagen, 15 subjects, without prior preservation",
        {"dino": 0.712, "clip_i": 0.828, "clip_t": 0.306, "div": 0.371, "pres": 0.664},
    ),
)
