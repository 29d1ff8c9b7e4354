"""Draw on images what was read in them: boxes of phrases, and the attention of words."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from dreambooth.data.fonts import load_font
from dreambooth.data.overlays import overlay
from dreambooth.readers.protocols import Box, PhraseBox, WordMap

LEAST_SIDE = 256  # pixels; smaller images are enlarged
# Told apart on any photo, and black letters can be read on each.
COLOURS = ("#ffd400", "#00d0ff", "#ff8cc6", "#9be564", "#ffa64d", "#c9a7ff")


def draw_boxes(image: Image.Image, boxes: Sequence[PhraseBox]) -> Image.Image:
    """Return the image with the boxes of its phrases and their words, enlarged to 256 pixels where it is smaller."""
    drawn = _enlarged(image)
    draw, line = ImageDraw.Draw(drawn), max(2, min(drawn.size) // 200)
    font = load_font(max(10, min(drawn.size) // 28))
    for number, box in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        left, top, right, bottom = box.pixels(drawn.size)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line)
        label = draw.textbbox((left + line, top + line), box.phrase, font=font)
        draw.rectangle(label, fill=colour)
        draw.text((left + line, top + line), box.phrase, fill="black", font=font)
    return drawn


def draw_word(image: Image.Image, word: WordMap, seen: Box) -> Image.Image:
    """Return the image under the colours of a word's map, whose highest value is the brightest.

    seen: the part of the image that the map covers; the rest stays as it is.
    """
    drawn = _enlarged(image)
    left, top, right, bottom = PhraseBox(word.word, *seen).pixels(drawn.size)
    part = drawn.crop((left, top, right, bottom))
    drawn.paste(overlay(part, word.map_hw, float(word.map_hw.max())), (left, top))
    return drawn


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, -(-LEAST_SIDE // max(image.size)))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
