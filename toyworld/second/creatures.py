"""Robot, dog, cat and fish, drawn facing right in a box of -1..1, standing on y = 1.

Creatures have big heads: head shape, number of eyes, ears and what a creature wears are some 3 finished pixels even
where three things share an image.
"""

from __future__ import annotations

from toyworld.palette import OUTLINE, RGB, TYRE
from toyworld.second.canvas import Canvas, Point, box_points
from toyworld.second.look import Look, Pose, between


def _head(canvas: Canvas, look: Look, x: float, y: float, size: float, colour: RGB) -> None:
    """Draw a head of that half height with its eyes."""
    canvas.part("head")
    if look.head == "round":
        canvas.ellipse(x, y, 1.08 * size, size, colour)
    elif look.head == "square":
        canvas.rectangle(x - 1.02 * size, y - 0.92 * size, x + 1.02 * size, y + size, colour)
    else:
        canvas.polygon([(x - 1.3 * size, y + size), (x, y - 1.3 * size), (x + 1.3 * size, y + size)], colour)
    _eyes(canvas, look.num_eyes, x + 0.12 * size, y + (0.3 if look.head == "pointed" else -0.05) * size, size)


def _eyes(canvas: Canvas, number: int, x: float, y: float, size: float) -> None:
    """Draw one, two or three eyes around (x, y), for a head of that half height."""
    if number == 1:
        canvas.eye(x, y, 0.46 * size)
        return
    if number == 3:
        canvas.eye(x, y - 0.36 * size, 0.32 * size)
    for side in (-1, 1):
        canvas.eye(x + side * 0.42 * size, y + (0.2 * size if number == 3 else 0.0), 0.36 * size)


def _headgear(canvas: Canvas, look: Look, x: float, y: float, size: float) -> None:
    """Draw a hat or crown whose lower edge is at y, for a head of that half height."""
    canvas.part("worn")
    if look.worn == "hat":
        canvas.rectangle(x - 0.55 * size, y - 0.75 * size, x + 0.55 * size, y, look.worn_colour)
        canvas.rectangle(x - 1.05 * size, y - 0.16 * size, x + 1.05 * size, y + 0.12 * size, look.worn_colour)
    elif look.worn == "crown":
        wide, low, high = 0.8 * size, y + 0.12 * size, y - 0.7 * size
        dent = y - 0.2 * size
        points = [(-wide, low), (-wide, high), (-0.45 * wide, dent), (0.0, high), (0.45 * wide, dent), (wide, high)]
        canvas.polygon([(x + u, v) for u, v in [*points, (wide, low)]], look.worn_colour)


def _neckwear(canvas: Canvas, look: Look, x: float, y: float, size: float) -> None:
    """Draw a scarf or bow at a neck at (x, y), for a head of that half height."""
    canvas.part("worn")
    if look.worn == "scarf":
        canvas.rectangle(x - 0.62 * size, y, x - 0.2 * size, y + 0.95 * size, look.worn_colour)
        canvas.rectangle(x - 0.95 * size, y - 0.14 * size, x + 0.95 * size, y + 0.24 * size, look.worn_colour)
    elif look.worn == "bow":
        for end in (x - 0.8 * size, x + 0.8 * size):
            canvas.polygon([(x, y + 0.1 * size), (end, y - 0.3 * size), (end, y + 0.5 * size)], look.worn_colour)


def _top_of_head(look: Look, y: float, size: float) -> float:
    return y - {"round": 0.86, "square": 0.9, "pointed": 0.85}[look.head] * size


