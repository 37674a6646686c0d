"""Write a CycloneDX 1.6 bill of materials to standard output. Runs by itself, in an image too: it needs Python alone.

python docker/sbom.py image NAME          what is installed here: Python packages, and Debian's where there are any
python docker/sbom.py wheel FILE HASHES... the wheel, and what docker/hashes/*.txt install with it
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

DPKG = Path("/var/lib/dpkg/status")
Component = dict[str, Any]


def component(kind: str, name: str, version: str, hashes: list[str] | None = None, licence: str | None = None) -> Component:
    """Return one package: its package URL names it for every scanner."""
    purl = f"pkg:{kind}/{name.lower().replace('_', '-') if kind == 'pypi' else name}@{version.replace('+', '%2B')}"
    found: Component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if hashes:
        found["hashes"] = [{"alg": "SHA-256", "content": value} for value in hashes]
    if licence:
        found["licenses"] = [{"license": {"name": licence[:200]}}]
    return found


def python_packages() -> Iterator[Component]:
    """Yield what this interpreter has installed."""
    for found in metadata.distributions():
        licence = found.metadata.get("License-Expression") or found.metadata.get("License")
        yield component("pypi", found.metadata["Name"], found.version, licence=licence.splitlines()[0] if licence else None)


def debian_packages() -> Iterator[Component]:
    """Yield what dpkg has installed."""
    for block in DPKG.read_text(encoding="utf-8").split("\n\n") if DPKG.is_file() else []:
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", block, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            yield component("deb/debian", fields["Package"], fields["Version"])


def pinned_packages(path: Path) -> Iterator[Component]:
    """Yield the packages of a file of pip with their digests."""
    for name, version, rest in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)((?:\s*\\\n\s+--hash=\S+)*)", path.read_text(), re.M):
        yield component("pypi", name, version, re.findall(r"sha256:([0-9a-f]{64})", rest))


def bill(subject: Component, parts: Iterator[Component] | list[Component]) -> str:
    """Return the document; the same materials give the same bytes."""
    unique = {part["bom-ref"]: part for part in parts if part["bom-ref"] != subject["bom-ref"]}
    return json.dumps({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": subject},
        "components": [unique[ref] for ref in sorted(unique)],
    }, indent=1)  # fmt: skip


def main(kind: str, name: str, *hashes: str) -> str:
    """Return the bill of an image (run inside it) or of a wheel."""
    if kind == "image":
        subject = {"type": "container", "bom-ref": name, "name": name}
        return bill(subject, [*python_packages(), *debian_packages()])
    wheel = Path(name)
    project, version = wheel.name.split("-")[:2]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return bill(component("pypi", project, version, [digest]), [c for path in hashes for c in pinned_packages(Path(path))])


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("image", "wheel"):
        sys.exit(__doc__)
    print(main(*sys.argv[1:]))
