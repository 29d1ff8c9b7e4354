"""The queue of jobs, in one SQLite file (WAL): what is asked for, in which order, and what has become of it.

A job goes queued -> running -> done, failed, paused or cancelled; but for done ones it can be queued again.
Each change of state is one transaction that names the state before, so that two of them never both happen.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from dreambooth.studio.problems import ConflictError, MissingError

Kind = Literal["train", "generate", "evaluate", "prepare", "export"]
State = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STATES: tuple[State, ...] = get_args(State)
NUMBER = "{number}"  # in an output folder: the job's number, which it gets when it is added
OPEN: tuple[State, ...] = ("queued", "running", "paused")  # states in which a job holds its output folder

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    title TEXT NOT NULL,
    request TEXT NOT NULL,
    commands TEXT NOT NULL,
    output TEXT NOT NULL,
    priority INTEGER NOT NULL DEFAULT 0,
    position REAL NOT NULL,
    timeout_s REAL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0,
    device TEXT NOT NULL DEFAULT '',
    asked TEXT NOT NULL DEFAULT '',
    asked_at REAL,
    exit_code INTEGER,
    error TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state);
"""


@dataclass(frozen=True)
class Command:
    """Hold one command of a job. argv: behind `python -m dreambooth`. unless: a file that makes it unnecessary."""

    argv: tuple[str, ...]
    unless: str = ""


@dataclass(frozen=True)
class NewJob:
    """Hold a job to add. output: the folder, in the workspace, that it alone may write to. title: for people."""

    kind: Kind
    title: str
    request: Mapping[str, Any]
    commands: tuple[Command, ...]
    output: str
    priority: int = 0
    timeout_s: float | None = None


@dataclass(frozen=True)
class Job(NewJob):
    """Hold a job of the queue. Times are seconds since 1970.

    attempts: how often it was started. deaths: how often its process was killed. asked: 'cancel', 'pause' or 'timeout'
    where it is to stop. device: where it runs, or ran.
    """

    id: int = 0
    state: State = "queued"
    position: float = 0.0
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    attempts: int = 0
    deaths: int = 0
    device: str = ""
    asked: str = ""
    asked_at: float | None = None
    exit_code: int | None = None
    error: str = field(default="")