def robot(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a robot.

    Accessories: ears (none, bolts, antennas), feet (legs, tracks, wheel), hands (balls, boxes, big balls).
    """
    width = between(0.34, 0.46, look.proportions[0])
    size = between(0.37, 0.42, look.proportions[1])
    _robot_feet(canvas, look, width)
    _robot_arms(canvas, look, pose, width)
    canvas.flat_body(box_points(-width, 0.1, width, 0.7), look.colours, look.pattern)
    y = 0.1 - size
    _robot_ears(canvas, look, y, size)
    _head(canvas, look, 0.0, y, size, look.second)
    _neckwear(canvas, look, 0.0, 0.14, size)
    _headgear(canvas, look, 0.0, _top_of_head(look, y, size), size)


def _robot_arms(canvas: Canvas, look: Look, pose: Pose, width: float) -> None:
    canvas.part("limb")
    reach = between(0.26, 0.34, look.proportions[2])
    hand = (0.12, 0.13, 0.17)[look.accessories[2]]
    for side, raised in zip((-1, 1), pose, strict=True):
        x, y = side * (width + reach), 0.42 + between(-0.3, 0.3, raised)
        canvas.stroke([(side * width, 0.26), (x, y)], look.second, 0.12)
        if look.accessories[2] == 1:
            canvas.rectangle(x - hand, y - hand, x + hand, y + hand, look.second)
        else:
            canvas.ellipse(x, y, hand, hand, look.second)


def _robot_feet(canvas: Canvas, look: Look, width: float) -> None:
    kind = look.accessories[1]
    if kind == 0:
        canvas.part("limb")
        for side in (-1, 1):
            x = side * 0.58 * width
            canvas.rectangle(x - 0.13, 0.66, x + 0.17, 1.0, look.second)
    elif kind == 1:
        canvas.part("wheel")
        canvas.polygon(box_points(-width - 0.1, 0.66, width + 0.1, 1.0, 0.12), TYRE)
        for x in (-0.6 * width, 0.6 * width):
            canvas.disc(x, 0.84, 0.09, 0.09, look.second)
    else:
        canvas.part("wheel")
        canvas.ellipse(0.0, 0.77, 0.24, 0.24, TYRE)
        canvas.disc(0.0, 0.77, 0.1, 0.1, look.second)


def _robot_ears(canvas: Canvas, look: Look, y: float, size: float) -> None:
    canvas.part("ear")
    for side in (-1, 1):
        if look.accessories[0] == 1:
            x = side * 1.1 * size
            canvas.rectangle(x - 0.13, y + 0.02, x + 0.13, y + 0.3, look.main)
        elif look.accessories[0] == 2:
            tip = (side * 1.35 * size, y - 1.0 * size)
            canvas.stroke([(side * 0.6 * size, y + 0.1), tip], TYRE, 0.05)
            canvas.ellipse(*tip, 0.12, 0.12, look.main)


def dog(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a dog. Accessories: ears (hanging, pointed, round), tail (up, stub, curled), muzzle (short, long, dark)."""
    size = between(0.36, 0.41, look.proportions[0])
    leg = between(0.26, 0.36, look.proportions[1])
    back = between(-0.72, -0.56, look.proportions[2])
    belly, x = 1.0 - leg, 0.36
    top = belly - 0.46
    y = top - 0.12 + 0.06 * pose[1]
    _dog_tail(canvas, look, pose, back, top)
    canvas.part("limb")
    for foot in (back + 0.12, back + 0.36, 0.1, 0.34):
        canvas.rectangle(foot - 0.1, belly - 0.1, foot + 0.1, 1.0, look.main)
    canvas.flat_body(box_points(back, top, 0.46, belly, 0.14), look.colours, look.pattern, axis=0)
    _dog_head(canvas, look, x, y, size)
    _neckwear(canvas, look, x - 0.08, y + 1.02 * size, size)
    _headgear(canvas, look, x, _top_of_head(look, y, size), size)


def _dog_head(canvas: Canvas, look: Look, x: float, y: float, size: float) -> None:
    hanging = look.accessories[0] == 0
    if not hanging:
        _dog_ears(canvas, look, x, y, size)
    _head(canvas, look, x, y, size, look.main)
    canvas.part("face")
    length = 0.32 if look.accessories[2] == 1 else 0.14
    muzzle = x + 0.7 * size
    colour = OUTLINE if look.accessories[2] == 2 else look.second
    canvas.ellipse(muzzle, y + 0.66 * size, length + 0.04, 0.13, colour)
    canvas.disc(muzzle + length, y + 0.5 * size, 0.07, 0.07, OUTLINE)
    if hanging:
        _dog_ears(canvas, look, x, y, size)


def _dog_tail(canvas: Canvas, look: Look, pose: Pose, back: float, top: float) -> None:
    canvas.part("tail")
    lift = between(-0.12, 0.12, pose[0])
    if look.accessories[1] == 0:
        canvas.stroke([(back + 0.08, top + 0.12), (back - 0.2, top - 0.3 + lift)], look.second, 0.12)
    elif look.accessories[1] == 1:
        canvas.ellipse(back - 0.04, top + 0.08 + 0.5 * lift, 0.16, 0.16, look.second)
    else:
        bend = (back - 0.2, top + 0.1)
        canvas.stroke([(back + 0.06, top + 0.2), bend, (back - 0.18, top - 0.24 + lift)], look.second, 0.14)


def _dog_ears(canvas: Canvas, look: Look, x: float, y: float, size: float) -> None:
    canvas.part("ear")
    for side in (-1, 1):
        if look.accessories[0] == 0:
            canvas.ellipse(x + side * 1.08 * size, y + 0.05, 0.13, 0.3, look.second)
        elif look.accessories[0] == 1:
            outer, tip = x + side * 1.15 * size, (x + side * 1.1 * size, y - 1.5 * size)
            canvas.polygon([(outer, y), tip, (x + side * 0.2 * size, y - 0.6 * size)], look.second)
        else:
            canvas.ellipse(x + side * 0.92 * size, y - 0.72 * size, 0.19, 0.19, look.second)


def cat(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a sitting cat. Accessories: ears (tall, wide, folded), tail (up, low, ringed), chest (none, bib, paws)."""
    width = between(0.36, 0.46, look.proportions[0])
    size = between(0.38, 0.43, look.proportions[1])
    _cat_tail(canvas, look, width, between(-0.12, 0.12, pose[0]))
    canvas.round_body(0.0, 0.58, width, 0.44, look.colours, look.pattern, axis=1)
    canvas.part("limb")
    if look.accessories[2] == 1:
        canvas.ellipse(0.08, 0.5, 0.2, 0.22, look.second)
    elif look.accessories[2] == 2:
        for side in (-1, 1):
            canvas.ellipse(0.04 + side * 0.22, 0.92, 0.17, 0.1, look.second)
    x, y = 0.08 * (pose[1] - 0.5), 0.2 - size
    _cat_ears(canvas, look, x, y, size)
    _head(canvas, look, x, y, size, look.main)
    canvas.part("face")
    canvas.ellipse(x + 0.14 * size, y + 0.72 * size, 0.12, 0.08, look.second)
    _neckwear(canvas, look, x, 0.26, size)
    _headgear(canvas, look, x, _top_of_head(look, y, size), size)


def _cat_ears(canvas: Canvas, look: Look, x: float, y: float, size: float) -> None:
    canvas.part("ear")
    ear = between(0.3, 0.44, look.proportions[2])
    spread, height = ((0.85, size + ear), (1.35, size + 0.5 * ear), (1.75, 0.5 * size))[look.accessories[0]]
    for side in (-1, 1):
        tip = (x + side * spread * size, y - height)
        canvas.polygon([(x + side * 1.05 * size, y + 0.05), tip, (x + side * 0.1 * size, y - 0.6 * size)], look.second)


def _cat_tail(canvas: Canvas, look: Look, width: float, lift: float) -> None:
    canvas.part("tail")
    end = -width - 0.26
    if look.accessories[1] == 1:
        canvas.stroke([(-0.5 * width, 0.86), (end - 0.08, 0.82 + 0.4 * lift)], look.second, 0.15)
        return
    canvas.stroke([(-0.5 * width, 0.86), (end, 0.8), (end - 0.04, 0.2 + lift)], look.second, 0.15)
    if look.accessories[1] == 2:
        canvas.ellipse(end - 0.04, 0.18 + lift, 0.15, 0.15, look.accent)


def fish(canvas: Canvas, look: Look, pose: Pose) -> None:
    """Draw a fish. Accessories: tail (fork, fan, square), top fin (low, tall, spiky), lower fin (none, one, two)."""
    length = between(0.6, 0.72, look.proportions[0])
    height = between(0.44, 0.54, look.proportions[1])
    tail = between(0.28, 0.36, look.proportions[2])
    x, y = 0.12, 0.34
    _fish_tail(canvas, look, (x - 0.8 * length, y), tail, between(-0.12, 0.12, pose[0]))
    _fish_fins(canvas, look, y, height)
    canvas.round_body(x, y, length, height, look.colours, look.pattern, axis=0)
    front = x + 0.55 * length
    _fish_face(canvas, look, (front, y), 0.62 * height + 0.04, tip=x + length + 0.16)
    if look.worn == "bow":
        _neckwear(canvas, look, front - 0.12, y + 0.82 * height, 0.42)
    elif look.worn == "scarf":
        canvas.part("worn")
        canvas.rectangle(x - 0.02, y - 0.95 * height, x + 0.14, y + height, look.worn_colour)
        canvas.rectangle(x - 0.16, y + 0.8 * height, x + 0.02, y + 1.3 * height, look.worn_colour)
    _headgear(canvas, look, front - 0.1, y - 0.78 * height, 0.4)


def _fish_face(canvas: Canvas, look: Look, center: Point, size: float, tip: float) -> None:
    """Draw a fish's head over the front of its body, with its eyes; a pointed one reaches to `tip`."""
    x, y = center
    canvas.part("head")
    if look.head == "round":
        canvas.ellipse(x, y, size, size, look.second)
    elif look.head == "square":
        canvas.rectangle(x - size, y - size, x + 0.95 * size, y + size, look.second)
    else:
        canvas.polygon([(x - size, y - 1.15 * size), (tip, y), (x - size, y + 1.15 * size)], look.second)
    _eyes(canvas, look.num_eyes, x - (0.3 * size if look.head == "pointed" else 0.0), y - 0.05, 0.9 * size)


def _fish_tail(canvas: Canvas, look: Look, root: Point, tail: float, swing: float) -> None:
    canvas.part("tail")
    back, y = root
    tails: tuple[list[Point], ...] = (
        [(0.0, 0.0), (-tail, -tail + swing), (-tail * 0.55, swing), (-tail, tail + swing)],
        [(0.0, 0.0), (-tail * 0.8, -tail + swing), (-tail * 1.2, swing), (-tail * 0.8, tail + swing)],
        [(0.0, -0.12), (-tail, -0.28 + swing), (-tail, 0.28 + swing), (0.0, 0.12)],
    )
    canvas.polygon([(back + u, y + v) for u, v in tails[look.accessories[0]]], look.second)


def _fish_fins(canvas: Canvas, look: Look, y: float, height: float) -> None:
    canvas.part("limb")
    top, bottom = y - height, y + height
    fins: tuple[list[Point], ...] = (
        [(-0.5, 0.16), (-0.24, -0.12), (0.1, -0.12), (0.2, 0.12)],
        [(-0.45, 0.18), (-0.4, -0.34), (0.2, 0.1)],
        [(-0.5, 0.2), (-0.5, -0.18), (-0.24, 0.02), (-0.18, -0.24), (0.02, 0.02), (0.12, -0.18), (0.25, 0.12)],
    )
    canvas.polygon([(u, top + v) for u, v in fins[look.accessories[1]]], look.second)
    for x in ((), (-0.1,), (-0.36, 0.08))[look.accessories[2]]:
        canvas.polygon([(x - 0.12, bottom - 0.1), (x - 0.2, bottom + 0.2), (x + 0.14, bottom - 0.06)], look.second)
