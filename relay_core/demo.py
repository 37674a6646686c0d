"""The demo: phantom hospitals, a relay over them, and plain fine-tuning with the same budget beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay_core.data import make_phantoms
from relay_core.errors import RelayError
from relay_core.files import write_atomically
from relay_core.metrics import compare_markdown

if TYPE_CHECKING:
    from relay_core.metrics import ScoreMatrix

TRAIN_IMAGES, TEST_IMAGES, SIZE = 60, 30, 64


def run_demo(out: Path, sites: int, seed: int, play: Callable[..., dict[str, ScoreMatrix]]) -> None:
    """Write phantoms, train both ways, print both matrices. A second call goes on where the first was stopped.

    Args:
        out: folder for everything.
        sites: number of hospitals.
        seed: of phantoms and training.
        play: trains a recipe: (recipe, overrides, out, data root, title=...) -> matrices.
    """
    _check_same(out, {"sites": sites, "seed": seed})
    data = out / "phantoms"
    if not data.is_dir():
        print(f"phantom images of {sites} hospitals: {data}", flush=True)
        make_phantoms(data, sites, TRAIN_IMAGES, TEST_IMAGES, SIZE, seed=seed)
    ids = list(range(1, sites + 1))
    overrides = [f"random_seed={seed}"]
    matrices: dict[str, Any] = {}
    for name, recipe in (("relay", "phantom"), ("sequential", "phantom-sequential")):
        run = _recipe_for(recipe, ids, out)
        matrices[name] = play(str(run), overrides, out / name, data, title=name)["dice_per_sample"]
    for name, matrix in matrices.items():
        print(f"\n{name}\n\n{matrix.to_markdown()}")
    gain = matrices["relay"].average() - matrices["sequential"].average()
    pictures = [out / name / "evaluation" / "dice_per_sample.png" for name in matrices]
    last = out / "relay" / f"task_{sites}"
    print(f"\n{compare_markdown(matrices)}")
    print(f"\nrelay - sequential: {gain:+.3f} mean Dice over all {sites} hospitals after the last one")
    print("pictures: " + ", ".join(map(str, [*pictures, last / "samples.png", last / "predictions.png"])))


def _check_same(out: Path, facts: dict[str, int]) -> None:
    """A folder holds one demo; another number of hospitals or another seed needs another folder."""
    path = out / "demo.json"
    if path.is_file() and json.loads(path.read_text()) != facts:
        raise RelayError(f"{out} holds a demo of other hospitals or another seed; choose another --out, or remove it")
    write_atomically(path, json.dumps(facts).encode())


def _recipe_for(recipe: str, ids: list[int], out: Path) -> Path:
    """A run file that extends a recipe to the hospitals of this demo."""
    sites = "\n".join(f"  - kwargs: {{task_id: {i}, task_name: Domain{i}, img_folder: Domain{i}}}" for i in ids)
    text = f"extends: {recipe}\nall_tasks_datasets:\n{sites}\ncurrent_tasks:\n  task_ids: {ids}\n"
    path = out / f"{recipe}.yaml"
    path.write_text(text)
    return path
