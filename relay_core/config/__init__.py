"""Read the run file into typed settings, and keep registries of what it may name. Importing this loads no torch."""

from relay_core.config.base import Settings
from relay_core.config.datasets import (
    DATASETS,
    CommonDatasetKwargs,
    FolderKwargs,
    MediastinumKwargs,
    MidlineKwargs,
    NnunetKwargs,
    SlicedKwargs,
    dataset_class,
    dataset_options,
)
from relay_core.config.explain import suggestion
from relay_core.config.losses import LOSSES, LossKwargs
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
from relay_core.config.site import CheckpointSettings, SiteSettings
from relay_core.config.solvers import (
    SOLVERS,
    CifarResNetKwargs,
    OwmNetKwargs,
    PretrainedKwargs,
    ResNetKwargs,
    SolverKwargs,
    SolverSettings,
    Task,
    UNetKwargs,
)
from relay_core.config.states import HandedOverState, NoState, RelayState, SiteCountState
from relay_core.config.strategies import (
    SEQUENCES,
    STRATEGIES,
    BaselineKwargs,
    EwcKwargs,
    LwfKwargs,
    OwmKwargs,
    RehearsalKwargs,
    RelayKwargs,
    SiKwargs,
    StrategyFacts,
    StrategyKwargs,
    strategy_facts,
)
from relay_core.config.train import FUSED, OptimizerSettings, SchedulerSettings, TrainSettings

__all__ = [
    "DATASETS",
    "FUSED",
    "LOSSES",
    "MODELS",
    "SEQUENCES",
    "SOLVERS",
    "STRATEGIES",
    "BaselineKwargs",
    "CheckpointSettings",
    "CifarResNetKwargs",
    "CommonDatasetKwargs",
    "Corrections",
    "DiscriminatorKwargs",
    "DoubleGanKwargs",
    "Entry",
    "EwcKwargs",
    "FolderKwargs",
    "GeneratorKwargs",
    "HandedOverState",
    "LossKwargs",
    "LwfKwargs",
    "MediastinumKwargs",
    "MidlineKwargs",
    "NnunetKwargs",
    "NoState",
    "OptimizerConf",
    "OptimizerSettings",
    "OwmKwargs",
    "OwmNetKwargs",
    "PretrainedKwargs",
    "PyramidKwargs",
    "Registry",
    "RehearsalKwargs",
    "RelayKwargs",
    "RelayState",
    "ResNetKwargs",
    "RunFile",
    "SchedulerSettings",
    "Settings",
    "SiKwargs",
    "SiteCountState",
    "SiteSettings",
    "SlicedKwargs",
    "SolverKwargs",
    "SolverSettings",
    "StrategyFacts",
    "StrategyKwargs",
    "Task",
    "TrainSettings",
    "UNetKwargs",
    "dataset_class",
    "dataset_options",
    "load_run",
    "outside_values",
    "parse_run",
    "recipes",
    "strategy_facts",
    "suggestion",
]
