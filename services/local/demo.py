"""Play `relay demo`: hospitals without a network between them, and a courier who carries files from one to the next.

Each hospital runs a whole service of its own: folder, port, key, images. In the end the coordinator builds the score matrix
from the scores that each hospital signed and sent; plain fine-tuning with the same budget stands beside it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from relay_core.bundle import KeyFolder, Roster, collected_matrices, read_report, spoken_fingerprint
from relay_core.config import RunFile, load_run
from relay_core.errors import RelayError
from relay_core.files import write_atomically
from relay_core.metrics import ScoreMatrix, compare_markdown
from services.local.hospital import Hospital

TRAIN_IMAGES, TEST_IMAGES, SIZE = 60, 30, 64


def run_demo(out: Path, sites: int, seed: int, device: str) -> None:
    """Play the whole demo; a second call goes on where the first was stopped.

    Args:
        out: folder for everything.
        sites: number of hospitals.
        seed: seed of phantoms and trainings.
        device: device that the hospitals train on: auto, cpu, cuda or cuda:N.

    Raises:
        RelayError: `out` holds another demo, or a step failed.
    """
    _check_same(out, {"sites": sites, "seed": seed})
    run = _run_file("phantom", sites, seed, out)
    if not (out / "phantoms").is_dir():
        print(f"phantom images of {sites} hospitals: {out / 'phantoms'}", flush=True)
        counts = ["--sites", str(sites), "--train", str(TRAIN_IMAGES), "--test", str(TEST_IMAGES), "--size", str(SIZE)]
        _run_command("phantom", str(out / "phantoms"), *counts, "--seed", str(seed))
    matrix, hospitals = play(run, out, device)
    baseline = _fine_tuning(sites, seed, out, device)
    _print_results(matrix, baseline, hospitals, out)


def play(run: RunFile, out: Path, device: str) -> tuple[ScoreMatrix, list[Hospital]]:
    """Play a relay with one service for each site of a run; the images of site N lie below `out/phantoms/DomainN`.

    Return the matrix that the coordinator builds from the signed scores (Dice per sample), and the hospitals. The courier's
    files are in `out/courier`, the matrices and the last site's pictures in `out/result`.

    Raises:
        RelayError: a step failed.
    """
    hospitals = [_hospital(out, number, device) for number in run.task_ids]
    roster = _exchange_cards(hospitals)
    with contextlib.ExitStack() as stack:
        print("starting a service for each hospital, none of which knows where the others are", flush=True)
        for hospital in hospitals:
            hospital.start()
            stack.callback(hospital.stop)
        for hospital in hospitals:
            hospital.wait_until_up()
        jobs = _train_in_turn(hospitals, run, out)
        _score_everywhere(hospitals, jobs, out)
        for name in ("samples.png", "predictions.png"):
            hospitals[-1].picture(jobs[-1]["id"], name, out / "result" / name)
    return _collect_matrix(roster, run, out), hospitals


def _hospital(out: Path, number: int, device: str) -> Hospital:
    """Set up a hospital that has its own images and nobody else's."""
    home = out / f"hospital-{number}"
    if not (home / "data").is_dir():
        shutil.copytree(out / "phantoms" / f"Domain{number}", home / "data" / f"Domain{number}")
    return Hospital(number, home, device)


def _exchange_cards(hospitals: Sequence[Hospital]) -> Roster:
    """Make each hospital trust the cards of the others; return the coordinator's roster, which trusts all of them."""
    coordinator_roster = Roster([])
    for hospital in hospitals:
        coordinator_roster.trust(hospital.keys.card)
        roster = hospital.keys.roster
        for peer in hospitals:
            if roster.of(peer.keys.card.fingerprint) is None:
                roster.trust(peer.keys.card)
        hospital.keys.save(roster)
        print(f"{hospital.name}: key {spoken_fingerprint(hospital.keys.card.fingerprint)}")
    return coordinator_roster


def _train_in_turn(hospitals: Sequence[Hospital], run: RunFile, out: Path) -> list[dict[str, Any]]:
    """Train at one hospital after the other; the courier carries each bundle on. Return the training jobs."""
    jobs: list[dict[str, Any]] = []
    for hospital in hospitals:
        run_id = hospital.join(run)
        if jobs:
            imported = hospital.receive(_bundle(out, len(jobs)), "train")
            hop = imported["facts"]
            print(
                f"{hospital.name}: accepted hop {hop['hop']} of {hop['site']}, signed by {hop['signer']['name']}", flush=True
            )
        print(f"\n{hospital.name} trains", flush=True)
        jobs.append(hospital.train(run_id))
        facts = hospital.export(jobs[-1]["result"]["checkpoints"][-1], _bundle(out, len(jobs)))
        print(f"courier: {_bundle(out, len(jobs))}, {facts['size'] / 1e6:.1f} MB, {facts['digest'][:16]}...", flush=True)
    return jobs


