"""The ten object classes: one function each, drawn in a box of -1..1 standing on y = 1.

Every function takes a `Look` (colours, pattern, proportions, accessories: the identity) and a pose (the scene's).
Features are bold, some 4 finished pixels at least, because the latents hold one number vector per 8x8 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from toyworld.canvas import Canvas, Point, ellipse_points, rectangle_points
from toyworld.palette import GLASS, LEAF, OUTLINE, RGB, TYRE, shade

NUM_PROPORTIONS = 3  # numbers in 0..1
NUM_ACCESSORIES = 3  # whole numbers in 0..2
Pose = tuple[float, float]  # numbers in 0..1: limbs, tails, fins


@dataclass(frozen=True)
class Look:
    """Hold an object's looks, the same wherever it is: RGB colours, pattern, proportions and accessories."""

    main: RGB
    second: RGB
    accent: RGB
    pattern: str
    proportions: tuple[float, ...]
    accessories: tuple[int, ...]


def _between(low: float, high: float, fraction: float) -> float:
    return low + (high - low) * fraction


def robot(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a robot.

    Accessories: head (square, round, dome), antennas (0 to 2), feet (legs, tracks, wheel).
    """
    width = _between(0.36, 0.52, look.proportions[0])
    head = _between(0.28, 0.36, look.proportions[1])
    reach = _between(0.26, 0.36, look.proportions[2])
    _robot_feet(canvas, look, width)
    for side in (-1, 1):
        lift = _between(-0.3, 0.25, pose[0] if side > 0 else pose[1])
        hand = (side * (width + reach), 0.2 + lift)
        canvas.stroke([(side * width, 0.06), hand], look.second, 0.13)
        canvas.ellipse(*hand, 0.13, 0.13, look.accent)
    canvas.body(rectangle_points(-width, -0.1, width, 0.58, 0.1), look.main, look.pattern, look.accent)
    _robot_head(canvas, look, head)


def _robot_feet(canvas: Canvas, look: Look, width: float) -> None:
    kind = look.accessories[2]
    if kind == 0:
        for side in (-1, 1):
            canvas.rectangle(side * width * 0.55 - 0.1, 0.5, side * width * 0.55 + 0.1, 0.9, look.second)
            canvas.rectangle(side * width * 0.55 - 0.2, 0.8, side * width * 0.55 + 0.2, 1.0, TYRE, 0.06)
    elif kind == 1:
        canvas.rectangle(-width - 0.08, 0.58, width + 0.08, 1.0, TYRE, 0.2)
        for x in (-0.62 * width, 0.62 * width):
            canvas.ellipse(x, 0.79, 0.13, 0.13, look.accent)
    else:
        canvas.rectangle(-0.12, 0.5, 0.12, 0.75, look.second)
        canvas.ellipse(0.0, 0.77, 0.23, 0.23, TYRE)
        canvas.ellipse(0.0, 0.77, 0.1, 0.1, look.accent)


def _robot_head(canvas: Canvas, look: Look, size: float) -> None:
    bottom = -0.12
    middle = bottom - size
    num_antennas = look.accessories[1]
    for x in ((), (0.0,), (-0.2, 0.2))[num_antennas]:
        canvas.stroke([(x * 0.8, middle), (x * 1.3, bottom - 2 * size - 0.12)], TYRE, 0.04)
        canvas.ellipse(x * 1.3, bottom - 2 * size - 0.14, 0.1, 0.1, look.accent)
    kind = look.accessories[0]
    if kind == 0:
        canvas.rectangle(-size * 1.15, bottom - 2 * size, size * 1.15, bottom, look.second, 0.05)
    elif kind == 1:
        canvas.ellipse(0.0, middle, size * 1.15, size, look.second)
    else:
        top = [(size * 1.2 * math.cos(a), bottom - 2 * size * math.sin(a)) for a in _half_turn(12)]
        canvas.polygon(top, look.second)
    if look.proportions[2] > 0.5:
        canvas.eye(0.0, middle + 0.02, 0.19)
    else:
        for side in (-1, 1):
            canvas.eye(side * size * 0.52, middle + 0.04, 0.13)


def _half_turn(num_steps: int) -> list[float]:
    return [math.pi * i / num_steps for i in range(num_steps + 1)]


def dog(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a dog from the side.

    Accessories: ears (hanging, pointed, round), neck (bare, collar, scarf), tail.
    """
    length = _between(0.5, 0.62, look.proportions[0])
    leg = _between(0.26, 0.4, look.proportions[1])
    head = _between(0.29, 0.36, look.proportions[2])
    belly = 1.0 - leg
    top = belly - 0.5
    _dog_tail(canvas, look, pose, (-length - 0.04, top + 0.16))
    for x in (-length + 0.06, -length + 0.34, 0.14, 0.42):
        canvas.rectangle(x - 0.1, belly - 0.14, x + 0.1, 1.0, look.main, 0.04)
    canvas.body(
        rectangle_points(-length - 0.1, top, 0.54, belly, 0.2),
        look.main, look.pattern, look.accent, axis=0,
    )  # fmt: skip
    x, y = 0.5, top - 0.1
    if look.accessories[1]:
        neck = [(x - 0.34, y + 0.2), (x + 0.08, y + 0.36)]
        canvas.stroke(neck, look.accent, 0.12)
        if look.accessories[1] == 2:
            canvas.polygon([(x - 0.2, y + 0.26), (x + 0.12, y + 0.34), (x - 0.1, y + 0.68)], look.accent)
    canvas.ellipse(x, y, head, head, look.main)
    canvas.ellipse(x + head * 0.85, y + head * 0.35, 0.2, 0.16, look.second)
    canvas.fill(ellipse_points(x + head * 0.85 + 0.14, y + head * 0.2, 0.09, 0.08), OUTLINE)
    canvas.eye(x + 0.1, y - 0.1, 0.12)
    _dog_ear(canvas, look, x, y, head)


def _dog_tail(canvas: Canvas, look: Look, pose: Pose, root: Point) -> None:
    lift = _between(-0.12, 0.12, pose[0])
    if look.accessories[2] == 0:
        canvas.stroke([root, (root[0] - 0.24, root[1] - 0.4 + lift)], look.main, 0.12)
    elif look.accessories[2] == 1:
        canvas.ellipse(root[0] - 0.1, root[1] - 0.12 + lift, 0.16, 0.16, look.second)
    else:
        bend = (root[0] - 0.24, root[1] - 0.08)
        canvas.stroke([root, bend, (root[0] - 0.16, root[1] - 0.44 + lift)], look.second, 0.14)


def _dog_ear(canvas: Canvas, look: Look, x: float, y: float, head: float) -> None:
    kind = look.accessories[0]
    if kind == 0:
        canvas.ellipse(x - head * 0.8, y + 0.08, 0.15, 0.33, look.second)
    elif kind == 1:
        canvas.polygon(
            [(x - head, y - 0.02), (x - head * 0.7, y - head - 0.34), (x + 0.02, y - head * 0.8)], look.second
        )
    else:
        canvas.ellipse(x - head * 0.62, y - head * 0.86, 0.2, 0.2, look.second)


def cat(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a sitting cat from the front.

    Accessories: ears (wide, narrow, tufted), neck (none, collar, bow), tail side.
    """
    width = _between(0.38, 0.5, look.proportions[0])
    head = _between(0.38, 0.46, look.proportions[1])
    ear = _between(0.24, 0.38, look.proportions[2])
    reach = width + 0.34
    tip = 0.1 + _between(-0.12, 0.12, pose[0])
    canvas.stroke([(width * 0.5, 0.88), (reach, 0.84), (reach + 0.06, tip)], look.second, 0.15)
    canvas.body(ellipse_points(0.0, 0.5, width, 0.5), look.main, look.pattern, look.accent, spot_inset=0.25)
    for side in (-1, 1):
        canvas.ellipse(side * width * 0.5, 0.92, 0.17, 0.1, look.second)
    y = -0.3
    spread = (0.95, 0.8, 0.95)[look.accessories[0]]
    for side in (-1, 1):
        ear_colour = look.second if look.accessories[0] == 2 else look.main
        outer, inner = side * head * spread, side * head * 0.16
        canvas.polygon([(outer, y - 0.06), (side * head * 0.9, y - head - ear), (inner, y - head * 0.82)], ear_colour)
    canvas.ellipse(0.0, y, head, head * 0.86, look.main)
    _cat_face(canvas, look, y, head)


def _cat_face(canvas: Canvas, look: Look, y: float, head: float) -> None:
    for side in (-1, 1):
        canvas.eye(side * head * 0.45, y - 0.04, 0.135)
    canvas.ellipse(0.0, y + 0.2, 0.14, 0.1, look.second)
    if look.accessories[1] == 1:
        canvas.stroke([(-0.3, y + head * 0.92), (0.3, y + head * 0.92)], look.accent, 0.12)
    elif look.accessories[1] == 2:
        for side in (-1, 1):
            canvas.polygon([(0.0, y + 0.44), (side * 0.28, y + 0.3), (side * 0.28, y + 0.58)], look.accent)


def car(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a car from the side.

    Accessories: shape (saloon, van, pick-up), roof (bare, light, luggage), hubs.
    """
    length = _between(0.82, 0.96, look.proportions[0])
    wheel = _between(0.2, 0.26, look.proportions[1])
    top = _between(0.1, 0.22, look.proportions[2])
    floor = 1.0 - wheel
    shape = look.accessories[0]
    left, right, roof = ((-0.6, 0.5, top - 0.46), (-length, length * 0.7, top - 0.52), (-0.1, 0.55, top - 0.46))[shape]
    _car_roof(canvas, look, (left + right) / 2, roof)
    slope = 0.04 if shape == 1 else 0.18
    canvas.polygon([(left, top + 0.1), (left + slope, roof), (right - slope, roof), (right, top + 0.1)], look.second)
    windows = ((left + 0.2, -0.09), (0.03, right - 0.2)) if shape != 2 else ((left + 0.17, right - 0.17),)
    for start, end in windows:
        canvas.rectangle(start, roof + 0.11, end, top - 0.02, GLASS)
    body = [(-length, top), (length * 0.8, top), (length, top + 0.12), (length, floor + 0.05), (-length, floor + 0.05)]
    canvas.body(body, look.main, look.pattern, look.accent, axis=0, num_stripes=3)
    canvas.ellipse(length - 0.06, top + 0.22, 0.09, 0.09, (255, 240, 150))
    hub = look.accent if look.accessories[2] else (214, 216, 222)
    for x in (-length * 0.55, length * 0.55):
        canvas.ellipse(x, floor, wheel, wheel, TYRE)
        canvas.ellipse(x, floor, wheel * 0.5, wheel * 0.5, hub)


def _car_roof(canvas: Canvas, look: Look, x: float, roof: float) -> None:
    if look.accessories[1] == 1:
        canvas.rectangle(x - 0.12, roof - 0.16, x + 0.12, roof + 0.02, look.accent, 0.05)
    elif look.accessories[1] == 2:
        canvas.rectangle(x - 0.28, roof - 0.22, x + 0.28, roof - 0.02, look.accent)


def house(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a house.

    Accessories: roof (gable, hip, barn), chimney (none, left, right), windows (square, round, one wide).
    """
    width = _between(0.56, 0.72, look.proportions[0])
    eaves = _between(-0.16, 0.06, look.proportions[1])
    rise = _between(0.5, 0.7, look.proportions[2])
    if look.accessories[1]:
        side = (-1, 1)[look.accessories[1] - 1]
        canvas.rectangle(side * width * 0.6 - 0.13, eaves - rise - 0.06, side * width * 0.6 + 0.13, eaves, look.accent)
    wall = rectangle_points(-width, eaves, width, 1.0)
    canvas.body(wall, look.main, look.pattern, look.accent)
    half, peak = width + 0.16, eaves - rise
    roofs: tuple[list[Point], ...] = (
        [(-half, eaves), (0.0, peak), (half, eaves)],
        [(-half, eaves), (-width * 0.55, peak + 0.1), (width * 0.55, peak + 0.1), (half, eaves)],
        [
            (-half, eaves),
            (-width * 0.8, eaves - rise * 0.6),
            (0, peak),
            (width * 0.8, eaves - rise * 0.6),
            (half, eaves),
        ],
    )
    canvas.polygon(roofs[look.accessories[0]], look.second)
    canvas.rectangle(-0.16, 0.46, 0.16, 1.0, shade(look.second, 0.75))
    _house_windows(canvas, look, width, eaves)


def _house_windows(canvas: Canvas, look: Look, width: float, eaves: float) -> None:
    glow = (252, 238, 150)
    y = eaves + 0.36
    kind = look.accessories[2]
    if kind == 2:
        canvas.rectangle(-width * 0.6, y - 0.2, width * 0.6, y + 0.06, glow)
        return
    for side in (-1, 1):
        x = side * width * 0.6
        if kind == 0:
            canvas.rectangle(x - 0.15, y - 0.12, x + 0.15, y + 0.18, glow)
        else:
            canvas.ellipse(x, y, 0.17, 0.17, glow)


def backpack(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a backpack.

    Accessories: pocket (wide, round, two small), badge (none, disc, buckles), side pouches (none, small, big).
    """
    width = _between(0.46, 0.6, look.proportions[0])
    top = _between(-0.82, -0.62, look.proportions[1])
    roundness = _between(0.16, 0.4, look.proportions[2])
    canvas.stroke([(-0.2, top + 0.1), (-0.16, top - 0.16), (0.16, top - 0.16), (0.2, top + 0.1)], look.second, 0.1)
    if look.accessories[2]:
        height = (0.0, 0.4, 0.62)[look.accessories[2]]
        for side in (-1, 1):
            x = side * (width + 0.06)
            canvas.rectangle(x - 0.14, 0.9 - height, x + 0.14, 0.92, look.second, 0.1)
    body = rectangle_points(-width, top, width, 1.0, roundness)
    canvas.body(body, look.main, look.pattern, look.accent, num_stripes=3, spot_inset=0.05)
    _backpack_pocket(canvas, look, width)
    if look.accessories[1] == 1:
        canvas.ellipse(0.0, top + 0.42, 0.16, 0.16, look.accent)
    elif look.accessories[1] == 2:
        for side in (-1, 1):
            canvas.rectangle(side * width * 0.55 - 0.08, -0.2, side * width * 0.55 + 0.08, 0.24, look.accent)


def _backpack_pocket(canvas: Canvas, look: Look, width: float) -> None:
    kind = look.accessories[0]
    if kind == 0:
        canvas.rectangle(-width * 0.76, 0.26, width * 0.76, 0.88, look.second, 0.1)
        canvas.rectangle(-width * 0.76, 0.26, width * 0.76, 0.46, shade(look.second, 0.75), 0.08)
    elif kind == 1:
        canvas.ellipse(0.0, 0.52, width * 0.66, 0.36, look.second)
    else:
        for side in (-1, 1):
            x = side * width * 0.44
            canvas.rectangle(x - width * 0.36, 0.3, x + width * 0.36, 0.88, look.second, 0.06)


def teapot(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a teapot.

    Accessories: belly (round, square, pear), knob (ball, flat, spike), stand (none, foot, legs).
    """
    width = _between(0.46, 0.58, look.proportions[0])
    height = _between(0.42, 0.54, look.proportions[1])
    loop = _between(0.26, 0.36, look.proportions[2])
    y = 0.9 - height
    handle = [(-width * 0.8, y - height * 0.5), (-width - loop, y - height * 0.4),
              (-width - loop, y + height * 0.3), (-width * 0.8, y + height * 0.5)]  # fmt: skip
    canvas.stroke(handle, look.second, 0.13)
    spout = [(width * 0.7, y + height * 0.5), (width * 0.9, y - 0.02), (width + 0.16, y - height * 0.8),
             (width + 0.42, y - height * 0.8), (width + 0.28, y + 0.12), (width * 0.8, y + height * 0.7)]  # fmt: skip
    canvas.polygon(spout, look.second)
    _teapot_stand(canvas, look, width)
    bellies: tuple[list[Point], ...] = (
        ellipse_points(0.0, y, width, height),
        rectangle_points(-width, y - height, width, y + height, 0.16),
        [(-width * 0.6, y - height), (width * 0.6, y - height), (width * 1.05, y + height * 0.6),
         (width * 0.8, y + height), (-width * 0.8, y + height), (-width * 1.05, y + height * 0.6)],
    )  # fmt: skip
    inset = (0.28, 0.0, 0.2)[look.accessories[0]]
    canvas.body(bellies[look.accessories[0]], look.main, look.pattern, look.accent, spot_inset=inset)
    lid = y - height
    canvas.ellipse(0.0, lid + 0.02, width * 0.6, 0.13, look.second)
    setting = look.accessories[1]
    if setting == 0:
        canvas.ellipse(0.0, lid - 0.2, 0.14, 0.14, look.accent)
    elif setting == 1:
        canvas.rectangle(-0.2, lid - 0.24, 0.2, lid - 0.08, look.accent)
    else:
        canvas.polygon([(-0.15, lid - 0.08), (0.0, lid - 0.42), (0.15, lid - 0.08)], look.accent)


def _teapot_stand(canvas: Canvas, look: Look, width: float) -> None:
    if look.accessories[2] == 1:
        canvas.rectangle(-width * 0.6, 0.8, width * 0.6, 1.0, look.second, 0.04)
    elif look.accessories[2] == 2:
        for side in (-1, 1):
            canvas.rectangle(side * width * 0.6 - 0.1, 0.7, side * width * 0.6 + 0.1, 1.0, look.accent)


def fish(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a fish from the side.

    Accessories: tail (fork, fan, square), fin (low, tall, spiky), lower fin (none, one, two).
    """
    length = _between(0.56, 0.7, look.proportions[0])
    height = _between(0.38, 0.52, look.proportions[1])
    tail = _between(0.28, 0.38, look.proportions[2])
    y, back = 0.3, -length * 0.8
    swing = _between(-0.1, 0.1, pose[0])
    tails: tuple[list[Point], ...] = (
        [(back, y), (back - tail, y - tail + swing), (back - tail * 0.6, y + swing), (back - tail, y + tail + swing)],
        [(back, y), (back - tail * 0.8, y - tail + swing), (back - tail * 1.2, y + swing),
         (back - tail * 0.8, y + tail + swing)],
        [(back, y - 0.1), (back - tail, y - 0.26 + swing), (back - tail, y + 0.26 + swing), (back, y + 0.1)],
    )  # fmt: skip
    canvas.polygon(tails[look.accessories[0]], look.second)
    _fish_fins(canvas, look, y, height, length)
    canvas.body(
        ellipse_points(0.0, y, length, height), look.main, look.pattern, look.accent, axis=0, num_stripes=2,
        spot_inset=0.28,
    )  # fmt: skip
    canvas.eye(length * 0.58, y - height * 0.18, 0.15)


def _fish_fins(canvas: Canvas, look: Look, y: float, height: float, length: float) -> None:
    top = y - height
    fins: tuple[list[Point], ...] = (
        [(-length * 0.5, top + 0.16), (-0.2, top - 0.14), (length * 0.3, top - 0.1), (length * 0.45, top + 0.12)],
        [(-length * 0.4, top + 0.16), (-length * 0.3, top - 0.36), (length * 0.35, top + 0.1)],
        [(-length * 0.5, top + 0.2), (-length * 0.5, top - 0.2), (-0.12, top), (-0.02, top - 0.26), (0.16, top),
         (0.3, top - 0.16), (length * 0.5, top + 0.14)],
    )  # fmt: skip
    canvas.polygon(fins[look.accessories[1]], look.second)
    bottom = y + height
    for x in ((), (0.0,), (-0.26, 0.22))[look.accessories[2]]:
        canvas.polygon([(x - 0.14, bottom - 0.1), (x - 0.2, bottom + 0.2), (x + 0.14, bottom - 0.1)], look.accent)


def flower(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a flower; its petals are the body, and stripes colour every other one.

    Accessories: petals (5, 6, 8), pot, leaves.
    """
    ring = _between(0.3, 0.38, look.proportions[0])
    petal = _between(0.2, 0.25, look.proportions[1])
    heart = _between(0.18, 0.24, look.proportions[2])
    num_petals = (5, 6, 8)[look.accessories[0]]
    y, lean = -0.36, _between(-0.08, 0.08, pose[0])
    canvas.stroke([(0.0, y), (lean, 0.3), (0.0, 1.0)], LEAF, 0.12)
    for side in ((-1, 1), (1,), (-1,))[look.accessories[2]]:
        canvas.polygon([(0.0, 0.56), (side * 0.22, 0.24), (side * 0.54, 0.22), (side * 0.34, 0.5)], LEAF)
    if look.accessories[1] == 1:
        canvas.polygon([(-0.36, 0.58), (0.36, 0.58), (0.24, 1.0), (-0.24, 1.0)], look.second)
    elif look.accessories[1] == 2:
        canvas.rectangle(-0.34, 0.62, 0.34, 1.0, look.second)
    for i in range(num_petals):
        angle = 2 * math.pi * (i / num_petals + 0.25)
        x, petal_y = ring * math.cos(angle), y + ring * math.sin(angle)
        striped = look.pattern == "striped" and i % 2 == 1
        canvas.ellipse(x, petal_y, petal, petal, look.accent if striped else look.main)
        if look.pattern == "spotted":
            canvas.fill(ellipse_points(x * 1.18, y + (petal_y - y) * 1.18, 0.09, 0.09), look.accent)
    canvas.ellipse(0.0, y, heart, heart, look.second)


def rocket(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a rocket.

    Accessories: nose (cone, round, needle), fins (swept, square, small), window (one, two, wide).
    """
    width = _between(0.28, 0.38, look.proportions[0])
    shoulder = _between(-0.42, -0.28, look.proportions[1])
    fin = _between(0.24, 0.36, look.proportions[2])
    foot = 0.72
    flame = _between(0.16, 0.28, pose[0])
    canvas.polygon([(-width * 0.7, foot), (0.0, foot + flame + 0.06), (width * 0.7, foot)], (252, 150, 36))
    _rocket_fins(canvas, look, width, fin, foot)
    body = rectangle_points(-width, shoulder, width, foot)
    canvas.body(body, look.main, look.pattern, look.accent, num_stripes=3)
    noses: tuple[list[Point], ...] = (
        [(-width, shoulder), (0.0, shoulder - 0.56), (width, shoulder)],
        [(width * math.cos(a), shoulder - 0.46 * math.sin(a)) for a in _half_turn(12)],
        [(-width, shoulder), (-width * 0.3, shoulder - 0.3), (0.0, shoulder - 0.64), (width * 0.3, shoulder - 0.3),
         (width, shoulder)],
    )  # fmt: skip
    canvas.polygon(noses[look.accessories[0]], look.second)
    window = look.accessories[2]
    if window == 2:
        canvas.rectangle(-width * 0.7, shoulder + 0.14, width * 0.7, shoulder + 0.42, GLASS, 0.08)
    else:
        canvas.ellipse(0.0, shoulder + 0.26, 0.17, 0.17, GLASS)
    if window == 1:
        canvas.ellipse(0.0, shoulder + 0.72, 0.15, 0.15, GLASS)


def _rocket_fins(canvas: Canvas, look: Look, width: float, fin: float, foot: float) -> None:
    kind = look.accessories[1]
    for side in (-1, 1):
        root, tip = side * width * 0.9, side * (width + fin)
        fins: tuple[list[Point], ...] = (
            [(root, foot - 0.5), (tip, foot - 0.06), (tip, foot + 0.24), (root, foot)],
            [(root, foot - 0.36), (tip, foot - 0.36), (tip, foot + 0.1), (root, foot + 0.02)],
            [(root, foot - 0.26), (tip, foot + 0.18), (root, foot + 0.02)],
        )
        canvas.polygon(fins[kind], look.second)


DRAW: dict[str, Callable[[Canvas, Look, Pose], None]] = {
    "robot": robot,
    "dog": dog,
    "cat": cat,
    "car": car,
    "house": house,
    "backpack": backpack,
    "teapot": teapot,
    "fish": fish,
    "flower": flower,
    "rocket": rocket,
}
CLASSES = tuple(DRAW)
