"""A drawing surface that draws one thing three ways: in colour, as numbered parts, or as outlines.

Things are drawn in a box of -1..1 both ways, y downwards, standing on y = 1 and facing right. The surface maps the box
to pixels of an image three times the final size, which is reduced at the end. Nothing is ever rotated, so ellipses and
rectangles are PIL's own: that is what makes scenes of several things as fast as those of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from toyworld.canvas import DRAWN_SIZE, OVERSAMPLE, SIZE, SPOTS, Point, clip_to_band, rectangle_points
from toyworld.palette import EYE, OUTLINE, RGB

__all__ = ["DRAWN_SIZE", "OVERSAMPLE", "PARTS", "SIZE", "Box", "Canvas", "Point"]

# What a part of a thing can be; its number in a map of parts is its index plus one.
PARTS = ("body", "head", "eye", "face", "ear", "limb", "tail", "worn", "wheel", "window", "roof", "handle")
SMALL = 50  # drawn pixels of half a box: things below it have thinner outlines
CURVE_STEPS = 5  # points on either side of a band of an ellipse


@dataclass(frozen=True)
class Box:
    """Hold where a thing's box of -1..1 lies in the drawn image, in drawn pixels."""

    center_x: float
    ground: float  # where y = 1 is
    half: float
    mirrored: bool = False


