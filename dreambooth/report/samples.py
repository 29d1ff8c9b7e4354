"""The images of a run, cut out of its lossless grids: the same prompts and seeds at every validated step."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth.data.image_files import load_image
from dreambooth.errors import UserError
from dreambooth.generation.grids.grid import PADDING, cell_boxes, cut


@dataclass(frozen=True)
class Samples:
    """Read the grids in `folder`: a row a prompt, a column a seed, squares of `side` pixels."""

    folder: Path
    num_prompts: int
    num_images: int
    side: int

    def steps(self) -> list[int]:
        """Return the steps with a grid of this shape, in order; `strange` has the others."""
        return [step for step in self._all_steps() if self._fits(step)]

    def strange(self) -> list[str]:
        """Return the grids that hold something else, say because validation was changed between two sessions."""
        return [self._path(step).name for step in self._all_steps() if not self._fits(step)]

    def rows(self, step: int) -> list[list[Image.Image]]:
        """Return the images of a step, [prompt][seed]. Raises UserError for a damaged file."""
        images = cut(load_image(self._path(step)), self.side)
        return [images[first : first + self.num_images] for first in range(0, len(images), self.num_images)]

    def _all_steps(self) -> Sequence[int]:
        names = (re.fullmatch(r"step-(\d+)\.png", path.name) for path in self.folder.glob("step-*.png"))
        return sorted(int(name[1]) for name in names if name is not None)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.png"

    def _fits(self, step: int) -> bool:
        """Return whether a grid holds these images, by its file's head; nothing is decoded."""
        pitch = self.side + PADDING
        try:
            with Image.open(self._path(step)) as grid:
                boxes = cell_boxes(grid, self.side)
                if boxes is not None:
                    return len(boxes) == self.num_images * self.num_prompts
                return grid.size == (self.num_images * pitch + PADDING, self.num_prompts * pitch + PADDING)
        except (OSError, UserError):
            return False
