import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from relay_core.cli import app
from tests.data.conftest import fundus, polyps

__all__ = ["fundus", "here", "polyps"]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process: quicker than a fresh one. What plugins add to it is gone after the test."""
    for kept in ("registered_commands", "registered_groups"):
        monkeypatch.setattr(app.app, kept, list(getattr(app.app, kept)))

    def run(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["relay", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run