class Canvas:
    """Draws shapes given in a thing's own coordinates.

    mode "colour" draws what is seen; "parts" fills each shape with `first_number` plus its part's index; "edges" draws
    outlines white and all else black.
    """

    def __init__(self, image: Image.Image, box: Box, mode: str = "colour", first_number: int = 1) -> None:
        self._draw = ImageDraw.Draw(image)
        self._half = box.half
        self._flip = -box.half if box.mirrored else box.half
        self._x, self._y = box.center_x, box.ground - box.half
        self._width = 3 if box.half >= SMALL else 2
        self._mode, self._first_number = mode, first_number
        self._number = first_number

    def part(self, name: str) -> None:
        """Say which of `PARTS` the shapes drawn from here on are."""
        self._number = self._first_number + PARTS.index(name)

    def _inks(self, colour: RGB) -> tuple[RGB | int, RGB | int]:
        """Return the inks of a shape's inside and of its outline."""
        if self._mode == "colour":
            return colour, OUTLINE
        return (self._number, self._number) if self._mode == "parts" else (0, 255)

    def _to_pixels(self, points: Sequence[Point]) -> list[Point]:
        x, y, flip, half = self._x, self._y, self._flip, self._half
        return [(x + flip * u, y + half * v) for u, v in points]

    def _edges(self, left: float, top: float, right: float, bottom: float) -> list[float]:
        first, second = self._x + self._flip * left, self._x + self._flip * right
        y, half = self._y, self._half
        return [min(first, second), y + half * top, max(first, second), y + half * bottom]

    def fill(self, points: Sequence[Point], colour: RGB) -> None:
        """Draw a filled polygon without outline."""
        self._draw.polygon(self._to_pixels(points), fill=self._inks(colour)[0])

    def polygon(self, points: Sequence[Point], colour: RGB) -> None:
        """Draw a filled polygon with outline."""
        inside, edge = self._inks(colour)
        pixels = self._to_pixels(points)
        self._draw.polygon(pixels, fill=inside)
        self._draw.line([*pixels, pixels[0], pixels[1]], fill=edge, width=self._width, joint="curve")

    def disc(self, x: float, y: float, radius_x: float, radius_y: float, colour: RGB) -> None:
        """Draw a filled ellipse without outline."""
        self._draw.ellipse(
            self._edges(x - radius_x, y - radius_y, x + radius_x, y + radius_y), fill=self._inks(colour)[0]
        )

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: RGB) -> None:
        """Draw a filled ellipse with outline."""
        inside, edge = self._inks(colour)
        edges = self._edges(x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        self._draw.ellipse(edges, fill=inside, outline=edge, width=self._width)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: RGB) -> None:
        """Draw a filled rectangle with outline."""
        inside, edge = self._inks(colour)
        self._draw.rectangle(self._edges(left, top, right, bottom), fill=inside, outline=edge, width=self._width)

    def stroke(self, points: Sequence[Point], colour: RGB, width: float) -> None:
        """Draw a thick outlined line through `points`; width in the thing's units."""
        inside, edge = self._inks(colour)
        pixels = self._to_pixels(points)
        inner = max(2, round(width * self._half))
        self._draw.line(pixels, fill=edge, width=inner + 2 * self._width, joint="curve")
        self._draw.line(pixels, fill=inside, width=inner, joint="curve")

    def eye(self, x: float, y: float, radius: float) -> None:
        """Draw a white eye with a dark pupil that looks the way the thing faces."""
        self.part("eye")
        self.ellipse(x, y, radius, radius, EYE)
        self.disc(x + 0.28 * radius, y + 0.05 * radius, 0.46 * radius, 0.52 * radius, OUTLINE)

    def round_body(
        self, x: float, y: float, radius_x: float, radius_y: float, colours: tuple[RGB, RGB], pattern: str, axis: int
    ) -> None:
        """Draw an elliptic main part in colours (main, accent); axis 1: bands lie across the height, 0: the width."""
        self.part("body")
        self.ellipse(x, y, radius_x, radius_y, colours[0])
        if pattern == "striped":
            center, radius, other, other_radius = (y, radius_y, x, radius_x) if axis else (x, radius_x, y, radius_y)
            for start in (-0.6, 0.2):
                band = _band_of_ellipse(center, radius, other, other_radius, start, start + 0.4)
                self.fill(band if axis else [(v, u) for u, v in band], colours[1])
        elif pattern == "spotted":
            self._spots(x - 0.78 * radius_x, y - 0.78 * radius_y, x + 0.78 * radius_x, y + 0.78 * radius_y, colours[1])

    def flat_body(
        self, points: Sequence[Point], colours: tuple[RGB, RGB], pattern: str, axis: int = 1, num_stripes: int = 2
    ) -> None:
        """Draw a polygonal main part in colours (main, accent), striped, spotted or plain."""
        self.part("body")
        self.polygon(points, colours[0])
        low, high = ([bound(point[k] for point in points) for k in (0, 1)] for bound in (min, max))
        if pattern == "striped":
            width = (high[axis] - low[axis]) / (2 * num_stripes + 1)
            for i in range(num_stripes):
                start = low[axis] + (2 * i + 1) * width
                self.fill(clip_to_band(points, axis, start, start + width), colours[1])
        elif pattern == "spotted":
            self._spots(low[0], low[1], high[0], high[1], colours[1])

    def _spots(self, left: float, top: float, right: float, bottom: float, colour: RGB) -> None:
        radius = min(0.14, 0.17 * (right - left), 0.17 * (bottom - top) + 0.02)
        for u, v in SPOTS:
            self.disc(left + u * (right - left), top + v * (bottom - top), radius, radius, colour)


def _band_of_ellipse(
    center: float, radius: float, other: float, other_radius: float, start: float, end: float
) -> list[Point]:
    """Return the part of an ellipse between two fractions (-1..1) of its radius, as points (other axis, this axis)."""
    near, far = [], []
    for i in range(CURVE_STEPS):
        fraction = start + (end - start) * i / (CURVE_STEPS - 1)
        reach = 0.94 * other_radius * math.sqrt(1 - fraction * fraction)
        near.append((other - reach, center + fraction * radius))
        far.append((other + reach, center + fraction * radius))
    return near + far[::-1]


def box_points(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> list[Point]:
    """Return a rectangle as a polygon, its corners cut off or rounded by `radius`."""
    if radius <= 0:
        return rectangle_points(left, top, right, bottom)
    r, c = radius, 0.3 * radius
    return [
        (left, top + r), (left + c, top + c), (left + r, top), (right - r, top), (right - c, top + c), (right, top + r),
        (right, bottom - r), (right - c, bottom - c), (right - r, bottom), (left + r, bottom),
        (left + c, bottom - c), (left, bottom - r),
    ]  # fmt: skip
