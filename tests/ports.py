"""Ports for the servers that tests start, and a database of Redis, each of one test process alone."""

import itertools
import os
import socket

_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_NUMBERS = itertools.count(20_000 + 500 * _PROCESS)
BROKER = os.environ.get("RELAY_TEST_REDIS", f"redis://127.0.0.1:6379/{1 + _PROCESS % 15}")
"""A worker of another process's test would take the messages of a shared one, and know nothing of their jobs."""


def free_port() -> int:
    """One that nobody listens at, below those that the system gives to whoever asks, and of this process alone."""
    for port in _NUMBERS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("there is no free port")
