"""A release is a folder of files, signed as a whole."""

import os
import subprocess
from pathlib import Path

import pytest

from relay_core.bundle import Card, sign_folder, verify_folder
from relay_core.bundle.keys import KeyFolder
from relay_core.errors import BundleError
from tests.bundle.kit import make_site


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    """Who releases."""
    return make_site(tmp_path / "keys", "releases")


@pytest.fixture
def folder(tmp_path: Path, keys: KeyFolder) -> Path:
    """A signed release."""
    made = tmp_path / "dist"
    (made / "more").mkdir(parents=True)
    (made / "relay.whl").write_bytes(b"wheel")
    (made / "more/bill.cdx.json").write_bytes(b"{}")
    assert sign_folder(made, keys) == ["more/bill.cdx.json", "relay.whl"]
    return made


def test_a_release_is_whose_card_says_so(folder: Path, keys: KeyFolder) -> None:
    signer, names = verify_folder(folder, [keys.card])
    assert (signer.name, names) == ("releases", ["more/bill.cdx.json", "relay.whl"])
    sign_folder(folder, keys)  # again: its own signature is no file of it
    assert verify_folder(folder, [keys.card])[1] == names


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "relay.whl").write_bytes(b"wheel of another"), "relay.whl was changed"),
        (lambda folder: (folder / "relay.whl").unlink(), "relay.whl is missing"),
        (lambda folder: (folder / "more/extra").touch(), "more/extra was added"),
        (lambda folder: (folder / "more/link").symlink_to("/etc/passwd"), "more/link is a symbolic link"),
        (lambda folder: (folder / "more/up").symlink_to(".."), "more/up is a symbolic link"),
        (lambda folder: (folder / "signature.json").unlink(), "nobody signed it"),
        (lambda folder: (folder / "signature.json").write_text("{}"), "no model signature|is not a model signature"),
    ],
)
def test_what_was_changed_is_named(folder: Path, keys: KeyFolder, change: object, said: str) -> None:
    change(folder)  # type: ignore[operator]
    with pytest.raises(BundleError, match=said) as caught:
        verify_folder(folder, [keys.card])
    assert caught.value.code == "signature_invalid"


def test_somebody_elses_release_is_refused(folder: Path, tmp_path: Path) -> None:
    stranger: Card = make_site(tmp_path / "stranger", "releases").card  # of the same name
    with pytest.raises(BundleError, match="none of yours") as caught:
        verify_folder(folder, [stranger])
    assert caught.value.code == "signer_unknown"


def test_the_public_tool_verifies_a_release(folder: Path, keys: KeyFolder, tmp_path: Path) -> None:
    python = os.environ.get("RELAY_OMS_PYTHON", "")
    if not python:
        pytest.skip("RELAY_OMS_PYTHON does not name a Python that has model_signing")
    (tmp_path / "key.pem").write_text(keys.card.public_key)
    command = [
        python, "-m", "model_signing", "verify", "key", str(folder), "--signature", str(folder / "signature.json"),
        "--public_key", str(tmp_path / "key.pem"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
