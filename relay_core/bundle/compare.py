"""Compares two checked bundles: their facts, tensors, networks and histories."""

from __future__ import annotations

from typing import Any

import numpy as np

from relay_core.bundle import weights
from relay_core.bundle.reader import Opened


def differences(first: Opened, second: Opened) -> dict[str, Any]:
    """Return what differs between two bundles: facts, tensors that only one has, and how far each network moved.

    A network's distance is the L2 norm of the difference of its weights, divided by the L2 norm of its weights in the first
    bundle; only tensors that both bundles have in the same shape count.
    """
    first_facts, second_facts = first.facts.to_json(), second.facts.to_json()
    common_names = [
        name for name in weights.ordered(first.table) if second.table.get(name, ("", ()))[1] == first.table[name][1]
    ]
    sums_by_network: dict[str, list[float]] = {}
    first_places, second_places = weights.locate(first.table), weights.locate(second.table)
    with first.stored.open("rb") as first_file, second.stored.open("rb") as second_file:
        for name in common_names:
            sums = sums_by_network.setdefault(name.split("/")[1], [0.0, 0.0])
            for x, y in zip(_values(first_file, first_places[name]), _values(second_file, second_places[name]), strict=True):
                sums[0] += float(np.square(x - y).sum())
                sums[1] += float(np.square(x).sum())
    compared_keys = [key for key in first_facts if key not in ("history", "size", "file_sha256")]
    return {
        "facts": {
            key: [first_facts[key], second_facts[key]] for key in compared_keys if first_facts[key] != second_facts[key]
        },
        "only_first": sorted(first.table.keys() - second.table.keys()),
        "only_second": sorted(second.table.keys() - first.table.keys()),
        "other_shape": sorted((first.table.keys() & second.table.keys()) - set(common_names)),
        "moved": {name: round((d / n) ** 0.5, 6) if n else 0.0 for name, (d, n) in sums_by_network.items()},
        "same_run_file": first.members["run.yaml"] == second.members["run.yaml"],
        "common_hops": sum(x == y for x, y in zip(first.history, second.history, strict=False)),
    }


def differences_text(found: dict[str, Any]) -> str:
    """Render the result of `differences` as lines of text."""
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
    """Return a tensor's values as a list with one flat float64 array.

    Chunks are equal in bytes, so those of a float16 and a float32 tensor would not pair up.
    """
    return [np.concatenate([part.astype(np.float64) for part in weights.chunks(file, tensor)] or [np.zeros(0)])]
