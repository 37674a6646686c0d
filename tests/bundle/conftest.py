from pathlib import Path

import pytest

from tests.bundle.kit import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _passphrases_beside_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELAY_KEY_PASSPHRASE", raising=False)
    monkeypatch.delenv("RELAY_KEY_PASSPHRASE_FILE", raising=False)


@pytest.fixture
def one(world: World, tmp_path: Path) -> Path:
    """The first site's bundle."""
    world.export(1, tmp_path / "one.relay")
    return tmp_path / "one.relay"
