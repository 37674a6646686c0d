"""Exported models: parity of every solver with torch, and what fp16 and int8 cost and save.

python -m benchmarks.export zoo
python -m benchmarks.export precision --trained demo/hospital-3/... --run demo/phantom.yaml --data demo/phantoms
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from relay_core.config import SolverSettings, load_run
from relay_core.engine import checkpoint as checkpoints
from relay_core.engine import settings_of, site_data
from relay_core.export import onnx as exporting
from relay_core.inference import KEY, ModelFacts, OnnxModel, ServedSolver
from relay_core.models import make_solver

NORMS = ("batch", "instance", "group", "none")
ACTIVATIONS = ("relu", "lrelu", "elu", "silu")


def zoo() -> None:
    """Largest difference of a logit to torch's, over four shapes and batches, untrained weights, 64 pixels."""
    settings = load_run("fundus").sites()[0]
    facts = ModelFacts(("a", "b", "c"), 3, 64, (0.0, 1.0), None, "fp32", "0" * 64, "0" * 64, ("A",), {})
    kinds = [("plain", norm, activation) for norm in NORMS for activation in ACTIVATIONS]
    kinds += [("resnet18", norm, "lrelu") for norm in NORMS] + [("resnet50", norm, "lrelu") for norm in ("batch", "group")]
    print("| encoder | norm | activation | upsampling | MB | largest difference |\n|---|---|---|---|--:|--:|")
    for backbone, norm, activation in kinds:
        bilinear = activation in ("relu", "silu")
        torch.manual_seed(0)
        solver = SolverSettings.of(
            "U-Net", backbone=backbone, norm=norm, activation=activation, bilinear=bilinear, base_channels=16
        )
        network = ServedSolver(make_solver(solver).eval(), 64, (-1.0, 1.0)).eval()
        model = exporting._to_onnx(network, settings)
        entry = model.metadata_props.add()
        entry.key, entry.value = KEY, facts.to_json()
        content = model.SerializeToString()
        proof = exporting.prove(content, network, settings, {}, "fp32")
        worst = max(case["max_abs_difference"] for case in proof.parity)
        up = "bilinear" if bilinear else "transposed"
        print(f"| {backbone} | {norm} | {activation} | {up} | {len(content) / 1e6:.1f} | {worst:.1e} |", flush=True)


def precision(trained: Path, run: str, data: Path, repeat: int) -> None:
    """Size, milliseconds of an image (alternating, medians) and Dice of each precision, one thread and batch 1."""
    checkpoint, loaded = checkpoints.find(trained, print), load_run(run)
    settings = settings_of(checkpoint)
    tests, training = (site_data(checkpoint, settings, loaded, data, split) for split in ("test", "train"))
    exporting.LOSS = 1.0  # to show what would be refused, too
    made = {
        kind: exporting.export(checkpoint, tests, kind, training[str(checkpoint.meta["site"])])
        for kind in ("fp32", "fp16", "int8")
    }
    sessions = {kind: OnnxModel(content, "cpu", threads=1) for kind, (content, _) in made.items()}
    side = settings.resolution
    image = np.random.default_rng(0).random((1, settings.data.img_channels, side, side), dtype=np.float32)
    times: dict[str, list[float]] = {kind: [] for kind in made}
    for _ in range(repeat):
        for kind, session in sessions.items():
            begin = time.perf_counter()
            session(image, ("mask",))
            times[kind].append((time.perf_counter() - begin) * 1e3)
    names = list(tests)
    print(f"| precision | MB | ms | logits off by | {' | '.join(f'Dice {name}' for name in names)} | pixels that differ |")
    print("|---|--:|--:|--:|" + "--:|" * (len(names) + 1))
    for kind, (content, proof) in made.items():
        dice = " | ".join(f"{proof.tests[name]['dice']:.4f}" for name in names)
        worst = max(case["max_abs_difference"] for case in proof.parity)
        share = sum(f["differ"] for f in proof.tests.values()) / sum(f["pixels"] for f in proof.tests.values())
        speed = statistics.median(times[kind])
        print(f"| {kind} | {len(content) / 1e6:.1f} | {speed:.2f} | {worst:.1e} | {dice} | {share:.3%} |")


def main() -> None:
    """Choose a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=["zoo", "precision"])
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--run")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--repeat", type=int, default=200)
    args = parser.parse_args()
    if args.table == "zoo":
        zoo()
    else:
        precision(args.trained, args.run, args.data, args.repeat)


if __name__ == "__main__":
    main()
