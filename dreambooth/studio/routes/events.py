"""Events: what changes, as Server-Sent Events, for who does not want to poll."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from dreambooth.studio.state import Studio, StudioOf, recent

router = APIRouter(tags=["events"])
PERIOD_S = 0.5  # between two looks
QUIET_S = 15.0  # after which a comment keeps the connection open
MAX_STREAMS = 100
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get("/events", summary="Follow what changes", response_class=StreamingResponse)
async def events(request: Request, studio: StudioOf, job: int | None = None) -> StreamingResponse:
    """Send an event `job` with the whole job whenever one changes, `gone` with its number when one is removed.

    At first each open job, and of the others the newest, is sent as it is. job: only this one.
    """
    streams: set[Request] = request.app.state.streams
    if len(streams) >= MAX_STREAMS:
        raise HTTPException(503, f"{MAX_STREAMS} streams are open; poll /jobs instead")
    return StreamingResponse(_follow(request, studio, job, streams), media_type="text/event-stream", headers=HEADERS)


async def _follow(request: Request, studio: Studio, only: int | None, streams: set[Request]) -> AsyncIterator[str]:
    known: dict[int, str] = {}
    old: set[int] = set()  # those that were sent, are over, and have many newer ones: the board leaves them out
    quiet = 0.0
    streams.add(request)
    try:
        yield "retry: 2000\n\n"
        while not await request.is_disconnected() and not request.app.state.is_closing.is_set():
            found = await recent(studio)
            texts = {number: found[number] for number in reversed(found) if only in (None, number)}
            before, old = old, (known.keys() - texts.keys()) & studio.board.states.keys()
            if old - before:
                texts |= await run_in_threadpool(studio.board.texts_of, old - before)
            texts |= {number: known[number] for number in old & before}
            changed = [_event("job", text) for number, text in texts.items() if known.get(number) != text]
            changed += [_event("gone", json.dumps({"id": number})) for number in known.keys() - texts.keys()]
            known, quiet = texts, 0.0 if changed else quiet + PERIOD_S
            if changed:
                yield "".join(changed)
            elif quiet >= QUIET_S:
                quiet = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(PERIOD_S)
    finally:
        streams.discard(request)


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {data}\n\n"
