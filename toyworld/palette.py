"""The toy world's colours: twelve that have a name in captions, and the fixed ones of eyes, tyres and glass."""

from __future__ import annotations

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (216, 36, 40),
    "orange": (246, 134, 22),
    "yellow": (252, 216, 44),
    "green": (36, 148, 58),
    "blue": (36, 84, 212),
    "purple": (128, 52, 182),
    "pink": (252, 146, 196),
    "brown": (122, 72, 36),
    "white": (246, 246, 246),
    "black": (44, 44, 50),
    "gray": (146, 150, 158),
    "teal": (24, 184, 184),
}

OUTLINE: RGB = (22, 20, 28)
EYE: RGB = (255, 255, 255)
GLASS: RGB = (178, 224, 244)
TYRE: RGB = (52, 52, 60)
LEAF: RGB = (48, 136, 58)

# Pattern and body must differ by this much (Euclidean, 0-255 RGB) or stripes could not be seen at 64 px.
MIN_CONTRAST = 120.0


def contrast(first: str, second: str) -> float:
    """Return the Euclidean RGB distance between two named colours, 0 (same) to about 350 (black and white)."""
    pairs = zip(COLOURS[first], COLOURS[second], strict=True)
    return sum((a - b) ** 2 for a, b in pairs) ** 0.5


def shade(colour: RGB, factor: float) -> RGB:
    """Return `colour` made darker (factor < 1) or brighter (factor > 1), clipped to 0-255."""
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


def mix(first: RGB, second: RGB, fraction: float) -> RGB:
    """Return the colour between two: `first` at fraction 0, `second` at fraction 1, linear between."""
    red, green, blue = (int(a * (1 - fraction) + b * fraction) for a, b in zip(first, second, strict=True))
    return red, green, blue
