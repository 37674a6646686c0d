"""A model goes from hospital to hospital by the command line alone."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from relay_core.config import load_run
from relay_core.engine import RelayRun
from relay_core.errors import BundleError
from tests.bundle.kit import acquaint, make_site
from tests.bundle.mutations import snapshot
from tests.conftest import Toy

REFUSED = BundleError.exit_code


@pytest.fixture(autouse=True)
def _no_passphrase_from_outside(monkeypatch):
    for name in ("RELAY_KEY_PASSPHRASE", "RELAY_KEY_PASSPHRASE_FILE", "RELAY_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made(phantom_data, tmp_path_factory):
    """Keys of three hospitals, and what the first of them has trained."""
    toy = Toy(phantom_data, tmp_path_factory.mktemp("made"))
    run = load_run(toy.write(sites=3))
    RelayRun(run, toy.folder / "north", toy.data, torch.device("cpu"), only=1)()
    acquaint(*(make_site(toy.folder / "keys" / name, name) for name in ("north", "south", "west")))
    return toy.folder


@pytest.fixture
def sites(made, toy):
    """The hospitals' key folders."""
    shutil.copytree(made / "keys", toy.folder / "keys")
    return {name: toy.folder / "keys" / name for name in ("north", "south", "west")}


@pytest.fixture
def trained(made, toy):
    """The run file of three sites; the first one's training is in the folder `north`."""
    shutil.copytree(made / "north", toy.folder / "north")
    return toy.write(sites=3)


def error_of(done):
    assert done.returncode == REFUSED, done.stderr
    assert "Traceback" not in done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert done.stderr == f"error: {last['message']}\n"
    return last["error"]


def bundle_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["bundle"]


