"""What changed from one bundle to another."""

from __future__ import annotations

from typing import Any

import numpy as np

from relay_core.bundle import weights
from relay_core.bundle.reader import Opened


def differences(first: Opened, second: Opened) -> dict[str, Any]:
    """Facts that differ, tensors that only one has, and how far each network moved.

    A network's distance is the L2 norm of the difference over that of the first, over the tensors of both.
    """
    a, b = first.facts.to_json(), second.facts.to_json()
    common = [name for name in weights.ordered(first.table) if second.table.get(name, ("", ()))[1] == first.table[name][1]]
    moved: dict[str, list[float]] = {}
    here, there = weights.locate(first.table), weights.locate(second.table)
    with first.stored.open("rb") as left, second.stored.open("rb") as right:
        for name in common:
            sums = moved.setdefault(name.split("/")[1], [0.0, 0.0])
            for x, y in zip(_values(left, here[name]), _values(right, there[name]), strict=True):
                sums[0] += float(np.square(x - y).sum())
                sums[1] += float(np.square(x).sum())
    shown = [key for key in a if key not in ("history", "size", "file_sha256")]
    return {
        "facts": {key: [a[key], b[key]] for key in shown if a[key] != b[key]},
        "only_first": sorted(first.table.keys() - second.table.keys()),
        "only_second": sorted(second.table.keys() - first.table.keys()),
        "other_shape": sorted((first.table.keys() & second.table.keys()) - set(common)),
        "moved": {name: round((d / n) ** 0.5, 6) if n else 0.0 for name, (d, n) in moved.items()},
        "same_run_file": first.members["run.yaml"] == second.members["run.yaml"],
        "common_hops": sum(x == y for x, y in zip(first.history, second.history, strict=False)),
    }


def differences_text(found: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [f"{key}: {old} -> {new}" for key, (old, new) in found["facts"].items()]
    lines.append(f"hops in common: {found['common_hops']}; run file {'the same' if found['same_run_file'] else 'differs'}")
    for key, word in (
        ("only_first", "only in the first"),
        ("only_second", "only in the second"),
        ("other_shape", "other shape"),
    ):
        lines += [f"{word}: {name}" for name in found[key]]
    lines += [f"{name} moved by {100 * share:.2f} % of its norm" for name, share in found["moved"].items()]
    return "\n".join(lines)


def _values(file: Any, tensor: weights.Stored) -> Any:
    """All values at once: pieces of two precisions would not pair up."""
    return [np.concatenate([part.astype(np.float64) for part in weights.chunks(file, tensor)] or [np.zeros(0)])]
