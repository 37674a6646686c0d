"""`relay artifacts`, `relay backup` and `relay restore`, as an administrator types them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.site import sweep
from services.site.settings import load_settings
from tests.services.conftest import SiteKit, open_site
from tests.services.test_sweep import actions, keep, swept


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteKit]:
    with open_site(load_settings(embedded=True, home=tmp_path / "home", device="cpu")) as site:
        yield site


def test_a_backup_is_taken_verified_and_restored(here: Callable, site: SiteKit, tmp_path: Path) -> None:
    digest = keep(site, b"bytes")
    home, made, new = site.settings.home, tmp_path / "made", tmp_path / "new"
    done = here("backup", "--home", home, "--out", made)
    assert done.returncode == 0
    assert "site as of" in done.stdout
    assert here("backup", "--home", home, "--out", made).stderr.endswith("name another folder for the backup\n")
    verified = json.loads(here("backup", "verify", made, "--json").stdout)
    assert (verified["bytes"] > 0, verified["damaged"]) == (True, [])
    done = here("restore", made, "--home", new)
    assert done.returncode == 0
    assert "relay artifacts confirm" in done.stdout
    assert here("restore", made, "--home", new).returncode == 1
    assert here("restore", made, "--home", new, "--replace").returncode == 0
    listed = json.loads(here("artifacts", "--home", new, "--json").stdout)
    assert (listed["unconfirmed"], listed["missing"]) == ("a backup was restored", [])
    assert here("artifacts", "confirm", "--home", new).stdout == "confirmed\n"
    assert json.loads(here("artifacts", "--home", new, "--json").stdout)["unconfirmed"] is None
    (made / "artifacts" / digest).write_bytes(b"other")
    assert f"{digest} was changed" in here("backup", "verify", made).stderr


def test_a_backup_of_a_damaged_site_ends_with_an_error(here: Callable, site: SiteKit, tmp_path: Path) -> None:
    digest = keep(site, b"bytes")
    site.store.path(digest).unlink()
    assert f"1 files that rows need are not in the store: restore a backup ({digest}" in here(
        "artifacts", "--home", site.settings.home
    ).stdout  # fmt: skip
    done = here("backup", "--home", site.settings.home, "--out", tmp_path / "made")
    assert done.returncode == 1
    assert f"NOT in it, as they are damaged or missing at the site itself: {digest}" in done.stdout


def test_the_trash_is_listed_taken_back_and_emptied(here: Callable, site: SiteKit) -> None:
    digest, _ = site.store.put([b"orphan"])
    home = site.settings.home
    swept(site, 25)
    assert f"trash/{digest}" in here("artifacts", "--home", home).stdout
    assert here("artifacts", "restore", digest[:8], "--home", home).stdout == f"back in the store: {digest}\n"
    swept(site, 25)
    assert here("artifacts", "empty", "--home", home).stdout == "deleted 1 files, 6 bytes\n"
    assert actions(site) == ["artifacts.restore", "artifacts.empty"]


def test_after_a_restore_the_trash_is_not_emptied(here: Callable, site: SiteKit) -> None:
    sweep.hold(site.store.folder, "now")
    done = here("artifacts", "empty", "--home", site.settings.home)
    assert (done.returncode, "relay artifacts confirm" in done.stderr) == (1, True)


def test_a_volume_without_a_mark_is_adopted_by_name(here: Callable, site: SiteKit) -> None:
    home = site.settings.home
    (home / "work" / ".relay-volume").unlink()
    assert "`work` is away" in here("artifacts", "--home", home).stdout
    assert "relay artifacts confirm --adopt" in here("artifacts", "confirm", "--home", home).stderr
    done = here("artifacts", "confirm", "--adopt", "--home", home)
    assert done.stdout == "confirmed; marked as this site's: work\n"


def test_a_site_that_is_not_there_is_said_and_not_made(here: Callable, tmp_path: Path) -> None:
    for words in (["backup", "--out", tmp_path / "made"], ["artifacts"], ["artifacts", "empty"]):
        done = here(*words, "--home", tmp_path / "typo")
        assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'typo'}: there is no such folder\n")
    (tmp_path / "new").mkdir()
    assert "at revision None" in here("artifacts", "--home", tmp_path / "new").stderr
    assert not (tmp_path / "typo").exists()
