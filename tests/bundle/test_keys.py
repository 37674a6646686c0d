import base64
import json
import stat

import pytest

from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.trust import Card, spoken_fingerprint
from relay_core.cli.keys import trust
from relay_core.errors import BundleError
from tests.bundle.kit import PASSPHRASE, make_site


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path / "keys", "north")


def refusal(code):
    return pytest.raises(BundleError, check=lambda error: error.code == code)


def test_private_keys_are_encrypted_and_the_owners_alone(site):
    for name in ("signing.pem", "age.key"):
        path = site.folder / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"AGE-SECRET-KEY" not in path.read_bytes()
    assert b"ENCRYPTED PRIVATE KEY" in (site.folder / "signing.pem").read_bytes()
    assert (site.folder / "age.key").read_bytes() != (
        make_site(site.folder.parent / "twin", "north").folder / "age.key"
    ).read_bytes()
    assert "PRIVATE" not in (site.folder / "card.json").read_text()
    made = KeyFolder(site.folder.parent / "other")
    made.keep_passphrase()
    assert stat.S_IMODE((made.folder / "passphrase").stat().st_mode) == 0o600
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert len(made.passphrase()) >= 20


@pytest.mark.parametrize("use", ["sign", "identity"])
def test_a_wrong_passphrase_opens_nothing(site, monkeypatch, use):
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", "not the passphrase")
    with refusal("key_locked"):
        site.sign(b"message") if use == "sign" else site.identity()


def test_where_the_passphrase_comes_from(site, monkeypatch, tmp_path):
    file = tmp_path / "secret"
    file.write_text("from a file\n")
    asked = KeyFolder(site.folder, ask=lambda prompt: "from a person")
    assert asked.passphrase() == PASSPHRASE, "the file beside the keys, before anybody is asked"
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", "from the environment")
    assert site.passphrase() == "from the environment"
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE_FILE", str(file))
    assert site.passphrase() == "from a file"
    file.write_bytes(b"\xff\xfe\x00")
    with refusal("key_locked"):
        site.passphrase()
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE_FILE", str(tmp_path / "none"))
    with refusal("key_locked"):
        site.passphrase()
    monkeypatch.undo()
    (site.folder / "passphrase").unlink()
    assert asked.passphrase() == "from a person"
    with refusal("key_locked"):
        site.passphrase()


def test_no_key_is_said_and_a_key_is_never_overwritten(site, tmp_path):
    for use in (lambda: KeyFolder(tmp_path / "none").card, lambda: KeyFolder(tmp_path / "none").sign(b""),
                lambda: KeyFolder(tmp_path / "none").identity(), lambda: site.create("again", PASSPHRASE)):  # fmt: skip
        with refusal("key_missing"):
            use()
    (site.folder / "card.json").unlink()
    before = (site.folder / "signing.pem").read_bytes()
    with refusal("key_missing"):
        site.create("again", PASSPHRASE)
    assert (site.folder / "signing.pem").read_bytes() == before


def test_a_card_that_was_changed_on_the_way_is_refused(site, tmp_path):
    other = make_site(tmp_path / "other", "south")
    data = json.loads(site.card.to_json())
    for change in ({"name": "somebody"}, {"age": other.card.age}, {"public_key": other.card.public_key}):
        with refusal("signature_invalid"):
            Card.from_json(json.dumps({**data, **change}, sort_keys=True, separators=(",", ":")).encode(), "card.json")
    assert Card.from_json(site.card.to_json() + b"\n", "card.json") == site.card


def test_a_card_that_its_owner_made_to_deceive_is_refused(site):
    """Its proof is right: a site signs for itself. What it may not do is paint over its fingerprint, or break an export."""
    for name, age in (("north\r\x1b[2Ktrusted: somebody", None), ("", None), ("north", "age1nonsense"), ("north", "")):
        bare = Card(name, site.card.public_key, site.card.age if age is None else age)
        (proof,) = site.sign(bare.message())
        with refusal("bundle_damaged"):
            Card.from_json(
                Card(bare.name, bare.public_key, bare.age, base64.b64encode(proof).decode()).to_json(), "card.json"
            )


