"""The metrics of a trial: their stored names, and their names in tables."""

from __future__ import annotations

from dreambooth.metrics.estimates import BOUNDS, COSINE, DISTANCE, Bounds, Estimate

METRICS: dict[str, str] = {
    "fidelity_way": "fidelity way",
    "place_right": "place right",
    "div_share": "DIV / DIV of the base",
    "pres_way": "PRES way",
    "leak_way": "PRES way from the base's own",
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "pres": "PRES",
    "div": "DIV",
    "drift": "drift of the class prompt",
    "base_pres": "PRES of the base",
    "base_div": "DIV of the base",
    "base_pres_way": "PRES way of the base itself",
    "other": "DINO of others of the class",
    "real": "DINO of unseen real pictures",
    "class_right": "class right",
    "main_right": "main colour right",
    "second_right": "second colour right",
    "pattern_right": "pattern right",
    "true_similarity": "judge: similarity to the subject",
    "true_other_similarity": "judge: similarity to others",
    "nearer_to_subject": "judge: nearer to the subject than to any other",
    "true_leak": "judge: similarity of the class prompt to the subject",
    "true_diversity": "judge: diversity of the class prompt",
    "true_base_diversity": "judge: diversity of the base",
    "kept_step": "step that was kept",
    "seconds_training": "CPU seconds of training",
    "seconds_prior": "CPU seconds of class pictures",
    "seconds_drawing": "CPU seconds of drawing",
}
FRACTION = (0.0, 1.0)
METRIC_BOUNDS: dict[str, Bounds] = BOUNDS | {  # of the metrics that have a range
    **dict.fromkeys(("place_right", "class_right", "main_right", "second_right", "pattern_right"), FRACTION),
    "nearer_to_subject": FRACTION,
    **dict.fromkeys(("base_pres", "other", "real", "true_similarity", "true_other_similarity", "true_leak"), COSINE),
    **dict.fromkeys(("base_div", "true_diversity", "true_base_diversity"), DISTANCE),
}
# What the defaults should reach: (metric, whether more is better, threshold).
GOALS = {
    "fidelity_way": (True, 0.90),
    "place_right": (True, 0.98),
    "div_share": (True, 0.95),
    "pres_way": (False, 0.10),
}


def fraction_of_range(value: float, start: float, end: float) -> float:
    """Return how far from `start` to `end` a value is: 0 at the start, 1 at the end.

    Not clipped to 0..1, unlike `selection.fraction_of_range`.
    """
    return (value - start) / (end - start)


def format_metric(name: str, value: float) -> str:
    """Return the value with its significant digits."""
    return f"{value:.{_decimals(name)}f}"


def format_interval(name: str, found: Estimate) -> str:
    """Return "± half the interval", or its two ends where it is uneven; empty for a single number."""
    return found.interval(_decimals(name))


def _decimals(name: str) -> int:
    return 0 if name.startswith(("seconds", "kept")) else 3
