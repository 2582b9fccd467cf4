"""What holds for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_terminal() -> Iterator[None]:
    """Processes that tests start take Ctrl-C and SIGTERM, also where the tests themselves run in the background.

    A shell without job control starts background commands with SIGINT and SIGQUIT ignored, nohup does so with SIGHUP, and
    child processes inherit that.
    """
    ignored = [
        s for s in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM) if signal.getsignal(s) is signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
