"""Ports for the servers that tests start."""

import itertools
import os
import socket

_NUMBERS = itertools.count(20_000 + 500 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


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
