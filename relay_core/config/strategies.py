"""Define the settings of the strategies: how a model learns at one site after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from relay_core.config.base import Settings
from relay_core.config.registry import Choice, Entry, Registry
from relay_core.config.states import HandedOverState, NoState, RelayState, SiteCountState
from relay_core.errors import RunFileError

Sequence = Literal["continues", "anew", "at_once"]


@dataclass(frozen=True)
class StrategyFacts:
    """What the rest of the system must know of a strategy without loading its code; only what came later has a default.

    Bundles, services and commands decide by these facts, never by a strategy's name.
    """

    holds_real_images: bool
    """Whether its checkpoints hold images of patients. Then they never leave their machine: no export, no bundle."""
    sequence: Sequence
    """continues: a site goes on from the checkpoint of the site before. anew: every site starts from nothing.
    at_once: the images of all sites are trained on together."""
    handed_over: type[HandedOverState]
    """Schema of the state that goes to the next site beside the networks."""
    has_generators: bool
    """Whether its checkpoints hold generators that draw pseudo images (model `doublegan`)."""
    in_service: bool
    """Whether a site's service may run it."""
    trains_privately: bool = False
    """Whether it learns from a site's images by `Privacy.differentiate` alone where `train.privacy` is set."""

    def __post_init__(self) -> None:
        yes_or_no = (self.holds_real_images, self.has_generators, self.in_service, self.trains_privately)
        if not all(isinstance(fact, bool) for fact in yes_or_no) or self.sequence not in get_args(Sequence):
            raise ValueError(f"facts of a strategy are yes or no, and a sequence is one of {', '.join(get_args(Sequence))}")
        config = self.handed_over.model_config if issubclass(self.handed_over, HandedOverState) else {}
        if config.get("extra") != "forbid" or not config.get("strict"):
            raise ValueError("handed_over is a subclass of HandedOverState that keeps its strict model_config")


class StrategyKwargs(Settings):
    """What the settings of every strategy derive from."""

    facts: ClassVar[StrategyFacts | None] = None
    """Stated by the settings of every strategy itself, not taken over from a parent: one that does not is refused."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse facts that an annotation made a setting of: they would be a user's to change."""
        super().__pydantic_init_subclass__(**kwargs)
        if "facts" in cls.model_fields:
            raise TypeError(f"{cls.__name__}: write `facts = StrategyFacts(...)`, without an annotation")


class RelayKwargs(StrategyKwargs):
    """Relay learning: replay from generators that travel along. Its settings stand with the model `doublegan`."""

    facts = StrategyFacts(
        holds_real_images=False, sequence="continues", handed_over=RelayState, has_generators=True, in_service=True,
        trains_privately=True,
    )  # fmt: skip


class BaselineKwargs(StrategyKwargs):
    """Plain training: each site alone (local), one after the other (sequential), or all data in one place (joint)."""

    facts = StrategyFacts(
        holds_real_images=False, sequence="continues", handed_over=NoState, has_generators=False, in_service=True,
        trains_privately=True,
    )  # fmt: skip

    mode: Literal["local", "sequential", "joint"] | None = None
    """local: each site alone. sequential: fine-tune on from site to site. joint: all data in one place.
    None: joint where `train.joint_training` says so, sequential otherwise."""


_REMEMBERING = StrategyFacts(
    holds_real_images=False, sequence="continues", handed_over=SiteCountState, has_generators=False, in_service=True
)
"""Facts of the strategies that count the sites that they have been at."""


class SiKwargs(StrategyKwargs):
    """Synaptic intelligence: weights that mattered are held where they are (Zenke 2017, arXiv 1703.04200)."""

    facts = _REMEMBERING

    c: float = Field(default=0.5, ge=0)
    """Strength of the penalty."""
    xi: float = Field(default=1.0, gt=0)
    """Damping of the importance where a weight hardly moved."""
    rule: Literal["reference", "path_integral"] = "reference"
    """How importance builds up at each step. `reference`: lr * gradient^2, as in the relay paper's implementation;
    `path_integral`: minus gradient * step, as published by Zenke."""


class OwmKwargs(StrategyKwargs):
    """Orthogonal weight modification: gradients leave out the directions of earlier inputs (Zeng 2019, arXiv 1810.01256)."""

    facts = _REMEMBERING

    alpha: float = Field(default=10.0, gt=0)
    """How little of a direction is left out at first."""
    decay: float = Field(default=0.1, gt=0, le=1)
    """alpha falls to alpha * decay over the pass through a site's inputs (lambda in the paper)."""
    batches: int = Field(default=50, ge=1)
    """Most batches of a site whose mean inputs are taken in."""
    project: Literal["gradient", "step"] = "gradient"
    """What leaves the directions out. `gradient` (as published): exact where the optimizer steps along it, as SGD does; Adam
    scales each number on its own, and steps back into them. `step`: what the optimizer did, whichever it is."""
    largest: int = Field(default=1200, ge=1)
    """Inputs of a convolution's whole patch up to which the patch is projected; a larger one's channels alone are."""


