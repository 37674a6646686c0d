"""What is installed and handed out: by digest, with a bill of materials."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HASHES = sorted(path for path in (ROOT / "docker/hashes").glob("*.txt") if path.name != "torch-cpu.txt")
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def entries(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Package -> version and digests."""
    found = re.split(r"^(?=\S)", path.read_text(), flags=re.MULTILINE)[1:]
    return {
        entry.split("==")[0]: (entry.split("==")[1].split()[0], re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
        for entry in found
    }


@pytest.mark.parametrize("path", HASHES, ids=lambda path: path.stem)
def test_each_package_of_an_image_has_its_version_and_digest(path: Path) -> None:
    wanted = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in PINNED.items()}
    found = entries(path)
    assert found
    for name, (version, digests) in found.items():
        assert digests, name
        assert wanted.get(name, version) == version, f"make hashes: {name}"


def test_an_image_installs_nothing_without_a_digest() -> None:
    for path in (ROOT / "docker").glob("*.Dockerfile"):
        text = path.read_text().replace("\\\n", " ")
        commands = re.findall(r"pip (?:install|wheel)[^&\n]*", text)
        assert commands
        assert all("--require-hashes" in command or "--no-index --no-deps" in command for command in commands), path
        assert all(line.split()[1] == "$PYTHON" for line in text.splitlines() if line.startswith("FROM "))


def test_the_files_of_digests_cover_what_the_parts_need() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for kind, extra in (("api-cpu", "site"), ("api-gpu", "images"), ("trainer", "train")):
        found = entries(ROOT / f"docker/hashes/{kind}.txt") | entries(ROOT / "docker/hashes/torch.txt")
        for requirement in extras[extra]:
            name = re.match(r"[A-Za-z0-9-]+", requirement)
            assert name is not None
            assert name[0].lower() in found or name[0] == "relay-learning", f"make hashes: {requirement}"


def bill(*arguments: str) -> dict:
    """What docker/sbom.py writes."""
    command = [sys.executable, "-I", str(ROOT / "docker/sbom.py"), *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_wheel_has_a_bill_of_materials(tmp_path: Path) -> None:
    wheel = tmp_path / "relay_learning-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    made = bill("wheel", str(wheel), str(ROOT / "docker/hashes/api-cpu.txt"))
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    subject = made["metadata"]["component"]
    assert (subject["purl"], len(subject["hashes"][0]["content"])) == ("pkg:pypi/relay-learning@0.1.0", 64)
    parts = {part["name"]: part for part in made["components"]}
    assert parts["fastapi"]["version"] == PINNED["fastapi"]
    assert parts["fastapi"]["hashes"]
    assert len(parts) == len(entries(ROOT / "docker/hashes/api-cpu.txt"))


def test_an_image_has_a_bill_of_materials() -> None:
    made = bill("image", "relay-api:0.1.0")
    assert made["metadata"]["component"] == {"type": "container", "bom-ref": "relay-api:0.1.0", "name": "relay-api:0.1.0"}
    assert any(part["purl"].startswith("pkg:pypi/fastapi@") for part in made["components"])
    references = [part["bom-ref"] for part in made["components"]]
    assert references == sorted(set(references))
