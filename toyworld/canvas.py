"""A small drawing surface over PIL: object coordinates, outlines, and patterns clipped to a body.

Objects are drawn in a box of -1..1 both ways, y downwards, standing on y = 1. The canvas maps it to pixels of a
image three times the final size, which is reduced at the end: cheap antialiasing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from toyworld.palette import OUTLINE, RGB

SIZE = 64  # pixels, the finished image
OVERSAMPLE = 3
DRAWN_SIZE = SIZE * OVERSAMPLE
OUTLINE_WIDTH = 3  # drawn pixels, so one finished pixel

Point = tuple[float, float]
# Centres of spots in the unit box: a quincunx, so five dots of some 5 finished pixels fit on every body.
SPOTS: tuple[Point, ...] = ((0.22, 0.24), (0.78, 0.24), (0.5, 0.5), (0.22, 0.76), (0.78, 0.76))


@dataclass(frozen=True)
class Placement:
    """Hold the position of the object's box in the drawn image (all in drawn pixels; tilt in radians)."""

    center_x: float
    center_y: float
    half_size: float
    tilt: float = 0.0
    mirrored: bool = False


def _unit_circle(num_points: int) -> list[Point]:
    return [(math.cos(2 * math.pi * i / num_points), math.sin(2 * math.pi * i / num_points)) for i in range(num_points)]


CIRCLE = _unit_circle(24)


def ellipse_points(x: float, y: float, radius_x: float, radius_y: float) -> list[Point]:
    """Return an ellipse as a polygon."""
    return [(x + radius_x * u, y + radius_y * v) for u, v in CIRCLE]


def rectangle_points(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> list[Point]:
    """Return a rectangle as a polygon, its corners rounded by `radius`."""
    if radius <= 0:
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    corners = ((right - radius, top + radius, -90), (right - radius, bottom - radius, 0),
               (left + radius, bottom - radius, 90), (left + radius, top + radius, 180))  # fmt: skip
    points = []
    for x, y, start in corners:
        for turn in (0, 30, 60, 90):
            angle = math.radians(start + turn)
            points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points


def clip_to_band(points: Sequence[Point], axis: int, low: float, high: float) -> list[Point]:
    """Return the part of a polygon with low <= coordinate[axis] <= high.

    Sutherland and Hodgman 1974, for two half-planes.
    """
    kept = list(points)
    for sign, limit in ((1.0, low), (-1.0, -high)):
        source, kept = kept, []
        for i, end in enumerate(source):
            start = source[i - 1]
            before, after = sign * start[axis] - limit, sign * end[axis] - limit
            if (before >= 0) != (after >= 0):
                fraction = before / (before - after)
                kept.append((start[0] + fraction * (end[0] - start[0]), start[1] + fraction * (end[1] - start[1])))
            if after >= 0:
                kept.append(end)
    return kept


class Canvas:
    """Draw shapes given in object coordinates. With `silhouette`, everything is drawn in that one value."""

    def __init__(self, image: Image.Image, placement: Placement, silhouette: int | None = None) -> None:
        self._draw = ImageDraw.Draw(image)
        self._placement = placement
        self._silhouette = silhouette
        self._cos = math.cos(placement.tilt) * placement.half_size
        self._sin = math.sin(placement.tilt) * placement.half_size

    def _to_pixels(self, points: Sequence[Point]) -> list[Point]:
        placement = self._placement
        flip = -1.0 if placement.mirrored else 1.0
        cos, sin = self._cos, self._sin
        return [
            (placement.center_x + flip * (cos * x - sin * y), placement.center_y + sin * x + cos * y) for x, y in points
        ]  # fmt: skip

    def _ink(self, colour: RGB) -> RGB | int:
        return colour if self._silhouette is None else self._silhouette

    def fill(self, points: Sequence[Point], colour: RGB) -> None:
        """Draw a filled polygon without outline."""
        self._draw.polygon(self._to_pixels(points), fill=self._ink(colour))

    def outline(self, points: Sequence[Point]) -> None:
        """Draw the dark line round a polygon."""
        pixels = self._to_pixels(points)
        self._draw.line([*pixels, pixels[0], pixels[1]], fill=self._ink(OUTLINE), width=OUTLINE_WIDTH, joint="curve")

    def polygon(self, points: Sequence[Point], colour: RGB) -> None:
        """Draw a filled polygon with outline."""
        self.fill(points, colour)
        self.outline(points)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: RGB) -> None:
        """Draw a filled ellipse with outline."""
        self.polygon(ellipse_points(x, y, radius_x, radius_y), colour)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: RGB, radius: float = 0.0) -> None:
        """Draw a filled rectangle with outline, its corners rounded by `radius`."""
        self.polygon(rectangle_points(left, top, right, bottom, radius), colour)

    def stroke(self, points: Sequence[Point], colour: RGB, width: float) -> None:
        """Draw a thick outlined line through `points`; width in object units."""
        pixels = self._to_pixels(points)
        inner = round(width * self._placement.half_size)
        outer = inner + 2 * OUTLINE_WIDTH
        self._draw.line(pixels, fill=self._ink(OUTLINE), width=outer, joint="curve")
        self._draw.line(pixels, fill=self._ink(colour), width=inner, joint="curve")

    def eye(self, x: float, y: float, radius: float) -> None:
        """Draw a white eye with a dark pupil that looks ahead."""
        self.ellipse(x, y, radius, radius, (255, 255, 255))
        self.fill(ellipse_points(x + 0.18 * radius, y, 0.5 * radius, 0.55 * radius), OUTLINE)

    def body(
        self,
        points: Sequence[Point],
        colour: RGB,
        pattern: str,
        accent: RGB,
        axis: int = 1,
        num_stripes: int = 2,
        spot_inset: float = 0.0,
    ) -> None:
        """Draw the object's main part: filled, patterned in the accent colour, outlined.

        axis 1 lays stripes across the height (horizontal bands), axis 0 across the width. `spot_inset` draws the spots
        towards the middle (0: at the corners of the bounding box's quincunx, 0.3: well inside an ellipse).
        """
        self.fill(points, colour)
        if pattern == "striped":
            self._stripes(points, accent, axis, num_stripes)
        elif pattern == "spotted":
            self._spots(points, accent, spot_inset)
        self.outline(points)

    def _stripes(self, points: Sequence[Point], colour: RGB, axis: int, num_stripes: int) -> None:
        low = min(point[axis] for point in points)
        width = (max(point[axis] for point in points) - low) / (2 * num_stripes + 1)
        for i in range(num_stripes):
            start = low + (2 * i + 1) * width
            band = clip_to_band(points, axis, start, start + width)
            if len(band) > 2:
                self.fill(band, colour)

    def _spots(self, points: Sequence[Point], colour: RGB, inset: float) -> None:
        left, right = min(x for x, _ in points), max(x for x, _ in points)
        top, bottom = min(y for _, y in points), max(y for _, y in points)
        radius = min(0.125, 0.15 * (right - left), 0.15 * (bottom - top) + 0.02)
        for u, v in SPOTS:
            u, v = u + inset * (0.5 - u), v + inset * (0.5 - v)
            x, y = left + u * (right - left), top + v * (bottom - top)
            self.fill(ellipse_points(x, y, radius, radius), colour)
