"""The commands `relay keys`: this site's keys, and the roster of the sites that it trusts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay_core.errors import BundleError

if TYPE_CHECKING:
    from relay_core.bundle import KeyFolder

KeysOption = Annotated[
    Path, typer.Option("--keys", envvar="RELAY_KEYS", help="Folder of this site's keys and of whom it trusts.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print data as JSON on standard output.")]
KEYS = Path("relay-site/keys")

Witness = Callable[[Path], contextlib.AbstractContextManager[None]]
witnesses: list[Witness] = []
"""Entered, with the folder of keys, around each change of it: a service keeps its records of whom it trusts."""

keys_app = typer.Typer(help="This site's keys, and the sites that it trusts.", no_args_is_help=True)


def key_folder(folder: Path) -> KeyFolder:
    """Return the key folder at a path; it may hold no keys yet."""
    from relay_core.bundle import KeyFolder

    return KeyFolder(folder)


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="What the other sites will call this one.")],
    keys: KeysOption = KEYS,
    generate_passphrase: Annotated[
        bool, typer.Option("--generate-passphrase", help="Make one up and leave it beside the keys, mode 600.")
    ] = False,
) -> None:
    """Make this site's keys; card.json is for the other sites."""
    from relay_core.bundle import spoken_fingerprint

    folder, name = key_folder(keys), _checked_name(name)
    if folder.exists:
        raise BundleError("key_missing", f"{keys} holds a key already; choose another folder")
    passphrase = folder.keep_passphrase() if generate_passphrase else folder.passphrase()
    if len(passphrase) < 12:
        raise BundleError("key_locked", "a passphrase has at least 12 characters")
    with _witnessed(keys):
        card = folder.create(name, passphrase)
    print(f"made {keys}/signing.pem and age.key (encrypted), and {keys}/card.json, which the other sites need")
    print(f"fingerprint, to read aloud: {spoken_fingerprint(card.fingerprint)}")


def _checked_name(name: str) -> str:
    from relay_core.texts import site_name

    try:
        return site_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--name") from None


def _read_card(path: Path) -> Any:
    from relay_core.bundle import Card

    return Card.from_json(path.read_bytes(), path.name)


@keys_app.command("fingerprint")
def fingerprint_(
    card: Annotated[Path | None, typer.Argument(help="Another site's card.json; default: this site's.")] = None,
    keys: KeysOption = KEYS,
) -> None:
    """A key's fingerprint in groups to read aloud."""
    from relay_core.bundle import spoken_fingerprint

    shown_card = _read_card(card) if card else key_folder(keys).card
    print(f"{shown_card.name}: {spoken_fingerprint(shown_card.fingerprint)}\n{shown_card.fingerprint}")


@keys_app.command()
def trust(
    card: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The other site's card.json.")],
    keys: KeysOption = KEYS,
    run: Annotated[str | None, typer.Option(help="For this run alone (its digest); default: for every one.")] = None,
) -> None:
    """Trust a site, after comparing its fingerprint by telephone."""
    from relay_core.bundle import spoken_fingerprint

    trusted_card = _read_card(card)
    with _witnessed(keys), key_folder(keys).changing() as roster:
        roster.trust(trusted_card, run, card.name)
    print(f"trusted: {trusted_card.name}, {spoken_fingerprint(trusted_card.fingerprint)}")


@keys_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name or fingerprint.")],
    keys: KeysOption = KEYS,
) -> None:
    """Trust a key no more: bundles with it anywhere in their history are refused from now on."""
    with _witnessed(keys), key_folder(keys).changing() as roster:
        entry = roster.revoke(name)
    print(f"revoked: {entry.card.name}, {entry.card.fingerprint}")


@contextlib.contextmanager
def _witnessed(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for witness in witnesses:
            stack.enter_context(witness(folder))
        yield


@keys_app.command("list")
def list_(keys: KeysOption = KEYS, as_json: JsonOption = False) -> None:
    """Whom this site trusts."""
    from dataclasses import asdict

    from relay_core.bundle import spoken_fingerprint

    entries = key_folder(keys).roster.entries
    if as_json:
        print(json.dumps([{**asdict(entry), "fingerprint": entry.card.fingerprint} for entry in entries]))
        return
    for entry in entries:
        state = "revoked" if entry.revoked_at else "trusted" + (f" for run {entry.run[:12]}" if entry.run else "")
        print(f"{spoken_fingerprint(entry.card.fingerprint)}  {state}  {entry.card.name}")
