"""The eleven classes of things, and what a scene has to know of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from toyworld.second import creatures, objects
from toyworld.second.canvas import Canvas
from toyworld.second.look import Look, Pose


@dataclass(frozen=True)
class Kind:
    """Hold what the scene has to know of a class. Sizes in units of half a box."""

    draw: Callable[[Canvas, Look, Pose], None]
    reach: float  # from the middle to the farther side
    is_creature: bool = False
    top: float | None = None  # where something can stand on it, if it can
    can_stand: bool = True  # on something


KINDS: dict[str, Kind] = {
    "robot": Kind(creatures.robot, 0.85, is_creature=True),
    "dog": Kind(creatures.dog, 0.95, is_creature=True),
    "cat": Kind(creatures.cat, 0.8, is_creature=True),
    "car": Kind(objects.car, 0.96, top=-0.36, can_stand=False),
    "house": Kind(objects.house, 0.86, top=-0.5, can_stand=False),
    "backpack": Kind(objects.backpack, 0.8, top=-0.72, can_stand=False),
    "teapot": Kind(objects.teapot, 0.95),
    "fish": Kind(creatures.fish, 0.95, is_creature=True, can_stand=False),
    "flower": Kind(objects.flower, 0.66),
    "rocket": Kind(objects.rocket, 0.72),
    "cup": Kind(objects.cup, 0.86),
}
CLASSES = tuple(KINDS)
CREATURES = tuple(noun for noun, kind in KINDS.items() if kind.is_creature)
SUPPORTS = tuple(noun for noun, kind in KINDS.items() if kind.top is not None)
RIDERS = tuple(noun for noun, kind in KINDS.items() if kind.can_stand)
