"""The sections of a sweep file, a dataclass each. A field's text is its help, which `sweep --help` prints."""

from dataclasses import dataclass
from typing import Literal

from omegaconf import MISSING

from dreambooth.config.fields import setting


@dataclass
class SweepSection:
    """The sweep's name, its folder, and what all cells have in common."""

    name: str = setting(MISSING, "name of the sweep; its folder is <sweep.dir>/<sweep.name>")
    dir: str = setting("checkpoints", "folder of the sweep's folder")
    config: str = setting(MISSING, "config of a run, which every cell starts from")
    seeds: list[int] = setting((), "run.seed of the cells, one of each for every seed; none: the config's own")


@dataclass
class SubjectsSection:
    """The subjects to learn: a folder of folders, or a table. Without this section the config's own subject."""

    folder: str | None = setting(
        None,
        "folder with a folder of photos for each subject; it may hold the class nouns, in prompts.yaml or "
        "prompts_and_classes.txt as DreamBooth's data set has them",
    )
    table: str | None = setting(
        None,
        "CSV file with a line for each subject: the columns images and class_noun, and as wanted name, identifier, "
        "prompt, class_prompt; images is relative to the file",
    )
    class_noun: str | None = setting(None, "class noun of all subjects that have none of their own")


@dataclass
class SearchSection:
    """Which of the settings are tried, and how long. A point is one choice of all of them."""

    method: Literal["grid", "random", "halving", "optuna"] = setting(
        "grid",
        "grid: every combination; random: points drawn from lists and ranges; halving: all points for few steps, the "
        "best of them for more; optuna: a sampler proposes points by the qualities so far (extra 'search')",
    )
    num_points: int = setting(
        16, "points of random and optuna, and of halving where a range has no num", minimum=1, maximum=100_000
    )
    seed: int = setting(0, "seed of the points that are drawn", minimum=0)
    first_steps: int | None = setting(
        None,
        "halving: optimizer steps until the first comparison, rounded up to a validation; null: train.max_steps / "
        "factor^2",
        minimum=1,
    )
    factor: int = setting(3, "halving: one point in so many goes on, to so many times the steps", minimum=2)
    per_subject: bool = setting(
        False, "halving: compare the points of each subject by themselves; false: by the mean over subjects and seeds"
    )
    sampler: Literal["tpe", "gp"] = setting(
        "tpe", "optuna: tpe, a tree of Parzen estimators; gp, a Gaussian process: better for few points, slower"
    )
    batch: int = setting(4, "optuna: points that are proposed and trained at a time", minimum=1)


@dataclass
class SlurmSection:
    """The jobs of --on slurm; what is null is left to the cluster."""

    partition: str | None = setting(None, "partition (queue) of the jobs")
    account: str | None = setting(None, "account that is charged")
    qos: str | None = setting(None, "quality of service")
    constraint: str | None = setting(None, "features that a node must have")
    minutes: int = setting(60, "time limit of a job; a cell that takes longer is saved, and requeued", minimum=1)
    warn_s: int = setting(120, "seconds before the time limit at which a job gets SIGUSR1, and saves", minimum=1)
    requeue: bool = setting(True, "let SLURM put a job that it preempts back into the queue")
    gpus: int = setting(1, "GPUs of a job; 0 for cells that train on a CPU", minimum=0, maximum=1)
    cpus: int = setting(4, "cores of a job", minimum=1)
    memory_gib: int | None = setting(None, "memory of a job, GiB", minimum=1)
    cells_per_job: int = setting(1, "cells that a job trains one after the other, with the base loaded once", minimum=1)
    parallel: int = setting(256, "jobs that run at a time", minimum=1)
    setup: list[str] = setting((), "shell lines before the cell, such as module load cuda")


SECTIONS: dict[str, type] = {
    "sweep": SweepSection,
    "subjects": SubjectsSection,
    "search": SearchSection,
    "slurm": SlurmSection,
}
