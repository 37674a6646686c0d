"""Training and evaluation of models: the training loop, checkpoints, devices and scores.

Progress leaves as events, and a stop request comes in as a function that is asked after every step.
"""

from relay_core.engine import checkpoint
from relay_core.engine.checkpoint import Checkpoint
from relay_core.engine.course import Course, operations
from relay_core.engine.device import choose_device, processes
from relay_core.engine.evaluate import BATCH, evaluate, load_solver, settings_of, write_picture
from relay_core.engine.layout import hand_over_layout
from relay_core.engine.relay_run import RelayRun, generated_rows
from relay_core.engine.scoring import evaluate_checkpoint, site_data, test_set_digests
from relay_core.engine.stream import Feed, Stream
from relay_core.engine.train import SiteTraining, train_site

__all__ = [
    "BATCH",
    "Checkpoint",
    "Course",
    "Feed",
    "RelayRun",
    "SiteTraining",
    "Stream",
    "checkpoint",
    "choose_device",
    "evaluate",
    "evaluate_checkpoint",
    "generated_rows",
    "hand_over_layout",
    "load_solver",
    "operations",
    "processes",
    "settings_of",
    "site_data",
    "test_set_digests",
    "train_site",
    "write_picture",
]
