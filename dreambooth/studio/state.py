"""Hold what the routes share: the workspace, the queue, the worker, and a view of all jobs that many clients poll."""

import json
import shlex
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from dreambooth.studio.gallery import Gallery
from dreambooth.studio.jobs import OPEN, Job, JobStore, State
from dreambooth.studio.progress import JobProgress, progress_of
from dreambooth.studio.worker import Worker
from dreambooth.studio.workspace import Workspace

FRESH_S = 0.25  # for how long a view of the jobs is given to everybody who asks
NUM_RECENT = 200  # jobs in it, beside older ones that are not over

View = dict[str, Any]


@dataclass
class Board:
    """Hold the newest jobs, and all open ones, as clients see them; made at most four times a second.

    states: of all jobs by number. queue: numbers of the queued jobs, as they will start. Both with the views.
    """

    workspace: Workspace
    store: JobStore
    queue: list[int] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _made_at: float = -FRESH_S
    _views: list[View] = field(default_factory=list)
    _texts: dict[int, str] | None = None
    _ended: dict[tuple[int, int, str], JobProgress] = field(default_factory=dict)

    def views(self) -> list[View]:
        """Return the newest jobs, and older ones that are open, newest first, with their progress."""
        with self._lock:
            if not self.is_fresh:
                made_at = time.monotonic()
                self.queue = [job.id for job in self.store.queue()]
                self.states = self.store.states()
                self._views = [self.view(job) for job in self._shown()]
                self._texts = None
                self._made_at = made_at
            return self._views

    def _shown(self) -> Iterable[Job]:
        newest = self.store.find(limit=NUM_RECENT)
        older = self.store.find(OPEN, limit=-1, before=newest[-1].id) if newest else ()
        return (*newest, *older)

    def texts(self) -> dict[int, str]:
        """Return `views` as JSON, by their numbers, newest first; written once for all who ask."""
        views = self.views()
        with self._lock:
            if self._texts is None or self._views is not views:
                self._texts = {view["id"]: json.dumps(view) for view in self._views}
            return self._texts

    def texts_of(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return some jobs as JSON, by their numbers; those that are gone are left out."""
        return {job.id: json.dumps(self.view(job)) for job in self.store.find(limit=-1, numbers=tuple(numbers))}

    @property
    def is_fresh(self) -> bool:
        """Return whether `views` has nothing to read now."""
        return time.monotonic() - self._made_at < FRESH_S

    def forget(self) -> None:
        """Have the next one who asks see what was just changed."""
        with self._lock:
            self._made_at = -FRESH_S

    def view(self, job: Job) -> View:
        """Return one job as clients see it."""
        return {**_public(job), "progress": asdict(self._progress(job))}

    def _progress(self, job: Job) -> JobProgress:
        """Return how far a job is; of one that is over it is read once."""
        if job.state in ("queued", "running"):
            return progress_of(self.workspace, job)
        key = (job.id, job.attempts, job.state)
        if key not in self._ended:
            self._ended[key] = progress_of(self.workspace, job)
        return self._ended[key]


@dataclass
class Studio:
    """Hold a studio that runs."""

    workspace: Workspace
    store: JobStore
    worker: Worker
    board: Board
    gallery: Gallery


async def recent(studio: Studio) -> dict[int, str]:
    """Return the jobs of the board as JSON, newest first; in a thread only where there is something to read."""
    if studio.board.is_fresh:
        return studio.board.texts()
    return await run_in_threadpool(studio.board.texts)


def _public(job: Job) -> View:
    values = asdict(job)
    del values["commands"], values["asked_at"], values["deaths"]
    return {**values, "commands": [as_typed(each.argv) for each in job.commands]}


def as_typed(argv: Sequence[str]) -> str:
    """Return a command as one types it in a terminal, in the workspace's folder."""
    return shlex.join(["python", "-m", "dreambooth", *argv])


async def _studio_of(request: Request) -> Studio:  # not in a thread, which takes longer than this does
    found: Studio = request.app.state.studio
    return found


StudioOf = Annotated[Studio, Depends(_studio_of)]
