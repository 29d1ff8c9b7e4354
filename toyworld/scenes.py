"""The nine places: one function each, drawn at three times the final size.

A place has three fixed layouts instead of endless random ones, and three heights of the horizon. A tiny model learns
those early and then spends its capacity on the objects; few layouts also make "is this the beach?" easy to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from PIL import Image, ImageDraw

from toyworld.canvas import DRAWN_SIZE
from toyworld.palette import RGB, mix

NUM_LAYOUTS = 3
HORIZONS = (0.54, 0.58, 0.62)  # fraction of the image's height, from the top

PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "at the beach"),
    "grass": ("on the grass", "in a meadow"),
    "snow": ("in the snow", "on the snow"),
    "night": ("at night", "under the night sky"),
    "desert": ("in the desert", "on desert sand"),
    "moon": ("on the moon", "on the surface of the moon"),
    "city": ("in the city", "on a city street"),
    "forest": ("in the forest", "in a forest"),
    "studio": ("in a studio", "on a plain background"),
}
PLACES = tuple(PHRASES)


class _Backdrop:
    """Hold an image under construction with its horizon; x and y are fractions of its size."""

    def __init__(self, horizon: float) -> None:
        self.image = Image.new("RGB", (DRAWN_SIZE, DRAWN_SIZE))
        self.horizon = horizon
        self._draw = ImageDraw.Draw(self.image)

    def band(self, top: float, bottom: float, colour: RGB) -> None:
        self.box(0.0, top, 1.0, bottom, colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: RGB) -> None:
        corners = tuple(round(DRAWN_SIZE * edge) for edge in (left, top, right, bottom))
        self._draw.rectangle(corners, fill=colour)

    def disc(self, x: float, y: float, radius_x: float, radius_y: float, colour: RGB) -> None:
        edges = (x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        self._draw.ellipse([DRAWN_SIZE * edge for edge in edges], fill=colour)

    def triangle(self, x: float, top: float, bottom: float, half_width: float, colour: RGB) -> None:
        corners = ((x, top), (x - half_width, bottom), (x + half_width, bottom))
        self._draw.polygon([(DRAWN_SIZE * a, DRAWN_SIZE * b) for a, b in corners], fill=colour)

    def sky(self, top: RGB, bottom: RGB) -> None:
        for i in range(4):
            self.band(self.horizon * i / 4, self.horizon * (i + 1) / 4, mix(top, bottom, i / 3))

    def ground(self, colour: RGB) -> None:
        self.band(self.horizon, 1.0, colour)

    def stars(self, points: tuple[tuple[float, float], ...]) -> None:
        for x, y in points:
            self.disc(x, y, 0.016, 0.016, (255, 250, 214))


_STARS = (
    ((0.12, 0.1), (0.3, 0.22), (0.5, 0.08), (0.68, 0.26), (0.16, 0.38), (0.92, 0.4)),
    ((0.08, 0.24), (0.34, 0.1), (0.6, 0.14), (0.9, 0.18), (0.8, 0.4), (0.22, 0.44)),
    ((0.2, 0.08), (0.44, 0.18), (0.74, 0.08), (0.9, 0.28), (0.08, 0.34), (0.6, 0.36)),
)


def _beach(drop: _Backdrop, layout: int) -> None:
    drop.sky((120, 198, 248), (196, 234, 252))
    if layout < 2:
        drop.disc((0.14, 0.86)[layout], 0.14, 0.09, 0.09, (255, 228, 90))
    shore = drop.horizon + 0.14
    drop.band(drop.horizon, shore, (34, 128, 200))
    drop.band(shore, shore + 0.03, (240, 248, 250))
    drop.band(shore + 0.03, 1.0, (242, 218, 156))


def _grass(drop: _Backdrop, layout: int) -> None:
    drop.sky((126, 196, 250), (206, 238, 254))
    for x, y in (((0.2, 0.16), (0.8, 0.1)), ((0.12, 0.1), (0.7, 0.18)), ((0.3, 0.1), (0.88, 0.2)))[layout]:
        drop.disc(x, y, 0.13, 0.05, (255, 255, 255))
        drop.disc(x + 0.06, y - 0.04, 0.07, 0.06, (255, 255, 255))
    drop.ground((104, 190, 72))


def _snow(drop: _Backdrop, layout: int) -> None:
    drop.sky((164, 184, 210), (206, 218, 232))
    drop.disc((0.2, 0.8, 0.5)[layout], drop.horizon + 0.06, 0.5, 0.12, (236, 242, 250))
    drop.ground((242, 247, 252))
    for i in range(9):
        drop.disc((0.1 + 0.37 * i + 0.2 * layout) % 1.0, (0.06 + 0.13 * i) % drop.horizon, 0.02, 0.02, (255, 255, 255))


def _night(drop: _Backdrop, layout: int) -> None:
    drop.sky((16, 18, 58), (44, 48, 110))
    drop.stars(_STARS[layout])
    x = (0.84, 0.16, 0.5)[layout]
    drop.disc(x, 0.14, 0.09, 0.09, (250, 240, 180))
    drop.disc(x + 0.05, 0.11, 0.07, 0.07, (18, 20, 62))
    drop.ground((30, 60, 58))


def _desert(drop: _Backdrop, layout: int) -> None:
    drop.sky((252, 176, 100), (254, 224, 164))
    drop.disc((0.2, 0.8, 0.5)[layout], drop.horizon + 0.1, 0.5, 0.2, (238, 178, 104))
    drop.ground((224, 156, 82))
    if layout < 2:
        x, green = (0.1, 0.9)[layout], (56, 130, 68)
        drop.box(x - 0.03, drop.horizon - 0.26, x + 0.03, drop.horizon + 0.1, green)
        drop.box(x - 0.09, drop.horizon - 0.08, x + 0.09, drop.horizon - 0.03, green)
        drop.box(x - 0.09, drop.horizon - 0.17, x - 0.05, drop.horizon - 0.03, green)
        drop.box(x + 0.05, drop.horizon - 0.2, x + 0.09, drop.horizon - 0.03, green)


def _moon(drop: _Backdrop, layout: int) -> None:
    drop.band(0.0, drop.horizon, (8, 8, 14))
    drop.stars(_STARS[layout])
    x = (0.16, 0.84, 0.5)[layout]
    drop.disc(x, 0.16, 0.12, 0.12, (50, 116, 212))
    drop.disc(x - 0.03, 0.14, 0.05, 0.04, (84, 176, 90))
    drop.ground((170, 170, 176))
    for crater_x, crater_y in ((0.12, 0.74), (0.88, 0.7), (0.3, 0.94), (0.78, 0.92)):
        drop.disc(crater_x, crater_y, 0.08, 0.03, (132, 132, 140))


def _city(drop: _Backdrop, layout: int) -> None:
    drop.sky((168, 192, 218), (214, 222, 232))
    tones = ((96, 104, 126), (126, 114, 116), (78, 92, 108))
    heights = ((0.42, 0.3, 0.46, 0.26, 0.4), (0.28, 0.44, 0.3, 0.4, 0.34), (0.46, 0.26, 0.34, 0.46, 0.28))[layout]
    for i, height in enumerate(heights):
        left = 0.2 * i
        drop.box(left, drop.horizon - height, left + 0.185, drop.horizon, tones[(i + layout) % 3])
        for row in range(int(height / 0.13)):
            y = drop.horizon - height + 0.05 + 0.13 * row
            for x in (left + 0.03, left + 0.11):
                drop.box(x, y, x + 0.05, y + 0.06, (250, 226, 130))
    drop.ground((100, 102, 110))
    for x in (0.02, 0.38, 0.74):
        drop.box(x, 0.82, x + 0.2, 0.855, (240, 236, 210))


def _forest(drop: _Backdrop, layout: int) -> None:
    drop.sky((148, 204, 192), (194, 226, 200))
    drop.ground((92, 132, 62))
    trees = ((0.08, 0.3, 0.62, 0.92), (0.02, 0.24, 0.76, 0.96), (0.14, 0.42, 0.68, 0.9))[layout]
    for i, x in enumerate(trees):
        top = drop.horizon - (0.5, 0.42)[(i + layout) % 2]
        drop.box(x - 0.025, drop.horizon - 0.06, x + 0.025, drop.horizon + 0.06, (98, 66, 40))
        drop.triangle(x, top, drop.horizon - 0.02, 0.13, (30, 102, 56))


def _studio(drop: _Backdrop, layout: int) -> None:
    wall = ((238, 228, 214), (212, 226, 240), (240, 220, 228))[layout]
    drop.band(0.0, 1.0, wall)
    drop.band(drop.horizon + 0.1, 1.0, mix(wall, (90, 90, 100), 0.16))


DRAW: dict[str, Callable[[_Backdrop, int], None]] = {
    "beach": _beach,
    "grass": _grass,
    "snow": _snow,
    "night": _night,
    "desert": _desert,
    "moon": _moon,
    "city": _city,
    "forest": _forest,
    "studio": _studio,
}


@lru_cache(maxsize=len(PLACES) * NUM_LAYOUTS * len(HORIZONS))
def backdrop(place: str, layout: int, horizon: float) -> Image.Image:
    """Return the empty scene at drawn size. Cached and shared: copy before drawing on it."""
    drop = _Backdrop(horizon)
    DRAW[place](drop, layout)
    return drop.image
