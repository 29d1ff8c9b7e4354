"""Which model reads an image where none is named: a published one, or for the toy world's images an embedded one."""

from dataclasses import dataclass
from pathlib import Path

TOY_SIDE = 128  # pixels; up to here an image is the toy world's
WHOLE = ("model.safetensors", "model_index.json")  # a folder that is there has one of them


@dataclass(frozen=True)
class Usual:
    """Hold the models of one task: hub id of the published one ("": none is usual), folder of the embedded one."""

    published: str
    embedded: str

    def model_for(self, size: tuple[int, int]) -> str:
        """Return the model that reads an image of this size, (width, height) in pixels."""
        is_toy = max(size) <= TOY_SIDE and any((Path(self.embedded) / name).is_file() for name in WHOLE)
        return self.embedded if is_toy else self.published


DESCRIBE = Usual("Salesforce/blip2-opt-2.7b-coco", "checkpoints/toyworld-blip2")
GROUND = Usual("microsoft/kosmos-2-patch14-224", "checkpoints/toyworld-kosmos2")
SEARCH = Usual("Salesforce/blip2-itm-vit-g", "checkpoints/toyworld-blip2/retrieval")
DRAW = Usual("", "checkpoints/toyworld-second")  # images of the same class
MASK = Usual("CIDAS/clipseg-rd64-refined", "checkpoints/toyworld-segmenter")  # Apache-2.0, 151 M weights
