"""Output of commands, which survives a closed pipe, a lost terminal or a full disk.

Library code reports through the logger `dreambooth` and never prints; a command shows those records on stderr, above a
progress bar where there is one. A notebook or a server that calls the library gets the records, and decides by itself.
"""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from dreambooth.status_line import STATUS_LINE

READER_LEFT = (errno.EPIPE, errno.EIO)  # a pipe without a reader; a terminal that was closed


class LastingWriter(io.RawIOBase):
    """Write to a file for as long as that works, then discard the rest.

    A viewer that is closed, a terminal that is gone or a full disk must not end hours of training. Unbuffered, so that
    a signal handler may write in the middle of another write.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.error is None and self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest and self.error is None:
            try:
                rest = rest[self._raw.write(rest) or len(rest) :]  # None: a terminal that takes nothing just now
            except OSError as error:
                self.error = error
        return size


@contextlib.contextmanager
def command_output() -> Iterator[None]:
    """Guard stdout and stderr against write errors during a command, and show the library's log records there."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (lasting(stream) for stream in before)
    ours = sys.stdout, sys.stderr
    logger, handler = logging.getLogger("dreambooth"), ConsoleHandler()
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # another library's handler on the root logger would print everything once more
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
        for stream in ours:
            stream.flush()
        _report_loss(ours[0])
        sys.stdout, sys.stderr = before


def lasting(stream: TextIO | None) -> TextIO:
    """Return a stream to the same file that neither fails nor refuses a character: `\\u72d7` stands for one it lacks.

    A stream that is no file's (a test's, a notebook's) stays as it is; one that is closed becomes the null device.
    """
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(raw, io.RawIOBase):
        return stream
    stream.flush()
    return io.TextIOWrapper(  # type: ignore[type-var]  # on bytes that are not buffered, as with `python -u`
        LastingWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _report_loss(stdout: TextIO) -> None:
    """Warn that a command's output is incomplete, unless its reader has closed it."""
    error = getattr(getattr(stdout, "buffer", None), "error", None)
    if error is not None and error.errno not in READER_LEFT:
        print(f"warning: the output could not be written ({error.strerror})", file=sys.stderr)


class ConsoleHandler(logging.Handler):
    """Print each record as a line on stderr, above a progress bar; a warning begins with `warning: `."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"warning: {text}"
        tqdm = sys.modules.get("tqdm")
        with STATUS_LINE.hidden():
            if tqdm is None:
                print(text, file=sys.stderr, flush=True)
            else:  # other libraries' bars
                tqdm.tqdm.write(text, file=sys.stderr)
                sys.stderr.flush()
