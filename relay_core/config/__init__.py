"""The run file as typed settings, and registries of what it may name. Loads no torch."""

from relay_core.config.base import Settings
from relay_core.config.datasets import (
    DATASETS,
    CommonDatasetKwargs,
    FolderKwargs,
    MediastinumKwargs,
    MidlineKwargs,
    SlicedKwargs,
    dataset_class,
    dataset_options,
)
from relay_core.config.explain import suggestion
from relay_core.config.losses import LOSSES
from relay_core.config.model import (
    MODELS,
    Corrections,
    DiscriminatorKwargs,
    DoubleGanKwargs,
    GeneratorKwargs,
    OptimizerConf,
    PyramidKwargs,
)
from relay_core.config.outside import outside_values
from relay_core.config.reading import recipes
from relay_core.config.registry import Entry, Registry
from relay_core.config.runfile import RunFile, load_run, parse_run
from relay_core.config.site import SiteSettings
from relay_core.config.solvers import (
    SOLVERS,
    CifarResNetKwargs,
    OwmNetKwargs,
    PretrainedKwargs,
    ResNetKwargs,
    SolverSettings,
    Task,
    UNetKwargs,
)
from relay_core.config.strategies import STRATEGIES, EwcKwargs, LwfKwargs, OwmKwargs, RehearsalKwargs, SiKwargs
from relay_core.config.train import OptimizerSettings, SchedulerSettings, TrainSettings

__all__ = [
    "DATASETS",
    "LOSSES",
    "MODELS",
    "SOLVERS",
    "STRATEGIES",
    "CifarResNetKwargs",
    "CommonDatasetKwargs",
    "Corrections",
    "DiscriminatorKwargs",
    "DoubleGanKwargs",
    "Entry",
    "EwcKwargs",
    "FolderKwargs",
    "GeneratorKwargs",
    "LwfKwargs",
    "MediastinumKwargs",
    "MidlineKwargs",
    "OptimizerConf",
    "OptimizerSettings",
    "OwmKwargs",
    "OwmNetKwargs",
    "PretrainedKwargs",
    "PyramidKwargs",
    "Registry",
    "RehearsalKwargs",
    "ResNetKwargs",
    "RunFile",
    "SchedulerSettings",
    "Settings",
    "SiKwargs",
    "SiteSettings",
    "SlicedKwargs",
    "SolverSettings",
    "Task",
    "TrainSettings",
    "UNetKwargs",
    "dataset_class",
    "dataset_options",
    "load_run",
    "outside_values",
    "parse_run",
    "recipes",
    "suggestion",
]