class EwcKwargs(StrategyKwargs):
    """Elastic weight consolidation, online: the Fisher information says what mattered (arXiv 1612.00796, 1805.06370)."""

    facts = _REMEMBERING

    strength: float = Field(default=10_000.0, ge=0)
    """Factor of the penalty (lambda)."""
    decay: float = Field(default=1.0, ge=0, le=1)
    """Factor on the information of earlier sites at each new one (gamma)."""
    images: int = Field(default=200, ge=1)
    """Most images of a site that the information is estimated from."""


class LwfKwargs(StrategyKwargs):
    """Learning without forgetting: distil the previous solver on the site's own images (Li 2016, arXiv 1606.09282)."""

    facts = replace(_REMEMBERING, trains_privately=True)

    weight: float = Field(default=1.0, ge=0)
    """Weight of the distillation."""
    tau: float = Field(default=2.0, gt=0)
    """Its temperature."""


class RehearsalKwargs(StrategyKwargs):
    """Rehearsal of REAL images of earlier sites: leaves the air-gap promise, for studies on a single machine only."""

    facts = replace(_REMEMBERING, holds_real_images=True, in_service=False)

    images: int = Field(default=200, ge=1)
    """Real images that are kept, of all sites together."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of a batch that is rehearsed."""


class StyleKwargs(StrategyKwargs):
    """Recolour the site's own images as those of earlier sites, of which only colour statistics travel."""

    facts = _REMEMBERING

    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of a batch that is recoloured."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the loss on recoloured images, which the previous solver teaches (distillation)."""
    tau: float = Field(default=2.0, gt=0)
    """Its temperature."""
    sites: int = Field(default=32, ge=1)
    """The most sites in a relay."""


class FedAvgKwargs(StrategyKwargs):
    """Federated averaging (McMahan 2017, arXiv 1602.05629), simulated on one machine: in life it needs a network."""

    facts = StrategyFacts(
        holds_real_images=False, sequence="at_once", handed_over=NoState, has_generators=False, in_service=False
    )

    local_steps: int = Field(default=10, ge=1)
    """Steps of a site's optimizer between two averages, about: the rounds share the budget evenly."""
    mu: float = Field(default=0.0, ge=0)
    """Strength that holds a site's weights near the average (FedProx); 0: none."""


class FedProxKwargs(FedAvgKwargs):
    """Federated averaging with a proximal term (Li 2020, arXiv 1812.06127), simulated as `fedavg` is."""

    facts = FedAvgKwargs.facts

    mu: float = Field(default=0.01, ge=0)
    """Strength that holds a site's weights near the average (FedProx)."""


STRATEGIES = Registry(
    "strategy", "relay_core.strategies", StrategyKwargs,
    {
        "relay": Entry(RelayKwargs, "relay_core.strategies.relay:RelayStrategy"),
        "baseline": Entry(BaselineKwargs, "relay_core.strategies.baseline:BaselineStrategy"),
        "si": Entry(SiKwargs, "relay_core.strategies.si:SIStrategy"),
        "owm": Entry(OwmKwargs, "relay_core.strategies.owm:OWMStrategy"),
        "ewc": Entry(EwcKwargs, "relay_core.strategies.ewc:EWCStrategy"),
        "lwf": Entry(LwfKwargs, "relay_core.strategies.lwf:LwFStrategy"),
        "style": Entry(StyleKwargs, "relay_core.strategies.style:StyleStrategy"),
        "fedavg": Entry(FedAvgKwargs, "relay_core.strategies.federated:FederatedStrategy"),
        "fedprox": Entry(FedProxKwargs, "relay_core.strategies.federated:FederatedStrategy"),
        "rehearsal": Entry(RehearsalKwargs, "relay_core.strategies.rehearsal:RehearsalStrategy"),
    },
)  # fmt: skip
"""Strategies by name."""


class StrategySettings(Choice):
    """How a site learns."""

    registry = STRATEGIES

    @field_validator("name")
    @classmethod
    def _is_no_kind_of_baseline(cls, name: str) -> str:
        if name in SEQUENCES:
            raise ValueError(f"{name} is a kind of the strategy baseline: {{name: baseline, kwargs: {{mode: {name}}}}}")
        return name


SEQUENCES: dict[str, Sequence] = {
    "local": "anew", "sequential": "continues", "joint": "at_once"
}  # fmt: skip
"""Kinds of baseline, and in which sequence each trains the sites."""


def strategy_facts(mode: str) -> StrategyFacts:
    """Return the facts of a strategy by its name, or of the baseline by its kind (local, sequential, joint).

    Raises:
        RunFileError: there is no such strategy here, or it states no facts.
    """
    if mode in SEQUENCES:
        assert BaselineKwargs.facts is not None
        return replace(BaselineKwargs.facts, sequence=SEQUENCES[mode])
    try:
        kwargs = STRATEGIES[mode].kwargs
    except KeyError:
        raise RunFileError(f"strategy.name: {STRATEGIES.unknown(mode)}") from None
    return facts_of(mode, kwargs)


def facts_of(name: str, kwargs: type[Settings]) -> StrategyFacts:
    """The facts that the settings of the strategy `name` state themselves. Raises RunFileError where they state none."""
    facts = vars(kwargs).get("facts")
    if not isinstance(facts, StrategyFacts):
        raise RunFileError(
            f"the strategy {name!r} does not state its facts (does it hold real images, does a site go on from the one "
            f"before, ...): {kwargs.__name__} needs `facts = StrategyFacts(...)`, see docs/extend.md"
        )
    return facts
