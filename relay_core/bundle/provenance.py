"""Checks whether a bundle is the one that this site may import next: its run, its turn, and that it is no old one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay_core.bundle.facts import BundleFacts
from relay_core.config import RunFile, load_run
from relay_core.errors import BundleError


@dataclass(frozen=True)
class KnownRelays:
    """Holds the runs that a site takes part in, and the bundles that it has imported."""

    runs: dict[str, tuple[RunFile, int | None]]
    """Maps a run's digest to its run file and to this site's number in it (task_id); None where it does not train in it."""
    imported: list[dict[str, Any]]
    """The bundles that were accepted, each as {digest, run, hop, created_at}."""

    @classmethod
    def read(cls, path: Path) -> KnownRelays:
        """Read a JSON file `{"runs": [{"file", "site"}], "imported": [...]}`; its paths are relative to its folder."""
        content = json.loads(path.read_text())
        runs = [(load_run(path.parent / entry["file"]), entry["site"]) for entry in content["runs"]]
        return cls({run.digest: (run, site) for run, site in runs}, list(content["imported"]))


def check(facts: BundleFacts, known: KnownRelays, *, evaluate: bool = False) -> RunFile:
    """Require that a bundle is due at this site, and return the run file as this site has it.

    Args:
        facts: the facts of a checked bundle.
        known: the runs and the earlier imports of this site.
        evaluate: whether the model is only to be scored, not trained on; order and age do not matter then.

    Raises:
        BundleError: `bundle_other_run` where the run is not known here; `bundle_used` where the bundle was imported before;
            `hop_out_of_order` where it is not that of the site before; `bundle_stale` where a later one was imported.
    """
    if facts.run not in known.runs:
        raise BundleError(
            "bundle_other_run", f"it belongs to run {facts.run[:12]}..., which is not known here; upload that run file first"
        )
    run, site = known.runs[facts.run]
    if any(old["digest"] == facts.digest for old in known.imported):
        raise BundleError("bundle_used", f"this very bundle (hop {facts.hop} by {facts.site}) was imported here before")
    if evaluate:
        return run
    if site is not None:
        _check_turn(facts, run, site)
    _check_age(facts, [old for old in known.imported if old["run"] == facts.run])
    return run


def _check_turn(facts: BundleFacts, run: RunFile, site: int) -> None:
    position = run.task_ids.index(site) if site in run.task_ids else len(run.task_ids)
    due_task_id = run.task_ids[position - 1] if position else None
    if facts.task_id != due_task_id:
        expectation = (
            f"{run.site(due_task_id).name}'s is due"
            if due_task_id is not None
            else "this site is the first and starts from nothing"
        )
        raise BundleError("hop_out_of_order", f"it is {facts.site}'s (hop {facts.hop}); {expectation}")


def _check_age(facts: BundleFacts, imports_of_run: Sequence[dict[str, Any]]) -> None:
    for earlier in imports_of_run:
        if earlier["hop"] > facts.hop or (earlier["hop"] == facts.hop and earlier["created_at"] >= facts.created_at):
            raise BundleError(
                "bundle_stale", f"it is older than the bundle of hop {earlier['hop']} that was imported here before"
            )
