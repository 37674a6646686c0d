"""The run file as typed settings (no torch here)."""

from relay_core.config.model import Corrections, DoubleGanKwargs
from relay_core.config.registry import Entry
from relay_core.config.runfile import RunFile, load_run, parse_run, recipes
from relay_core.config.site import SiteSettings
from relay_core.config.solvers import UNetKwargs
from relay_core.config.train import OptimizerSettings, TrainSettings

__all__ = [
    "Corrections",
    "DoubleGanKwargs",
    "Entry",
    "OptimizerSettings",
    "RunFile",
    "SiteSettings",
    "TrainSettings",
    "UNetKwargs",
    "load_run",
    "parse_run",
    "recipes",
]
