"""Losses of a few steps of each strategy, as numbers: `python -m tests.golden.record` writes them to losses.json.

Write them anew only with a change that is meant to change the mathematics, and say so in the commit.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from relay_core import events
from relay_core.config.strategies import STRATEGIES
from relay_core.data import make_phantoms
from relay_core.engine import RelayRun
from tests.conftest import Toy

FILE = Path(__file__).parent / "losses.json"
CASES = {
    **{name: {"strategy": {"name": name}} for name in STRATEGIES.builtin},
    "relay": {"strategy": {"name": "relay"}, "model": {"kwargs": {"gan_at_last_site": True}}},
    "relay, label maps of classes": {"strategy": {"name": "relay"}, "model": {"kwargs": {"label_head": "classes"}}},
    "relay, a game every other step": {"strategy": {"name": "relay"}, "model": {"kwargs": {"gan_every": 2}}},
    "relay, recoloured": {"strategy": {"name": "relay"}, "model": {"kwargs": {"recoloured_share": 0.5}}},
    "local": {"strategy": {"name": "baseline", "kwargs": {"mode": "local"}}},
    "relay, published": {"strategy": {"name": "relay"}, "model": {"kwargs": {"published": True, "replay_post_aug": True}}},
    "relay, three stages": {"strategy": {"name": "relay"}, "model": {"kwargs": {"num_stages": 3, "gan_at_last_site": True}}},
    "owm, step": {"strategy": {"name": "owm", "kwargs": {"project": "step"}}},
    "si, path integral": {"strategy": {"name": "si", "kwargs": {"rule": "path_integral"}}},
}


def losses(case: str, data: Path, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Site -> loss -> its values at steps 1 to 6 (0 where a step has none), of two toy sites in a row."""
    torch.set_num_threads(1)
    seen: dict[str, list[dict[str, float]]] = {}

    def keep(event: events.Event) -> None:
        if isinstance(event, events.Step):
            seen.setdefault(event.site, []).append(event.losses)

    RelayRun(Toy(data, folder).run(**CASES[case]), folder / "out", data, torch.device("cpu"), emit=keep)()
    names = {site: sorted({name for step in steps for name in step}) for site, steps in seen.items()}
    return {site: {name: [step.get(name, 0.0) for step in steps] for name in names[site]} for site, steps in seen.items()}


def main() -> None:
    """Write losses.json."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "phantoms"
        make_phantoms(data, 3, train=8, test=4, size=32)
        made = {}
        for case in CASES:
            folder = Path(name) / case
            folder.mkdir()
            made[case] = losses(case, data, folder)
            print(case, file=sys.stderr)
    FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