def test_two_hops_then_the_matrix(toy, trained, sites, here):
    run, folder = trained, toy.folder
    first = bundle_of(here("export", folder / "north/task_1", "--run", run, "--keys", sites["north"], "--to", "south",
                           "--out", folder / "stick/one.relay", "--json"))  # fmt: skip
    assert first["hop"] == 1
    assert first["metrics"]["Domain1"]["dice_per_sample"] is not None

    options = ["--run", run, "--site", 2, "--keys", sites["south"], "--out", folder / "south", "--json"]
    assert bundle_of(here("import", folder / "stick/one.relay", *options))["digest"] == first["digest"]
    assert error_of(here("import", folder / "stick/one.relay", *options)) == "bundle_used"
    common = ["--run", run, "--data-root", toy.data]
    done = here("train", run, "--site", 2, "--data-root", toy.data, "--out", folder / "south", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(here("inspect", folder / "south/task_2", "--json").stdout)
    assert facts["sites_before"] == {"Domain1": {"id": 0, "frequency": 8}}, "it knows the first site from its generators"

    made = ["export", folder / "south/task_2", "--run", run, "--keys", sites["south"], "--out", folder / "stick/two.relay"]
    assert error_of(here(*made, "--json")) == "bundle_incomplete"
    parent = folder / "south/bundle/provenance.json"
    second = bundle_of(here(*made, "--parent", parent, "--half", "--json"))
    assert second["parent"] == first["digest"]
    assert [hop["signer"] for hop in second["history"]] == ["north", "south"]

    options = ["--run", run, "--site", 3, "--keys", sites["west"], "--out", folder / "west"]
    done = here("import", folder / "stick/two.relay", *options)
    assert done.returncode == 0, done.stderr
    assert "accepted; the next site starts from" in done.stdout
    imported = folder / "west/task_2"
    assert here("evaluate", imported, *common, "--out", folder / "scored").returncode == 0
    assert here("samples", imported, "--out", folder / "samples.png", "--per-site", 1).returncode == 0
    assert json.loads(here("inspect", imported, "--json").stdout)["site"] == "Domain2"
    done = here("train", run, "--site", 3, "--data-root", toy.data, "--out", folder / "west", "--json")
    assert done.returncode == 0, done.stderr
    assert here("train", run, "--site", 3, "--data-root", toy.data, "--out", folder / "west", "--resume").returncode == 0

    reports = []
    for name, number in (("north", 1), ("south", 2), ("west", 3)):
        checkpoint, out = folder / name / f"task_{number}", folder / f"{name}.json"
        signed = here("report", "sign", checkpoint / "scores.json", "--checkpoint", checkpoint, "--run", run, "--keys",
                      sites[name], "--out", out, "--json")  # fmt: skip
        assert json.loads(signed.stdout)["report"]["by"] == name
        reports.append(out)
    done = here("report", "matrix", *reports, "--run", run, "--keys", sites["north"], "--out", folder / "matrix")
    assert done.returncode == 0, done.stderr
    assert "| Domain3 |" in done.stdout
    assert (folder / "matrix/dice_per_sample.json").is_file()
    reports[1].write_bytes(reports[1].read_bytes().replace(b'"sig":"M', b'"sig":"N'))
    done = here("report", "matrix", *reports, "--run", run, "--keys", sites["north"], "--json")
    assert error_of(done) == "signature_invalid"


def test_looking_at_bundles(toy, trained, sites, here):
    made = ["export", toy.folder / "north/task_1", "--run", trained, "--keys", sites["north"], "--out"]
    bundle_of(here(*made, toy.folder / "a.relay", "--json"))
    bundle_of(here(*made, toy.folder / "b.relay", "--half", "--json"))
    nobody = toy.folder / "nobody"
    verified = here("bundle", "verify", toy.folder / "a.relay", "--keys", sites["south"])
    assert verified.returncode == 0
    assert "trusted here" in verified.stdout
    assert error_of(here("bundle", "verify", toy.folder / "a.relay", "--keys", nobody, "--json")) == "signer_unknown"
    assert "NOT trusted here" in here("bundle", "inspect", toy.folder / "a.relay", "--keys", nobody).stdout
    assert here("bundle", "inspect", toy.folder / "a.relay", "--card", "--keys", nobody).stdout.startswith(
        "# Relay model, hop 1"
    )
    assert "hop 1" in here("bundle", "history", toy.folder / "a.relay", "--keys", nobody).stdout
    (record,) = json.loads(here("bundle", "history", toy.folder / "a.relay", "--json", "--keys", nobody).stdout)
    assert record["site"] == "Domain1"
    two = [toy.folder / "a.relay", toy.folder / "b.relay"]
    found = json.loads(here("bundle", "diff", *two, "--json", "--keys", nobody).stdout)
    assert found["facts"]["half"] == [False, True]
    assert 0 < found["moved"]["solver"] < 1e-3
    assert "half: False -> True" in here("bundle", "diff", *two, "--keys", nobody).stdout
    assert not nobody.exists()


def test_scoring_a_bundle_does_not_use_it_up(toy, trained, sites, here):
    facts = bundle_of(here("export", toy.folder / "north/task_1", "--run", trained, "--keys", sites["north"], "--out",
                           toy.folder / "one.relay", "--json"))  # fmt: skip
    options = [toy.folder / "one.relay", "--run", trained, "--keys", sites["south"], "--out", toy.folder / "south", "--json"]
    for more in (["--evaluate"], ["--evaluate"], ["--site", 2]):
        assert bundle_of(here("import", *options, *more))["digest"] == facts["digest"]
    assert error_of(here("import", *options, "--site", 2)) == "bundle_used"
    assert bundle_of(here("import", *options, "--evaluate"))["digest"] == facts["digest"]


def test_what_a_service_knows_comes_from_a_file(toy, trained, sites, here):
    facts = bundle_of(here("export", toy.folder / "north/task_1", "--run", trained, "--keys", sites["north"], "--out",
                           toy.folder / "one.relay", "--json"))  # fmt: skip
    known = toy.folder / "known.json"
    options = [
        "import",
        toy.folder / "one.relay",
        "--known",
        known,
        "--keys",
        sites["south"],
        "--out",
        toy.folder / "o",
        "--json",
    ]
    spent = {key: facts[key] for key in ("digest", "run", "hop", "created_at")}
    for runs, imported, wanted in (
        ([{"file": "run.yaml", "site": 2}], [], None),
        ([{"file": str(trained), "site": 3}], [], "hop_out_of_order"),
        ([], [], "bundle_other_run"),
        ([{"file": "run.yaml", "site": 2}], [spent], "bundle_used"),
        ([{"file": "run.yaml", "site": 2}], [{**spent, "digest": "0" * 64, "hop": 2}], "bundle_stale"),
    ):
        known.write_text(json.dumps({"runs": runs, "imported": imported}))
        done = here(*options, "--json")
        assert (bundle_of(done)["digest"] == facts["digest"]) if wanted is None else (error_of(done) == wanted)
    assert not (toy.folder / "o/imports.json").exists()
    assert here("import", toy.folder / "one.relay", "--out", toy.folder / "o").returncode == 2, "--run or --known"


def test_a_refused_bundle_leaves_nothing(toy, trained, sites, here):
    made = ["export", toy.folder / "north/task_1", "--run", trained, "--keys", sites["north"], "--to", "south"]
    bundle_of(here(*made, "--out", toy.folder / "one.relay", "--json"))
    data = bytearray((toy.folder / "one.relay").read_bytes())
    data[len(data) // 2] ^= 1
    (toy.folder / "spoilt.relay").write_bytes(data)
    (toy.folder / "south").mkdir()
    before = snapshot(toy.folder)
    options = ["--run", trained, "--site", 2, "--keys", sites["south"], "--out", toy.folder / "south", "--json"]
    assert error_of(here("import", toy.folder / "spoilt.relay", *options)) == "bundle_damaged"
    assert snapshot(toy.folder) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_nothing_decrypted_stays(toy, trained, sites, here, number):
    made = ["export", toy.folder / "north/task_1", "--run", trained, "--keys", sites["north"], "--to", "south"]
    bundle_of(here(*made, "--out", toy.folder / "one.relay", "--json"))
    out = toy.folder / "south"
    options = ["--run", trained, "--site", 2, "--keys", sites["south"], "--out", out]
    plain = ["env", "--default-signal=INT"]  # tests that run in a shell's background ignore it
    command = [*plain, sys.executable, "-m", "relay_core", "import", toy.folder / "one.relay", *options]
    passphrase = toy.folder / "passphrase"  # nobody writes it: the import waits for it, with its private folder open
    os.mkfifo(passphrase)
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RELAY_KEY_PASSPHRASE_FILE": str(passphrase)},
    ) as process:  # fmt: skip
        for _ in range(600):
            with contextlib.suppress(OSError):  # ENXIO: nobody reads yet
                writer = os.open(passphrase, os.O_WRONLY | os.O_NONBLOCK)
                break
            time.sleep(0.05)
        else:
            process.kill()
            pytest.fail(f"it never asked for the passphrase: {process.communicate()}")
        assert list(out.glob(".private-*"))
        process.send_signal(number)
        process.communicate()
        os.close(writer)
    assert process.returncode != 0
    assert list(out.iterdir()) == []


def test_keys_from_the_command_line(toy, sites, here):
    north, card = sites["north"], sites["south"] / "card.json"
    new = toy.folder / "east"
    done = here("keys", "create", "--keys", new, "--name", "east", "--generate-passphrase")
    assert done.returncode == 0, done.stderr
    shown = here("keys", "fingerprint", new / "card.json").stdout.splitlines()
    assert shown[0] == f"east: {done.stdout.strip().rpartition(': ')[2]}"
    assert here("keys", "fingerprint", "--keys", new).stdout.splitlines() == shown
    assert here("keys", "create", "--keys", new, "--name", "again", "--generate-passphrase").returncode == REFUSED
    assert here("keys", "trust", new / "card.json", "--keys", north, "--run", "a" * 64).returncode == 0
    assert f"trusted for run {'a' * 12}  east" in here("keys", "list", "--keys", north).stdout
    assert here("keys", "trust", new / "card.json", "--keys", north).returncode == 0
    listed = json.loads(here("keys", "list", "--keys", north, "--json").stdout)
    assert sorted(entry["card"]["name"] for entry in listed) == ["east", "north", "south", "west"]
    assert here("keys", "revoke", shown[1][:12], "--keys", north).returncode == 0
    lines = here("keys", "list", "--keys", north).stdout.splitlines()
    assert [line.split()[-1] for line in lines if "revoked" in line] == ["east"]
    changed = card.read_text().replace('"south"', '"North"')
    (toy.folder / "changed.json").write_text(changed)
    assert here("keys", "trust", toy.folder / "changed.json", "--keys", north).returncode == REFUSED
    for name in ("a\nb", "=1+1", "a|b", "<b>"):
        done = here("keys", "create", "--keys", toy.folder / "k", "--name", name, "--generate-passphrase")
        assert done.returncode == 2
        assert "letters of any language" in " ".join(done.stderr.replace("│", " ").split())
    assert not (toy.folder / "k").exists()


def test_a_short_passphrase_makes_no_key(toy, here, monkeypatch):
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", "short")
    assert here("keys", "create", "--keys", toy.folder / "k", "--name", "north").returncode == REFUSED
    assert not (toy.folder / "k").exists()


def test_of_two_imports_at_once_one_is_refused(toy, trained, sites, here):
    made = ["export", toy.folder / "north/task_1", "--run", trained, "--keys", sites["north"]]
    bundle_of(here(*made, "--out", toy.folder / "one.relay", "--json"))
    options = ["--run", trained, "--site", 2, "--keys", sites["south"], "--out", toy.folder / "south", "--json"]
    command = [sys.executable, "-m", "relay_core", "import", toy.folder / "one.relay", *options]
    running = [subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    last = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    assert sorted(process.returncode for process in running) == [0, REFUSED]
    assert [line["error"] for line in last if "error" in line] == ["bundle_used"]
    assert len(json.loads((toy.folder / "south/imports.json").read_text())) == 1
