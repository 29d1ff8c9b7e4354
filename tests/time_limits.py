"""A pytest plugin: neither a test nor the run as a whole hangs, and what hung is named.

pytest-timeout fails a test after `timeout` seconds, by an exception in the main thread. A test whose clean-up hangs as
well goes on for ever, such as one that leaves a pool of processes and waits for a worker that is stuck. Two limits
stand behind the timeout:

- `timeout_grace` seconds later the stacks of the test's process are printed and it ends. Under pytest-xdist the
  report names the test, and a new worker goes on with the others.
- After `run_limit` seconds the tests that are running are named, the stacks of their processes are printed, and every
  process of the run ends.
"""

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("timeout_grace", "seconds after a test's timeout until its process is ended", default="60")
    parser.addini("run_limit", "seconds until the run as a whole is ended", default="2400")


def pytest_configure(config: pytest.Config) -> None:
    stderr = os.dup(2)  # not captured yet
    if not config.getoption("usepdb"):  # someone thinks about a failure as long as he likes
        config.pluginmanager.register(TestLimit(stderr))
        if not hasattr(config, "workerinput"):  # pytest-xdist gives one to each of its workers
            config.pluginmanager.register(RunLimit(float(config.getini("run_limit")), stderr), "run_limit")


class TestLimit:
    """Ends the process of a test that has outlasted its timeout and `timeout_grace`."""

    __test__ = False  # not a class of tests

    def __init__(self, stderr: int) -> None:
        self.stderr = stderr
        self.end_at = float("inf")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        timeout = timeout_of(item)
        self.end_at = (
            time.monotonic() + timeout + float(item.config.getini("timeout_grace")) if timeout else float("inf")
        )
        self.arm()
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(trylast=True)
    def pytest_exception_interact(self) -> None:
        """Set the limit again, which pytest itself has just cancelled: the clean-up is still to come."""
        self.arm()

    def arm(self) -> None:
        if self.end_at < float("inf"):
            seconds = max(self.end_at - time.monotonic(), 1)
            faulthandler.dump_traceback_later(
                seconds, file=self.stderr, exit=True
            )  # from C: holding the GIL is no escape


def timeout_of(item: pytest.Item) -> float:
    """Return the seconds that pytest-timeout gives a test; 0 is no limit."""
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        return float(marker.args[0])
    option = item.config.getoption("timeout")
    return float(item.config.getini("timeout") or 0) if option is None else float(option)


class RunLimit:
    """Ends the run, with every process of it, once it has lasted `seconds`."""

    def __init__(self, seconds: float, stderr: int) -> None:
        self.seconds = seconds
        self.stderr = stderr
        self.started: dict[str, float] = {}  # when each test that is running began
        timer = threading.Timer(seconds, self.end)  # never cancelled: an interpreter can hang when it exits, too
        timer.daemon = True
        timer.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.started[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.started.pop(nodeid, None)

    def end(self) -> None:
        now = time.monotonic()
        running = [f"{nodeid} (for {now - began:.0f} s)" for nodeid, began in self.started.items()]
        names = ", ".join(running) or "no test: before the first or after the last"
        os.write(self.stderr, f"\nrun_limit: the run has lasted {self.seconds:g} s. Running: {names}\n".encode())
        faulthandler.dump_traceback(file=self.stderr)
        workers, everyone = psutil.Process().children(), psutil.Process().children(recursive=True)
        for worker in workers:
            send(worker, signal.SIGABRT)  # pytest has it print the stacks
        psutil.wait_procs(workers, timeout=5)
        for process in everyone:
            send(process, signal.SIGKILL)
        os._exit(1)


def send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
