"""Exported models: parity of every solver with torch, and what fp16 and int8 cost and save.

    python -m benchmarks.export zoo
    python -m benchmarks.export precision --trained CHECKPOINT --run demo/phantom.yaml --data demo/phantoms

Without `--trained` a short relay on phantoms is trained first.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks import served, trained
from benchmarks.record import Record, script
from benchmarks.timing import alternate, ratio, seconds
from relay_core.config import load_run
from relay_core.engine import checkpoint as checkpoints
from relay_core.engine import settings_of, site_data
from relay_core.export import onnx as exporting
from relay_core.inference import OnnxModel

ACTIVATIONS = ("relu", "lrelu", "elu", "silu")
KINDS = [
    *(("plain", norm, activation) for norm in ("batch", "instance", "group", "none") for activation in ACTIVATIONS),
    *(("resnet18", norm, "lrelu") for norm in ("batch", "instance", "group", "none")),
    *(("resnet50", norm, "lrelu") for norm in ("batch", "group")),
]
CPU = torch.device("cpu")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("part", nargs="?", choices=["zoo", "precision"], default="zoo")
    parser.add_argument("--solvers", type=int, default=len(KINDS), help="zoo: the first so many")
    parser.add_argument("--channels", type=int, default=16, help="zoo: feature maps")
    parser.add_argument("--trained", type=Path, help="precision: checkpoint")
    parser.add_argument("--run", help="precision: its run file")
    parser.add_argument("--data", type=Path, help="precision: its data")
    parser.add_argument("--kinds", nargs="+", choices=["fp32", "fp16", "int8"], default=["fp32", "fp16", "int8"])
    parser.add_argument("--repeat", type=int, default=200, help="precision: images")
    trained.arguments(parser)


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill one table."""
    {"zoo": zoo, "precision": precision}[args.part](args, record)


def zoo(args: argparse.Namespace, record: Record) -> None:
    """Largest difference of a logit to torch's, over four shapes and batches, untrained weights, 64 pixels."""
    heads = {"encoder": "", "norm": "", "activation": "", "upsampling": "", "MB": ".1f", "largest difference": ".1e"}
    table = record.table("Parity of exported solvers with torch", heads)
    for backbone, norm, activation in KINDS[: args.solvers]:
        bilinear = activation in ("relu", "silu")
        given = {
            "backbone": backbone,
            "norm": norm,
            "activation": activation,
            "bilinear": bilinear,
            "base_channels": args.channels,
        }
        network, settings = served.solver(
            "fundus", [f"model.kwargs.solver_kwargs.{key}={value}" for key, value in given.items()]
        )
        content = served.packed(network, settings)
        proof = exporting.prove(content, network, settings, {}, "fp32")
        worst = max(case["max_abs_difference"] for case in proof.parity)
        table.add(backbone, norm, activation, "bilinear" if bilinear else "transposed", len(content) / 1e6, worst)


def precision(args: argparse.Namespace, record: Record) -> None:
    """Size, milliseconds of an image (in turn, medians) and Dice of each precision, one thread and batch 1."""
    with TemporaryDirectory() as folder:
        newest, run, data = args.trained, args.run, args.data
        if newest is None:
            relay, data = trained.short_relay(Path(folder), args)
            newest, run = sorted(relay.glob("task_*"))[-1], relay / "run.yaml"
        checkpoint, loaded = checkpoints.find(newest, print), load_run(run)
        settings = settings_of(checkpoint)
        tests, training = (site_data(checkpoint, settings, loaded, data, split) for split in ("test", "train"))
        allowed, exporting.LOSS = exporting.LOSS, 1.0  # to show what would be refused, too
        try:
            made = {
                kind: exporting.export(checkpoint, tests, kind, training[str(checkpoint.meta["site"])])
                for kind in args.kinds
            }
        finally:
            exporting.LOSS = allowed
    sessions = {kind: OnnxModel(content, "cpu", threads=1) for kind, (content, _) in made.items()}
    side = settings.resolution
    image = np.random.default_rng(0).random((1, settings.data.img_channels, side, side), dtype=np.float32)
    runs = {kind: partial(session, image, ("mask",)) for kind, session in sessions.items()}
    times = alternate(runs, args.repeat, partial(seconds, device=CPU))
    heads = {"precision": "", "MB": ".1f", "ms": ".2f", f"{args.kinds[0]} / it": ".2f", "logits off by": ".1e"}
    heads |= {**{f"Dice {name}": ".4f" for name in tests}, "pixels that differ": ".3%"}
    table = record.table("Precision of an exported model", heads)
    for kind, (content, proof) in made.items():
        dice = [proof.tests[name]["dice"] for name in tests]
        worst = max(case["max_abs_difference"] for case in proof.parity)
        share = sum(f["differ"] for f in proof.tests.values()) / sum(f["pixels"] for f in proof.tests.values())
        speed = statistics.median(times[kind]) * 1e3
        table.add(kind, len(content) / 1e6, speed, ratio(times[args.kinds[0]], times[kind]), worst, *dice, share)


main = script(
    __doc__,
    arguments,
    measure,
    toy={**trained.TOY_RELAY, "solvers": 1, "channels": 4, "repeat": 1, "kinds": ["fp32", "int8"]},
)

if __name__ == "__main__":
    main()
