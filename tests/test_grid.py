"""Grids with what their images are of: nothing of an image is lost, and plain ones of earlier versions are read too."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.data.images import grid
from dreambooth.errors import UserError
from dreambooth.generation.grids.grid import CELLS, GridRow, cut, draw_grid, write_grid

SIDE = 24
PROMPTS = ("a dog", "a photo of sks dog in the snow, from far away, in the light of the evening sun")


@pytest.fixture
def rows() -> list[GridRow]:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(6)]
    return [GridRow(PROMPTS[0], images[:3]), GridRow(PROMPTS[1], images[3:], ["seed 0", "seed 1", "seed 2"])]


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.convert("RGB").tobytes() for image in images]


def test_the_images_of_a_labelled_grid_are_the_very_ones(rows: list[GridRow], tmp_path: Path) -> None:
    write_grid(tmp_path / "grid.png", draw_grid(rows, "step 40"))
    with Image.open(tmp_path / "grid.png") as sheet:
        assert pixels(cut(sheet, SIDE)) == pixels([*rows[0].images, *rows[1].images])
        assert sheet.width == grid(rows[0].images, columns=3).width, "text takes no room beside the images"


def test_each_text_is_written_on_it(rows: list[GridRow]) -> None:
    bare = [GridRow("", row.images) for row in rows]
    sheets = [draw_grid(bare), draw_grid(bare, "step 40"), draw_grid(rows, "step 40")]
    assert sheets[0].height < sheets[1].height < sheets[2].height
    dark = [np.asarray(draw_grid(bare, heading))[:10].min() for heading in ("", "step 40")]
    assert dark[1] < 100, "the heading stands above the images"


def test_a_long_caption_takes_lines_and_is_not_cut(rows: list[GridRow], tmp_path: Path) -> None:
    """Images of 24 pixels are narrower than the name of an axis."""
    short, long = (
        draw_grid([GridRow("", rows[0].images, [text] * 3)]) for text in ("7.5", "DPMSolverMultistep scheduler")
    )
    assert long.height >= short.height + 2 * 10
    assert long.width == short.width
    write_grid(tmp_path / "grid.png", long)
    assert pixels(cut(Image.open(tmp_path / "grid.png"), SIDE)) == pixels(list(rows[0].images))


def test_a_plain_grid_of_an_earlier_version_is_cut_too(rows: list[GridRow]) -> None:
    images = [image for row in rows for image in row.images]
    assert pixels(cut(grid(images, columns=3), SIDE)) == pixels(images)


@pytest.mark.parametrize("boxes", ["[[0, 0, 8, 8]]", "[[0]]", "no JSON", "[null]", "7"])
def test_what_holds_no_such_images_is_refused(boxes: str) -> None:
    sheet = Image.new("RGB", (60, 60))
    sheet.info[CELLS] = boxes
    with pytest.raises(UserError, match=r"its images have not 24 x 24 pixels|dreambooth-cells cannot be read"):
        cut(sheet, SIDE)