@pytest.mark.parametrize("data", [
    b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"format":1}', b'{"format":2,"name":"a"}',
    b'{"age":1,"format":1,"name":"a","proof":"","public_key":""}',
])  # fmt: skip
def test_what_is_no_card_is_refused(data):
    with refusal("bundle_damaged"):
        Card.from_json(data, "card.json")


def test_a_key_of_another_kind_verifies_nothing(site):
    unknown = base64.b64encode(bytes.fromhex("3014300b06092a864886f70d0109ff03050001020304")).decode()
    card = json.loads(site.card.to_json())
    card["public_key"] = f"-----BEGIN PUBLIC KEY-----\n{unknown}\n-----END PUBLIC KEY-----\n"
    with refusal("signature_invalid"):
        Card.from_json(json.dumps(card, sort_keys=True, separators=(",", ":")).encode(), "card.json")


def test_trust_for_one_run_after_another(site, tmp_path):
    other, roster = make_site(tmp_path / "other", "south"), site.roster
    key = other.card.fingerprint
    with refusal("signer_unknown"):
        roster.require(key, "run 1", "the bundle")
    roster.trust(other.card, "run 1")
    roster.trust(other.card, "run 2")
    site.save(roster)
    for run in ("run 1", "run 2"):
        assert site.roster.require(key, run, "the bundle") == other.card, "trust for the second run does not end the first"
    with refusal("signer_unknown"):
        site.roster.require(key, "run 3", "the bundle")
    assert site.roster.find("south").card == other.card
    roster.trust(other.card)
    assert roster.require(key, "run 3", "the bundle") == other.card
    assert len([entry for entry in roster.entries if entry.card == other.card]) == 1


def test_a_revoked_key_is_revoked_for_every_run_until_it_is_trusted_anew(site, tmp_path):
    other, roster = make_site(tmp_path / "other", "south"), site.roster
    roster.trust(other.card, "run 1")
    roster.trust(other.card, "run 2")
    roster.revoke(spoken_fingerprint(other.card.fingerprint))
    site.save(roster)
    for run in ("run 1", "run 2", "run 3", None):
        with refusal("signer_revoked"):
            site.roster.require(other.card.fingerprint, run, "the bundle")
    roster.trust(other.card, "run 2")
    assert roster.require(other.card.fingerprint, "run 2", "the bundle") == other.card
    with refusal("signer_unknown"):
        roster.require(other.card.fingerprint, "run 1", "the bundle")


def test_two_sites_of_one_name_are_told_apart(site, tmp_path):
    roster = site.roster
    first, second = (make_site(tmp_path / name, "south").card for name in "ab")
    roster.trust(first)
    roster.trust(second)
    with refusal("signer_unknown"):
        roster.find("south")
    assert roster.find(second.fingerprint[:16]).card == second
    assert roster.find(spoken_fingerprint(first.fingerprint)).card == first


def test_a_site_trusts_itself_and_may_stop_that(site):
    assert site.roster.require(site.card.fingerprint, None, "the bundle") == site.card
    roster = site.roster
    roster.revoke("north")
    site.save(roster)
    with refusal("signer_revoked"):
        site.roster.require(site.card.fingerprint, None, "the bundle")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"entries":[1],"format":1}', '{"entries":[{"card":{}}],"format":1}'])
def test_a_spoilt_roster_trusts_nobody(site, text):
    (site.folder / "roster.json").write_text(text)
    with refusal("bundle_damaged"):
        site.roster  # noqa: B018


def test_a_card_with_a_name_that_no_site_may_have_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", "twelve letters")
    strange = KeyFolder(tmp_path / "strange").create('=HYPERLINK("http://evil")', "twelve letters")
    (tmp_path / "card.json").write_bytes(strange.to_json())
    with pytest.raises(BundleError, match=r"card.json: a site's name has letters.*'='"):
        trust(tmp_path / "card.json", tmp_path / "keys")
    assert not (tmp_path / "keys" / "roster.json").exists()
