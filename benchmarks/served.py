"""The models that the service's benchmarks serve: untrained solvers of a recipe, as ONNX."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from benchmarks.site import Site
from relay_core.config import SiteSettings, load_run
from services.site import ArtifactStore, jobs, registry
from services.site.db import Job, Run

if TYPE_CHECKING:
    from relay_core.inference import ServedSolver

NAME = "bench"
"""Of the model that `register` puts into production."""
TOY_SOLVER = {"recipe": "phantom", "set": ["model.kwargs.solver_kwargs.base_channels=4"]}
"""What the options are under `--toy`: a tiny solver."""


def arguments(parser: argparse.ArgumentParser, recipe: str) -> None:
    """Add the options of the model."""
    parser.add_argument("--recipe", default=recipe)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the recipe, as in relay train")


def solver(recipe: str, overrides: Sequence[str] = ()) -> tuple[ServedSolver, SiteSettings]:
    """A recipe's solver, untrained, as it is served, and the settings of its first site."""
    import torch

    from relay_core.inference import ServedSolver
    from relay_core.models import make_solver

    settings = load_run(recipe, overrides).sites()[0]
    torch.manual_seed(0)
    return ServedSolver.of(make_solver(settings.solver), settings), settings


def packed(network: ServedSolver, settings: SiteSettings) -> bytes:
    """An ONNX model with the facts that the service reads."""
    from relay_core.export import onnx as exporting
    from relay_core.inference import KEY, ModelFacts

    made = exporting._to_onnx(network, settings)
    facts = ModelFacts(
        tuple(settings.data.names()), settings.data.img_channels, settings.resolution, (0.0, 1.0), None, "fp32", "0" * 64,
        "0" * 64, ("A",), {},
    )  # fmt: skip
    entry = made.metadata_props.add()
    entry.key, entry.value = KEY, facts.to_json()
    return bytes(made.SerializeToString())


@cache
def model(recipe: str, overrides: tuple[str, ...] = ()) -> bytes:
    """Both together."""
    return packed(*solver(recipe, overrides))


def register(site: Site, content: bytes) -> None:
    """Put a model into production as `bench`."""
    store = ArtifactStore(site.settings.artifact_folder)
    file = (*store.put([content]), registry.MEDIA_TYPE)
    with site.database.write() as session:
        session.add(Run(id="0" * 64, name=NAME, content="", strategy="relay", sites=[], site=None))
        session.flush()
        params = {"name": NAME, "precision": "fp32"}
        job, _ = jobs.submit(
            session, kind="export_onnx", params=params, actor=NAME, key=None, body={}, run_id="0" * 64, checkpoint_id="none"
        )
        said = {"proof": {"tests": {}}, "facts": {"channels": 3, "classes": ["a", "b", "c"]}}
        registry.publish(session, session.get_one(Job, job.id), said, file)
        registry.promote(session, NAME, 1, NAME, None)
