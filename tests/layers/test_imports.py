"""Import directions that no contract in pyproject.toml can express: what a fresh interpreter loads."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["relay_core", "relay_core.errors", "relay_core.events", "relay_core.cuda", "relay_core.cuda.native",
               "relay_core.config",
               "relay_core.cli.app", "relay_core.metrics.matrix", "relay_core.metrics.compare", "relay_core.bundle",
               "relay_core.imaging", "relay_core.inference.onnx_model", "relay_core.inference.prediction",
               "relay_core.preparation.run"],
)  # fmt: skip
def test_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "module", ["relay_core.engine", "relay_core.data", "relay_core.strategies", "relay_core.inference.files"]
)
def test_the_core_imports_without_image_readers_and_services(module):
    code = f"""
import sys
for name in ("SimpleITK", "fastapi", "celery", "sqlalchemy"):
    sys.modules[name] = None
import {module}
assert not any(m == "services" or m.startswith("services.") for m in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
