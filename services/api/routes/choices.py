"""Serve what somebody chooses from: folders of images, layouts of data sets with their settings, recipes of run files."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from relay_core.config import DATASETS, TrainSettings, recipes
from services.api import options, schemas
from services.api.deps import Operator, Site, Viewer
from services.api.docs import refusals
from services.site import folders

router = APIRouter(prefix="/api/v1", tags=["choices"])


@router.get("/folders", responses=refusals("forbidden", "path_escape", "not_found", "data_invalid"))
def browse_folders(
    site: Site,
    caller: Operator,
    path: Annotated[str, Query(max_length=500, description="From the data root; empty: the data root itself.")] = "",
) -> schemas.Folder:
    """The folders in one below the data root."""
    names, files, more = folders.below(site.settings.data_folder, path)
    prefix = f"{path.rstrip('/')}/" if path else ""
    return schemas.Folder(path=path, folders=[f"{prefix}{name}" for name in names], files=files, more=more)


@router.get("/layouts", responses=refusals())
def list_layouts(caller: Viewer) -> list[schemas.LayoutFacts]:
    """How a data set's files may lie, and the settings of each layout."""
    return [
        schemas.LayoutFacts(name=name, about=entry.summary, settings=options.settings(entry.kwargs))
        for name, entry in DATASETS.items()
    ]


@router.get("/training-settings", responses=refusals())
def list_training_settings(caller: Viewer) -> list[schemas.Setting]:
    """The settings of a training, under `train` in a run file."""
    return options.settings(TrainSettings)


@router.get("/recipes", responses=refusals())
def list_recipes(caller: Viewer) -> list[schemas.Recipe]:
    """The run files that come with the software, which a run file may extend."""
    found = []
    for name, path in recipes().items():
        text = path.read_text(encoding="utf-8")
        found.append(schemas.Recipe(name=name, about=text.partition("\n")[0].removeprefix("# "), text=text))
    return found
