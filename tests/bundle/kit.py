"""Three toy hospitals that hand a model on: trained once, with keys and cards exchanged."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relay_core.bundle import canonical, container, history, importer, signing, weights, writer
from relay_core.bundle.facts import BundleFacts
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.provenance import KnownRelays
from relay_core.bundle.values import is_digest
from relay_core.config import RunFile
from relay_core.data import make_phantoms
from relay_core.engine import RelayRun
from relay_core.engine.layout import hand_over_layout
from tests.conftest import Toy

SITES = ("north", "south", "west")
PASSPHRASE = "correct horse battery"


@functools.cache
def _layout(settings_json: str) -> weights.Table:
    from relay_core.config import SiteSettings

    return hand_over_layout(SiteSettings.model_validate_json(settings_json))


def layout(settings: Any) -> weights.Table:
    """`hand_over_layout`, computed once for the same settings."""
    return _layout(settings.model_dump_json())


def make_site(folder: Path, name: str) -> KeyFolder:
    """A site with keys; its passphrase lies beside them."""
    keys = KeyFolder(folder)
    folder.mkdir(parents=True)
    (folder / "passphrase").write_text(PASSPHRASE)
    keys.create(name, PASSPHRASE)
    return keys


def acquaint(*sites: KeyFolder) -> None:
    """Everybody trusts everybody."""
    for site in sites:
        roster = site.roster
        for other in sites:
            if other is not site:
                roster.trust(other.card)
        site.save(roster)


@dataclass
class World:
    """What the tests of bundles share. Nobody writes into it but through `copy`-like helpers."""

    folder: Path
    run: RunFile
    run_file: Path
    data: Path
    north: KeyFolder
    south: KeyFolder
    west: KeyFolder
    stranger: KeyFolder

    @classmethod
    def make(cls, folder: Path, **common: object) -> World:
        """Train three sites, make four keys; the stranger is known to nobody."""
        data = folder / "phantoms"
        make_phantoms(data, 3, train=8, test=5, size=32)
        toy = Toy(data, folder)
        run_file = toy.write(sites=3, **common)
        from relay_core.config import load_run

        run = load_run(run_file)
        RelayRun(run, folder / "trained", data, torch.device("cpu"))()
        keys = [make_site(folder / "keys" / name, name) for name in (*SITES, "stranger")]
        acquaint(*keys[:3])
        return cls(folder, run, run_file, data, *keys)

    def checkpoint(self, site: int) -> Path:
        """The finished training of a site."""
        return sorted((self.folder / "trained" / f"task_{site}").glob("step-*.safetensors"))[-1]

    def export(self, hop: int, target: Path, **options: Any) -> BundleFacts:
        """A bundle of a hop, signed by its site, with the hops before it beside `target`."""
        parent = None
        if hop > 1:
            before = target.parent / f"before-{hop}" / "before.relay"
            if not before.is_file():
                self.export(hop - 1, before)
            parent = writer.Provenance.read(before.parent / "bundle" / "provenance.json")
        checkpoint = self.checkpoint(hop)
        keys = options.pop("keys", getattr(self, SITES[hop - 1]))
        scores = checkpoint.parent / "scores.json"
        return writer.export_bundle(checkpoint, self.run, keys, target, scores=scores, parent=parent, **options)

    def known(self, site: int | None, *imported: dict[str, Any]) -> KnownRelays:
        """What a site of the run knows."""
        return KnownRelays({self.run.digest: (self.run, site)}, list(imported))

    def receive(
        self, path: Path, site: int, out: Path, known: KnownRelays | None = None, **options: Any
    ) -> tuple[BundleFacts, Path]:
        """Import at a site."""
        keys = options.pop("keys", getattr(self, SITES[site - 1]))
        return importer.import_bundle(path, known or self.known(site), keys, out, layout, **options)


def members(path: Path) -> dict[str, bytes]:
    """What a plain bundle holds."""
    with path.open("rb") as file:
        return {name: b"".join(content) for name, _, content in container.read(file)}


def packed(parts: dict[str, bytes]) -> bytes:
    """A container with these members, whatever they say."""
    return b"".join(member(name, parts[name]) for name in container.MEMBERS) + bytes(2 * container.BLOCK)


def member(name: str, content: bytes) -> bytes:
    """Header, content, padding."""
    return container._header(name, len(content)) + content + bytes(-len(content) % container.BLOCK)


SHARED = ("hop", "task_id", "site", "run", "parent", "metrics", "relay", "created_at")
Change = Callable[[Any], Any]


def resigned(
    parts: dict[str, bytes],
    keys: KeyFolder,
    *,
    manifest: Change | None = None,
    record: Change | None = None,
    chain: Change | None = None,
    listed: Change | None = None,
    consistent: bool = True,
    recipient: Any = ...,
    **replaced: bytes,
) -> dict[str, bytes]:
    """A bundle that says another thing, signed anew: what a site that is trusted could make if it wanted to.

    Args:
        parts: members of a valid one.
        keys: who signs both statement and last hop.
        manifest: changes the manifest, in place or by what it returns.
        record: changes the last hop before it is signed.
        chain: changes the list of hops after that.
        listed: changes the digests that are signed.
        consistent: what manifest and last hop share is carried over.
        recipient: of the signed statement; left out: the manifest's.
        replaced: `run`, `card`, `weights`, `manifest_bytes`, `history_bytes`: other content of these members.
    """
    names = {"run": "run.yaml", "card": "MODEL_CARD.md", "weights": "weights.safetensors"}
    made = changed(json.loads(parts["manifest.json"]), manifest)
    records = json.loads(parts["history.json"])
    last = records.pop()
    new = {**parts, **{names[key]: value for key, value in replaced.items() if key in names}}
    last["weights"] = canonical.sha256(new["weights.safetensors"])
    if consistent and isinstance(made, dict):
        last |= {key: made[key] for key in SHARED if key in made}
        told = made.get("checkpoint")
        last |= {key: told[key] for key in ("images", "steps") if key in told} if isinstance(told, dict) else {}
    last = changed(last, record)
    records = [*records, signed_record(last, keys)]
    records = changed(records, chain)
    new["manifest.json"] = replaced.get("manifest_bytes", loose(made))
    new["history.json"] = replaced.get("history_bytes", loose(records))
    digests = {name: canonical.sha256(data) for name, data in new.items() if name != "signature.json"}
    digests = changed(digests, listed)
    if recipient is ...:
        recipient = made.get("recipient") if isinstance(made, dict) else None
        recipient = recipient if is_digest(recipient) else None
    new["signature.json"] = signing.sign("mutation", digests, recipient, keys)
    return new


def changed(value: Any, change: Change | None) -> Any:
    """`change` of a value, in place or returned."""
    if change is None:
        return value
    found = change(value)
    return value if found is None else found


def signed_record(record: Any, keys: KeyFolder) -> Any:
    """The record with a right signature of `keys`, whatever else it says."""
    import base64

    if not isinstance(record, dict):
        return record
    bare = {key: value for key, value in record.items() if key != "signature"}
    (signature,) = keys.sign(b"relay hop 1\0" + loose(bare))
    return {**bare, "signature": base64.b64encode(signature).decode()}


def rechained(records: list[Any], keys: list[KeyFolder]) -> list[Any]:
    """All links and signatures made anew."""
    made: list[Any] = []
    for record, key in zip(records, keys, strict=True):
        made.append(signed_record({**record, "previous": history.link(made[-1]) if made else None}, key))
    return made


def loose(value: Any) -> bytes:
    """Canonical JSON that also takes what canonical JSON does not: NaN, lone surrogates."""
    try:
        return canonical.dump(value)
    except ValueError:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