def _bundle(out: Path, hop: int) -> Path:
    return out / "courier" / f"hop-{hop}.relay"


def _score_everywhere(hospitals: Sequence[Hospital], jobs: Sequence[dict[str, Any]], out: Path) -> None:
    """Have every hospital score every model on images that stay there; only signed scores come back."""
    print("\nevery hospital scores every model on its own test images", flush=True)
    _at_once([partial(_score_at, hospital, jobs[hospital.number - 1], len(hospitals), out) for hospital in hospitals])


def _score_at(hospital: Hospital, job: dict[str, Any], hops: int, out: Path) -> None:
    """Score the models of all hops at one hospital; `job` is the hospital's training, which scored its own model."""
    for hop in range(1, hops + 1):
        target = out / "courier" / f"scores-{hop}-at-{hospital.number}.json"
        if hop == hospital.number:
            hospital.sign(job["result"]["evaluation"], target)
            continue
        # A hospital already has the bundle that it trained from, as an import for training.
        purpose = "train" if hop == hospital.number - 1 else "evaluate"
        hospital.report(hospital.receive(_bundle(out, hop), purpose)["checkpoint_id"], target)


def _at_once(steps: Sequence[Callable[[], object]]) -> None:
    """Run the steps in parallel threads. Raises the first error that a step raised."""
    errors: list[BaseException] = []

    def attempt(step: Callable[[], object]) -> None:
        try:
            step()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _collect_matrix(roster: Roster, run: RunFile, out: Path) -> ScoreMatrix:
    """Collect the signed scores into a matrix, as the coordinator does."""
    keys = KeyFolder(out / "coordinator")
    keys.save(roster)
    reports = [read_report(path, keys) for path in sorted((out / "courier").glob("scores-*.json"))]
    return collected_matrices(reports, run, out / "result")["dice_per_sample"]


def _fine_tuning(sites: int, seed: int, out: Path, device: str) -> ScoreMatrix:
    """Run plain fine-tuning through the same sites, on one machine that has all images; return its matrix."""
    print("\nfor comparison: plain fine-tuning with the same budget", flush=True)
    file = _run_file("phantom-sequential", sites, seed, out).path
    options = ["--data-root", str(out / "phantoms"), "--out", str(out / "sequential"), "--device", device]
    _run_command("train", str(file), *options, "--resume")
    scores = json.loads((out / "sequential" / "evaluation" / "dice_per_sample.json").read_text())
    return ScoreMatrix.from_json(json.dumps(scores))


def _run_command(*arguments: str) -> None:
    process = subprocess.run([sys.executable, "-m", "relay_core", *arguments], check=False, stdout=subprocess.DEVNULL)
    if process.returncode:
        raise RelayError(f"relay {arguments[0]} failed")


def _print_results(matrix: ScoreMatrix, baseline: ScoreMatrix, hospitals: Sequence[Hospital], out: Path) -> None:
    matrices = {"relay": matrix, "sequential": baseline}
    for name, scores in matrices.items():
        print(f"\n{name}\n\n{scores.to_markdown()}")
    print(f"\n{compare_markdown(matrices)}")
    gain = (matrix.average() or 0.0) - (baseline.average() or 0.0)
    print(f"\nrelay - sequential: {gain:+.3f} mean Dice over all {len(hospitals)} hospitals after the last one")
    print(f"\nchain of custody of {_bundle(out, len(hospitals))}, as Hospital 1 sees it:", flush=True)
    command = ["bundle", "history", str(_bundle(out, len(hospitals))), "--keys", str(hospitals[0].keys.folder)]
    subprocess.run([sys.executable, "-m", "relay_core", *command], check=True)
    pictures = [out / "result" / name for name in ("dice_per_sample.png", "samples.png", "predictions.png")]
    print("pictures: " + ", ".join(map(str, [*pictures, out / "sequential" / "evaluation" / "dice_per_sample.png"])))


def _check_same(out: Path, facts: dict[str, int]) -> None:
    """Record the demo's facts in its folder. Raises RelayError where the folder holds a demo with other facts."""
    path = out / "demo.json"
    if path.is_file() and json.loads(path.read_text()) != facts:
        raise RelayError(f"{out} holds a demo of other hospitals or another seed; choose another --out, or remove it")
    write_atomically(path, json.dumps(facts).encode())


def _run_file(recipe: str, sites: int, seed: int, out: Path) -> RunFile:
    """Write and load a run file that extends a recipe to the hospitals of this demo."""
    ids = list(range(1, sites + 1))
    entries = "\n".join(f"  - kwargs: {{task_id: {i}, task_name: Domain{i}, img_folder: Domain{i}}}" for i in ids)
    text = f"extends: {recipe}\ncommon: {{random_seed: {seed}}}\nall_tasks_datasets:\n{entries}\n"
    text += f"current_tasks:\n  task_ids: {ids}\n"
    path = out / f"{recipe}.yaml"
    write_atomically(path, text.encode())
    return load_run(path)
