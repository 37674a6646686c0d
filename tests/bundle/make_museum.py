"""Makes this version's room of the museum: small bundles, with the keys of who may read them.

    python -m tests.bundle.make_museum tests/bundle/museum

Once a version is released, its room is never made again: what it holds is what sites have on their shelves.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

import relay_core
from relay_core.bundle import signed_report
from tests.bundle.kit import World

PYRAMID = {"channel_base": 64, "channel_max": 4}
GENERATOR = {"mapping_kwargs": {"num_layers": 1}, "synthesis_kwargs": PYRAMID}
MODEL = {
    "img_resolution": 16, "z_img_dim": 2, "z_label_dim": 2, "c_img_dim": 3, "c_label_dim": 3, "w_img_dim": 2,
    "w_label_dim": 2,
    "G_img_kwargs": GENERATOR, "G_label_kwargs": GENERATOR, "D_img_kwargs": PYRAMID, "D_label_kwargs": PYRAMID,
    "solver_kwargs": {"backbone": "plain", "base_channels": 2, "bilinear": True}, "generator_ema_kimg": 0,
}  # fmt: skip
"""The smallest networks that there are."""


def main() -> None:
    """Train, export, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("museum", type=Path)
    room = parser.parse_args().museum / relay_core.__version__
    torch.set_num_threads(1)
    room.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        world = World.make(Path(work) / "world", model={"kwargs": MODEL})
        shelf = Path(work) / "shelf"
        world.export(1, shelf / "plain.relay")
        world.export(1, shelf / "half.relay", half=True)
        world.export(1, shelf / "sealed.relay", half=True, recipient="south")
        world.export(2, shelf / "second.relay", half=True)
        checkpoint = world.checkpoint(1)
        signed_report.sign_report(
            checkpoint.parent / "scores.json", checkpoint, world.run, world.north, room / "report.json"
        )
        for path in shelf.glob("*.relay"):
            shutil.copy(path, room)
        for keys in (world.south, world.west):  # what a recipient needs; nobody signs in a museum
            shutil.copytree(keys.folder, room / keys.card.name, ignore=shutil.ignore_patterns("signing.pem"))
        shutil.copy(world.run_file, room / "run.yaml")
        shutil.copy(world.north.folder / "card.json", room / "card.json")


if __name__ == "__main__":
    main()
