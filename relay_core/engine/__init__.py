"""Training and evaluation: the loop, checkpoints, devices; events out, a stop request in."""

from relay_core.engine.checkpoint import Checkpoint
from relay_core.engine.device import choose_device, processes
from relay_core.engine.evaluate import evaluate, load_solver
from relay_core.engine.relay_run import RelayRun, generated_rows
from relay_core.engine.train import SiteTraining, train_site

__all__ = [
    "Checkpoint",
    "RelayRun",
    "SiteTraining",
    "choose_device",
    "evaluate",
    "generated_rows",
    "load_solver",
    "processes",
    "train_site",
]