class JobStore:
    """Keep the jobs. Its methods may be called in any thread; one process at a time has a store open to write."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")  # what was answered is on the disk
        self._database.executescript(SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def add(self, new: NewJob) -> Job:
        """Add a job at the end of the queue. Raises ConflictError where an open job has the same output folder."""
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._check_output(new.output)
            number = 1 + self._database.execute("SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence").fetchone()[0]
            output = new.output.replace(NUMBER, str(number))
            commands = [[[_numbered(part, new, output) for part in each.argv], each.unless] for each in new.commands]
            values = {
                "kind": new.kind,
                "state": "queued",
                "title": new.title,
                "request": json.dumps(dict(new.request)),
                "commands": json.dumps(commands),
                "output": output,
                "priority": new.priority,
                "timeout_s": new.timeout_s,
                "created": time.time(),
                "position": float(number),
            }
            names, marks = ", ".join(values), ", ".join("?" * len(values))
            self._database.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", tuple(values.values()))
            return self.get(number)

    def get(self, number: int) -> Job:
        """Return a job. Raises MissingError."""
        rows = self._select("WHERE id = ?", (number,))
        if not rows:
            raise MissingError(f"job {number}: there is no such job")
        return rows[0]

    def find(
        self,
        states: tuple[State, ...] = (),
        kinds: tuple[Kind, ...] = (),
        limit: int = 1000,
        before: int | None = None,
        numbers: tuple[int, ...] = (),
    ) -> Sequence[Job]:
        """Return jobs, the newest first. states, kinds, numbers: only of these. before: only with smaller numbers.

        limit: -1 for all.
        """
        conditions = ["1"]
        values: list[Any] = []
        for name, wanted in (("state", states), ("kind", kinds), ("id", numbers)):
            if wanted:
                conditions.append(f"{name} IN ({', '.join('?' * len(wanted))})")
                values += list(wanted)
        if before is not None:
            conditions.append("id < ?")
            values.append(before)
        return self._select(f"WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {int(limit)}", values)

    def states(self) -> dict[int, State]:
        """Return the state of every job by its number."""
        with self._lock:
            return dict(self._database.execute("SELECT id, state FROM jobs").fetchall())

    def queue(self, kinds: tuple[Kind, ...] = KINDS) -> Sequence[Job]:
        """Return the queued jobs in the order in which they will start."""
        marks = ", ".join("?" * len(kinds))
        return self._select(
            f"WHERE state = 'queued' AND kind IN ({marks}) ORDER BY priority DESC, position, id", list(kinds)
        )

    def take_next(self, kinds: tuple[Kind, ...], device: str) -> Job | None:
        """Mark the first queued job of these kinds as running on a device, and return it; None where there is none."""
        with self._lock:
            waiting = self.queue(kinds)
            if not waiting:
                return None
            job = waiting[0]
            changes = {"device": device, "attempts": job.attempts + 1, "started": time.time(), "ended": None}
            self.change(job.id, ("queued",), "running", **changes, asked="", asked_at=None, exit_code=None, error="")
            return self.get(job.id)

    def change(self, number: int, before: tuple[State, ...], state: State, **values: Any) -> bool:
        """Change a job's state, and other columns, if its state is one of `before`; return whether it was."""
        names = ["state", *values]
        setting = ", ".join(f"{name} = ?" for name in names)
        marks = ", ".join("?" * len(before))
        with self._lock, self._database:
            done = self._database.execute(
                f"UPDATE jobs SET {setting} WHERE id = ? AND state IN ({marks})",
                (state, *values.values(), number, *before),
            )
            return done.rowcount == 1

    def queue_again(self, number: int, before: tuple[State, ...], **values: Any) -> Job:
        """Queue a job once more. Raises ConflictError for another state, or where its output folder is taken."""
        with self._lock:
            job = self.get(number)
            if job.state in before and job.state not in OPEN:
                self._check_output(job.output)
            if not self.change(number, before, "queued", asked="", asked_at=None, ended=None, **values):
                raise ConflictError(f"job {number}: is {job.state}; only {' and '.join(before)} jobs can do this")
            return self.get(number)

    def move(self, number: int, before: int | None) -> Job:
        """Place a queued job directly before another one; None: at the end. It takes over that one's priority."""
        with self._lock:
            job, rest = self.get(number), [each for each in self.queue() if each.id != number]
            if job.state != "queued":
                raise ConflictError(f"job {number}: is {job.state}; only queued jobs have a place in the queue")
            places = {each.id: place for place, each in enumerate(rest)}
            if before is not None and before not in places:
                raise ConflictError(f"before={before}: is not in the queue")
            place = len(rest) if before is None else places[before]
            beside = rest[min(place, len(rest) - 1)] if rest else job
            rest.insert(place, job)
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute("UPDATE jobs SET priority = ? WHERE id = ?", (beside.priority, number))
                for position, each in enumerate(rest):
                    self._database.execute("UPDATE jobs SET position = ? WHERE id = ?", (position, each.id))
            return self.get(number)

    def set(self, number: int, **values: Any) -> Job:
        """Change columns of a job that are not its state: priority, timeout_s, asked."""
        setting = ", ".join(f"{name} = ?" for name in values)
        with self._lock, self._database:
            self._database.execute(f"UPDATE jobs SET {setting} WHERE id = ?", (*values.values(), number))
        return self.get(number)

    def delete(self, number: int) -> None:
        """Remove a job that is over from the list; what it made stays. Raises ConflictError for one that is not."""
        job = self.get(number)
        with self._lock, self._database:
            done = self._database.execute(
                "DELETE FROM jobs WHERE id = ? AND state NOT IN ('queued', 'running')", (number,)
            )
        if done.rowcount != 1:
            raise ConflictError(f"job {number}: is {job.state}; cancel it first")

    def _check_output(self, output: str) -> None:
        found = self._select(f"WHERE output = ? AND state IN {OPEN}", (output,))
        if found:
            raise ConflictError(
                f"{output}: job {found[0].id}, which is {found[0].state}, writes there; let it end first"
            )

    def _select(self, condition: str, values: Sequence[Any]) -> list[Job]:
        with self._lock:
            return [_job_of(row) for row in self._database.execute(f"SELECT * FROM jobs {condition}", tuple(values))]


def _numbered(part: str, new: NewJob, output: str) -> str:
    """Return a part of a command with the job's output folder as it is named once the job has its number."""
    return f"--out={output}" if part == f"--out={new.output}" else part


def _job_of(row: sqlite3.Row) -> Job:
    values = {each.name: row[each.name] for each in fields(Job)}
    values["request"] = json.loads(row["request"])
    values["commands"] = tuple(Command(tuple(argv), unless) for argv, unless in json.loads(row["commands"]))
    return Job(**values)
