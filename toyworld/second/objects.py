"""Car, house, backpack, teapot, cup, flower and rocket, drawn facing right in a box of -1..1, standing on y = 1.

Symmetric ones show which way they face by a darker side or by a part that is off the middle.
"""

from __future__ import annotations

import math

from toyworld.palette import GLASS, LEAF, RGB, TYRE, shade
from toyworld.second.canvas import Canvas, Point, box_points
from toyworld.second.look import Look, Pose, between

GOLD: RGB = (250, 200, 60)


def car(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a car. Accessories: shape (saloon, van, pick-up), hubs (small, big, golden), front (bare, light, bumper)."""
    length = between(0.84, 0.96, look.proportions[0])
    wheel = between(0.22, 0.28, look.proportions[1])
    top = between(0.16, 0.24, look.proportions[2])
    floor = 1.0 - wheel
    _car_cabin(canvas, look, length, top)
    body = [(-length, top), (0.78 * length, top), (length, top + 0.14), (length, floor + 0.06), (-length, floor + 0.06)]
    canvas.flat_body(body, look.colours, look.pattern, axis=0, num_stripes=3)
    _car_front(canvas, look, length, top, floor)
    _car_wheels(canvas, look, (-0.56 * length, 0.54 * length), floor, wheel)


def _car_cabin(canvas: Canvas, look: Look, length: float, top: float) -> None:
    roof, shape = -0.36, look.accessories[0]
    left, right = ((-0.62, 0.5), (-length, 0.62), (-0.12, 0.6))[shape]
    slope = 0.06 if shape == 1 else 0.2
    canvas.part("roof")
    corners = [(left, top + 0.1), (left + 0.7 * slope, roof), (right - slope, roof), (right, top + 0.1)]
    canvas.polygon(corners, look.second)
    canvas.part("window")
    middle = (left + right) / 2
    panes = [(left + 0.2, middle - 0.05), (middle + 0.07, right - 0.22)]
    for start, end in panes[1:] if shape == 2 else panes:
        canvas.rectangle(start, roof + 0.13, end, top - 0.03, GLASS)


def _car_wheels(canvas: Canvas, look: Look, xs: tuple[float, float], y: float, radius: float) -> None:
    canvas.part("wheel")
    hub = (0.66 if look.accessories[1] == 1 else 0.3) * radius
    for x in xs:
        canvas.ellipse(x, y, radius, radius, TYRE)
        if look.accessories[1] == 2:
            canvas.disc(x, y, 0.72 * radius, 0.72 * radius, GOLD)
        canvas.disc(x, y, hub, hub, (214, 216, 222))


def _car_front(canvas: Canvas, look: Look, length: float, top: float, floor: float) -> None:
    if look.accessories[2] == 1:
        canvas.part("window")
        canvas.ellipse(length - 0.08, top + 0.24, 0.15, 0.15, (255, 240, 150))
    elif look.accessories[2] == 2:
        canvas.part("limb")
        canvas.rectangle(length - 0.16, top + 0.3, length + 0.1, floor + 0.14, look.accent)


def house(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a house, its side wall behind.

    Accessories: roof (gable, flat, barn), chimney (none, front, back), window (square, round, wide).
    """
    width = between(0.58, 0.7, look.proportions[0])
    eaves = between(-0.12, 0.04, look.proportions[1])
    door = between(0.15, 0.22, look.proportions[2])
    peak = -0.76
    canvas.part("roof")
    if look.accessories[1]:
        x = (0.62, -0.62)[look.accessories[1] - 1] * width
        canvas.rectangle(x - 0.13, peak - 0.08, x + 0.13, eaves, look.accent)
    canvas.flat_body(box_points(-width, eaves, width, 1.0), look.colours, look.pattern)
    canvas.rectangle(-width, eaves, -width * 0.62, 1.0, shade(look.main, 0.62))
    _house_roof(canvas, look, width, eaves, peak)
    canvas.part("handle")
    canvas.rectangle(0.12 - door, 0.46, 0.12 + door, 1.0, shade(look.second, 0.72))
    _house_window(canvas, look, width * 0.68, eaves + 0.28)


def _house_roof(canvas: Canvas, look: Look, width: float, eaves: float, peak: float) -> None:
    half = width + 0.16
    roofs: tuple[list[Point], ...] = (
        [(-half, eaves), (0.0, peak), (half, eaves)],
        [(-half, eaves), (-width * 0.8, peak + 0.26), (width * 0.8, peak + 0.26), (half, eaves)],
        [(-half, eaves), (-width * 0.85, peak + 0.24), (0, peak), (width * 0.85, peak + 0.24), (half, eaves)],
    )
    canvas.part("roof")
    canvas.polygon(roofs[look.accessories[0]], look.second)


def _house_window(canvas: Canvas, look: Look, x: float, y: float) -> None:
    canvas.part("window")
    glow = (252, 238, 150)
    if look.accessories[2] == 0:
        canvas.rectangle(x - 0.17, y - 0.13, x + 0.13, y + 0.15, glow)
    elif look.accessories[2] == 1:
        canvas.ellipse(x - 0.08, y, 0.17, 0.17, glow)
    else:
        canvas.rectangle(-0.18, y - 0.13, x + 0.1, y + 0.1, glow)


def backpack(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a backpack with a pouch at its back.

    Accessories: pocket (wide, round, two), badge (none, disc, buckles), pouch (low, middle, high).
    """
    width = between(0.48, 0.6, look.proportions[0])
    roundness = between(0.1, 0.34, look.proportions[1])
    top, pouch = -0.72, (0.3, 0.46, 0.66)[look.accessories[2]]
    canvas.part("handle")
    canvas.stroke([(-0.2, top + 0.1), (-0.17, top - 0.16), (0.17, top - 0.16), (0.2, top + 0.1)], look.second, 0.1)
    canvas.part("limb")
    canvas.rectangle(-width - 0.22, 0.94 - pouch, -width + 0.1, 0.94, look.second)
    canvas.flat_body(box_points(-width, top, width, 1.0, roundness), look.colours, look.pattern, num_stripes=3)
    _backpack_pocket(canvas, look, width)
    canvas.part("window")
    if look.accessories[1] == 1:
        canvas.ellipse(0.1, -0.22, 0.2, 0.2, look.accent)
    elif look.accessories[1] == 2:
        for side in (-1, 1):
            canvas.rectangle(side * width * 0.55 - 0.1, -0.26, side * width * 0.55 + 0.1, 0.2, look.accent)


def _backpack_pocket(canvas: Canvas, look: Look, width: float) -> None:
    canvas.part("face")
    if look.accessories[0] == 0:
        canvas.rectangle(-width * 0.76, 0.3, width * 0.76, 0.88, look.second)
        canvas.rectangle(-width * 0.76, 0.3, width * 0.76, 0.48, shade(look.second, 0.72))
    elif look.accessories[0] == 1:
        canvas.ellipse(0.0, 0.54, width * 0.68, 0.36, look.second)
    else:
        for side in (-1, 1):
            x = side * width * 0.44
            canvas.rectangle(x - width * 0.36, 0.34, x + width * 0.36, 0.88, look.second)


def teapot(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a teapot. Accessories: belly (round, square, pear), knob (ball, flat, spike), stand (none, foot, legs)."""
    width = between(0.46, 0.56, look.proportions[0])
    height = between(0.44, 0.52, look.proportions[1])
    loop = between(0.26, 0.34, look.proportions[2])
    y = 0.9 - height
    canvas.part("handle")
    handle = [(-0.8 * width, -0.5), (-width - loop, -0.4), (-width - loop, 0.3), (-0.8 * width, 0.5)]
    canvas.stroke([(u, y + v * height) for u, v in handle], look.second, 0.14)
    canvas.part("limb")
    spout = [(width * 0.7, y + height * 0.5), (width * 0.9, y - 0.02), (width + 0.14, y - height * 0.8)]
    spout += [(width + 0.42, y - height * 0.8), (width + 0.28, y + 0.12), (width * 0.8, y + height * 0.7)]
    canvas.polygon(spout, look.second)
    _teapot_stand(canvas, look, width)
    if look.accessories[0] == 0:
        canvas.round_body(0.0, y, width, height, look.colours, look.pattern, axis=1)
    else:
        shoulder, low, bottom = width if look.accessories[0] == 1 else 0.6 * width, y + 0.6 * height, y + height
        corners = [(-shoulder, y - height), (shoulder, y - height), (width, low), (0.85 * width, bottom)]
        canvas.flat_body([*corners, (-0.85 * width, bottom), (-width, low)], look.colours, look.pattern)
    _teapot_lid(canvas, look, width, y - height)


def _teapot_stand(canvas: Canvas, look: Look, width: float) -> None:
    if look.accessories[2] == 1:
        canvas.rectangle(-width * 0.75, 0.8, width * 0.75, 1.0, look.second)
    elif look.accessories[2] == 2:
        for side in (-1, 1):
            canvas.rectangle(side * width * 0.6 - 0.12, 0.7, side * width * 0.6 + 0.12, 1.0, look.second)


def _teapot_lid(canvas: Canvas, look: Look, width: float, lid: float) -> None:
    canvas.part("roof")
    knob = look.accessories[1]
    if knob == 0:
        canvas.ellipse(0.0, lid - 0.18, 0.16, 0.16, look.accent)
    elif knob == 1:
        canvas.rectangle(-0.26, lid - 0.24, 0.26, lid - 0.04, look.accent)
    else:
        canvas.polygon([(-0.18, lid - 0.04), (0.0, lid - 0.46), (0.18, lid - 0.04)], look.accent)
    canvas.ellipse(0.0, lid + 0.02, width * 0.64, 0.14, look.second)


def cup(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a cup.

    Accessories: shape (straight, narrow foot, tapered), handle (ring, box, big), filling (none, steam, straw).
    """
    width = between(0.44, 0.56, look.proportions[0])
    top = between(-0.34, -0.14, look.proportions[1])
    foot = (1.0, 0.66, 0.82)[look.accessories[0]] * width
    _cup_handle(canvas, look, width, (top + 1.0) / 2 - 0.06)
    canvas.part("limb")
    if look.accessories[2] == 2:
        canvas.stroke([(0.1, top + 0.2), (0.34, top - 0.5)], look.accent, 0.12)
    elif look.accessories[2] == 1:
        for x in (-0.2, 0.14):
            canvas.stroke([(x, top - 0.12), (x + 0.12, top - 0.26), (x, top - 0.4)], (250, 250, 252), 0.07)
    canvas.flat_body([(-width, top), (width, top), (foot, 1.0), (-foot, 1.0)], look.colours, look.pattern)
    canvas.part("roof")
    canvas.ellipse(0.0, top, width, 0.13, look.second)


def _cup_handle(canvas: Canvas, look: Look, width: float, y: float) -> None:
    canvas.part("handle")
    reach, tall = ((0.3, 0.24), (0.28, 0.26), (0.38, 0.36))[look.accessories[1]]
    if look.accessories[1] == 1:
        loop = [(-0.8 * width, -1.0), (-width - reach, -1.0), (-width - reach, 1.0), (-0.7 * width, 1.0)]
        canvas.stroke([(u, y + v * tall) for u, v in loop], look.second, 0.12)
    else:
        loop = [(-0.8, -1.0), (-1.0, -1.0), (-1.6, -0.6), (-1.7, 0.0), (-1.6, 0.6), (-1.0, 1.0), (-0.7, 1.0)]
        canvas.stroke([(-width + (u + 0.8) * reach, y + v * tall) for u, v in loop], look.second, 0.12)


def flower(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a flower turned to one side.

    Accessories: petals (4, 5, 7), pot (none, flared, square), leaves (two, front, back).
    """
    ring = between(0.32, 0.38, look.proportions[0])
    petal = between(0.22, 0.27, look.proportions[1])
    heart = between(0.21, 0.27, look.proportions[2])
    y, lean = -0.38, between(-0.1, 0.1, pose[0])
    canvas.part("limb")
    canvas.stroke([(0.0, y), (lean, 0.3), (0.0, 0.98)], LEAF, 0.12)
    for side in ((-1, 1), (1,), (-1,))[look.accessories[2]]:
        canvas.polygon([(0.0, 0.56), (side * 0.22, 0.22), (side * 0.56, 0.2), (side * 0.34, 0.5)], LEAF)
    canvas.part("handle")
    if look.accessories[1] == 1:
        canvas.polygon([(-0.4, 0.56), (0.4, 0.56), (0.26, 1.0), (-0.26, 1.0)], look.second)
    elif look.accessories[1] == 2:
        canvas.rectangle(-0.38, 0.6, 0.38, 1.0, look.second)
    _petals(canvas, look, ring, petal, y)
    canvas.part("face")
    canvas.ellipse(0.11, y, heart, heart, look.second)


def _petals(canvas: Canvas, look: Look, ring: float, petal: float, y: float) -> None:
    """Draw a ring of petals around (0, y); they are the flower's body, and stripes colour every other one."""
    canvas.part("body")
    number = (4, 5, 7)[look.accessories[0]]
    for i in range(number):
        angle = 2 * math.pi * (i / number + 0.25)
        u, v = ring * math.cos(angle), ring * math.sin(angle)
        striped = look.pattern == "striped" and i % 2 == 1
        canvas.ellipse(u, y + v, petal, petal, look.accent if striped else look.main)
        if look.pattern == "spotted":
            canvas.disc(1.2 * u, y + 1.2 * v, 0.1, 0.1, look.accent)


def rocket(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a rocket, its far side darker.

    Accessories: nose (cone, round, flat), fins (swept, square, small), windows (one, two, wide).
    """
    width = between(0.3, 0.38, look.proportions[0])
    shoulder = between(-0.44, -0.32, look.proportions[1])
    foot = 0.72
    canvas.part("tail")
    flame = between(0.18, 0.28, pose[0])
    canvas.polygon([(-width * 0.7, foot), (0.0, foot + flame), (width * 0.7, foot)], (252, 150, 36))
    _rocket_fins(canvas, look, width, foot)
    canvas.flat_body(box_points(-width, shoulder, width, foot), look.colours, look.pattern, num_stripes=3)
    canvas.rectangle(-width, shoulder, -width * 0.5, foot, shade(look.main, 0.62))
    _rocket_nose(canvas, look, width, shoulder)
    canvas.part("window")
    if look.accessories[2] == 2:
        canvas.rectangle(-width * 0.3, shoulder + 0.12, width * 0.8, shoulder + 0.44, GLASS)
    else:
        canvas.ellipse(0.08, shoulder + 0.28, 0.19, 0.19, GLASS)
    if look.accessories[2] == 1:
        canvas.ellipse(0.08, shoulder + 0.76, 0.17, 0.17, GLASS)


def _rocket_fins(canvas: Canvas, look: Look, width: float, foot: float) -> None:
    fin = between(0.26, 0.36, look.proportions[2])
    canvas.part("limb")
    fins: tuple[list[Point], ...] = (
        [(0.0, -0.5), (fin, -0.06), (fin, 0.24), (0.0, 0.0)],
        [(0.0, -0.36), (fin, -0.36), (fin, 0.1), (0.0, 0.02)],
        [(0.0, -0.28), (fin, 0.18), (0.0, 0.02)],
    )
    for side in (-1, 1):
        canvas.polygon([(side * (0.9 * width + u), foot + v) for u, v in fins[look.accessories[1]]], look.second)


def _rocket_nose(canvas: Canvas, look: Look, width: float, shoulder: float) -> None:
    canvas.part("head")
    noses: tuple[list[Point], ...] = (
        [(-width, shoulder), (0.0, shoulder - 0.54), (width, shoulder)],
        [(width * math.cos(math.pi * i / 8), shoulder - 0.46 * math.sin(math.pi * i / 8)) for i in range(9)],
        [(-width, shoulder), (-width * 0.5, shoulder - 0.34), (width * 0.5, shoulder - 0.34), (width, shoulder)],
    )
    canvas.polygon(noses[look.accessories[0]], look.second)
