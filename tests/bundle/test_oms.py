"""Both ways with the public tool of OpenSSF Model Signing."""

import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from relay_core.errors import BundleError
from tests.bundle.kit import PASSPHRASE, member, members, packed

PYTHON = os.environ.get("RELAY_OMS_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="make test sets up the public tool; by hand: RELAY_OMS_PYTHON=a Python with model-signing==1.1.1 and pyOpenSSL",
)


def model_signing(*args):
    return subprocess.run([PYTHON, "-m", "model_signing", *map(str, args)], capture_output=True, text=True, check=False)


@pytest.fixture
def untarred(one, tmp_path):
    """The bundle, taken apart by the system's tar."""
    folder = tmp_path / "model"
    folder.mkdir()
    subprocess.run(["tar", "xf", one, "-C", folder], check=True)
    return folder


@pytest.fixture
def public_key(world, tmp_path):
    (tmp_path / "north.pem").write_text(world.north.card.public_key)
    return tmp_path / "north.pem"


def test_its_verify_takes_our_signature(untarred, public_key):
    options = ["--signature", untarred / "signature.json", "--public_key", public_key]
    done = model_signing("verify", "key", untarred, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    data = bytearray((untarred / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (untarred / "weights.safetensors").write_bytes(data)
    assert model_signing("verify", "key", untarred, *options).returncode != 0, "and it looks at the weights"


def test_our_reader_takes_its_signature(world, one, untarred, tmp_path):
    sealed = (world.north.folder / "signing.pem").read_bytes()
    key = serialization.load_pem_private_key(sealed, PASSPHRASE.encode())
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # for the tool, which asks for a passphrase at a terminal
    (tmp_path / "signing.pem").write_bytes(plain)
    (untarred / "signature.json").unlink()
    made = tmp_path / "signature.json"
    done = model_signing("sign", "key", untarred, "--signature", made, "--private_key", tmp_path / "signing.pem")
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {**members(one), "signature.json": made.read_bytes()}
    one.write_bytes(packed(parts))
    facts, _ = world.receive(one, 2, tmp_path / "out")
    assert facts.signer["name"] == "north"
    one.write_bytes(packed({**parts, "run.yaml": parts["run.yaml"] + b"\n"}))
    with pytest.raises(BundleError, check=lambda error: error.code == "signature_invalid"):
        world.receive(one, 2, tmp_path / "out")


def test_plain_tar_programs_read_the_members_in_order(one, tmp_path):
    listed = subprocess.run(["tar", "tf", one], capture_output=True, text=True, check=True).stdout.split()
    assert listed == list(members(one))
    assert Path(one).stat().st_size == sum(len(member(n, c)) for n, c in members(one).items()) + 1024
