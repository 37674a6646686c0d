"""Put the keys of a backup in place, and keep those revoked that the site has revoked since the backup."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from relay_core.errors import BundleError
from relay_core.files import replace_with
from services.site import backup
from services.site.settings import Settings

ROSTER = "roster.json"


def restore(folder: Path, settings: Settings, aside: str | None) -> list[str]:
    """Put the keys of a backup into their places; what is there moves aside. Return what was done."""
    said, mask = [], os.umask(0o077)
    try:
        if (folder / "keys").is_dir():
            _move_aside(settings.keys_folder, aside)
            shutil.copytree(folder / "keys", settings.keys_folder, dirs_exist_ok=True)
            said.append(f"keys: restored; {_keep_revoked(settings.keys_folder, aside)}")
        else:
            said.append("keys: the backup holds none")
        if settings.embedded and (folder / "secret-key").is_file():
            path = settings.home / "secret-key"
            if aside is not None and path.is_file():
                (settings.home / aside).mkdir(exist_ok=True)
                path.rename(settings.home / aside / path.name)
            replace_with(path, lambda target: shutil.copyfile(folder / "secret-key", target))
    finally:
        os.umask(mask)
    return said


def _keep_revoked(keys: Path, aside: str | None) -> str:
    """Revoke in the restored roster what the one that was moved aside has revoked; say which keys these are."""
    from relay_core.bundle import KeyFolder, Roster, spoken_fingerprint  # it needs cryptography

    old = keys / aside / ROSTER if aside is not None else None
    again = "those revoked since are trusted again: revoke them again"
    if old is None or not old.is_file():
        return again
    try:
        revoked = {entry.card.fingerprint: entry for entry in Roster.read(old).entries if entry.revoked_at is not None}
    except BundleError as error:
        return f"{again} ({old} cannot be read: {error})"
    roster = Roster.read(keys / ROSTER)
    known = {entry.card.fingerprint for entry in roster.entries if entry.revoked_at is not None}
    since = {key: entry for key, entry in revoked.items() if key not in known}
    if not since:
        return "none was revoked since"
    for key, entry in since.items():
        entries = [found for found in roster.entries if found.card.fingerprint == key] or [entry]
        roster.entries = [found for found in roster.entries if found.card.fingerprint != key]
        roster.entries += [dataclasses.replace(found, revoked_at=entry.revoked_at) for found in entries]
    KeyFolder(keys).save(roster)
    names = ", ".join(f"{entry.card.name} ({spoken_fingerprint(key)})" for key, entry in since.items())
    return f"revoked since, and still: {names}"


def _move_aside(folder: Path, aside: str | None) -> None:
    present = [path for path in folder.glob("*") if not path.name.startswith(backup.ASIDE)]
    if aside is not None and present:
        (folder / aside).mkdir()
        for path in present:
            path.rename(folder / aside / path.name)
