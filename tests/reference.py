"""The published implementation's numbers, where they are at hand."""

import json
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the published implementation's values (../shared/reference) are not on this machine"
)


@cache
def tensors(name: str):
    return load_file(FOLDER / f"{name}.safetensors")


@cache
def cases():
    return json.loads((FOLDER / "cases.json").read_text())


def op_cases(op: str):
    return [c for c in cases()["ops"] if c["op"] == op] if FOLDER.is_dir() else []
