"""Whether a bundle is the one that is due here."""

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
    """What a site knows of its relays."""

    runs: dict[str, tuple[RunFile, int | None]]
    """Run's digest -> its file, and which of its sites this one is (task_id); None: it only looks on."""
    imported: list[dict[str, Any]]
    """{digest, run, hop, created_at} of each bundle that was accepted."""

    @classmethod
    def read(cls, path: Path) -> KnownRelays:
        """From `{"runs": [{"file", "site"}], "imported": [...]}`; files are relative to it."""
        found = json.loads(path.read_text())
        runs = [(load_run(path.parent / entry["file"]), entry["site"]) for entry in found["runs"]]
        return cls({run.digest: (run, site) for run, site in runs}, list(found["imported"]))


def check(facts: BundleFacts, known: KnownRelays, *, evaluate: bool = False) -> RunFile:
    """The run file, as this site has it, of a bundle that is due.

    Args:
        facts: of a checked bundle.
        known: of this site.
        evaluate: it is to be scored only, not trained on: whose turn it is does not matter.

    Raises:
        BundleError: `bundle_other_run`, `bundle_used`, `hop_out_of_order`, `bundle_stale`.
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
    place = run.task_ids.index(site) if site in run.task_ids else len(run.task_ids)
    due = run.task_ids[place - 1] if place else None
    if facts.task_id != due:
        wanted = f"{run.site(due).name}'s is due" if due is not None else "this site is the first and starts from nothing"
        raise BundleError("hop_out_of_order", f"it is {facts.site}'s (hop {facts.hop}); {wanted}")


def _check_age(facts: BundleFacts, earlier: Sequence[dict[str, Any]]) -> None:
    for old in earlier:
        if old["hop"] > facts.hop or (old["hop"] == facts.hop and old["created_at"] >= facts.created_at):
            raise BundleError(
                "bundle_stale", f"it is older than the bundle of hop {old['hop']} that was imported here before"
            )
