"""The commands `relay release`: sign a folder of files that are handed out, and verify such a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relay_core.cli.keys import KEYS, KeysOption, key_folder

release_app = typer.Typer(help="Signed releases of this software.", no_args_is_help=True)
FolderArgument = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the release's files.")]


@release_app.command()
def sign(folder: FolderArgument, keys: KeysOption = KEYS) -> None:
    """Sign every file of a folder: signature.json, beside them."""
    from relay_core.bundle import sign_folder

    names = sign_folder(folder, key_folder(keys))
    print(f"signed {len(names)} files: {folder / 'signature.json'}")


@release_app.command()
def verify(
    folder: FolderArgument,
    card: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="card.json of who releases; compare its fingerprint.")
    ],
) -> None:
    """Check that a folder holds what was signed, and nothing else."""
    from relay_core.bundle import Card, spoken_fingerprint, verify_folder

    signer, names = verify_folder(folder, [Card.from_json(card.read_bytes(), card.name)])
    print(f"{len(names)} files as {signer.name} signed them, key {spoken_fingerprint(signer.fingerprint)}")
