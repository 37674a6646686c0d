"""Define the settings of the networks: a solver alone, or the relay's solver with its two generators (`doublegan`)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from relay_core.config.base import Settings
from relay_core.config.registry import Choice, Entry, Registry, settings_of
from relay_core.config.solvers import SOLVERS, SolverKwargs, Task
from relay_core.config.train import OptimizerSettings

Pipe = Literal["b", "bg", "bgc", "bgcf", "bgcfn"]


class MappingKwargs(Settings):
    """A mapping network."""

    num_layers: int = Field(default=8, ge=1)
    """Fully connected layers."""


class PyramidKwargs(Settings):
    """A pyramid of convolution blocks."""

    channel_base: int = Field(default=8192, ge=64)
    """Feature maps at resolution r are min(channel_base / r, channel_max)."""
    channel_max: int = Field(default=256, ge=4)
    """See channel_base."""
    num_fp16_res: int = Field(default=4, ge=0)
    """Upper resolutions that run in half precision where `precision` asks for it."""


class GeneratorKwargs(Settings):
    """A generator."""

    mapping_kwargs: MappingKwargs = MappingKwargs()
    """Its mapping network."""
    synthesis_kwargs: PyramidKwargs = PyramidKwargs()
    """Its synthesis pyramid."""


class DiscriminatorKwargs(PyramidKwargs):
    """A discriminator. Its pyramid's settings may also stand below `synthesis_kwargs`, as a generator's do."""

    mapping_kwargs: MappingKwargs = MappingKwargs()
    """Its mapping network, of the site code."""

    @model_validator(mode="before")
    @classmethod
    def _accept_synthesis_kwargs(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("synthesis_kwargs"), dict):
            return {key: value for key, value in data.items() if key != "synthesis_kwargs"} | data["synthesis_kwargs"]
        return data

    @classmethod
    def inner(cls, key: str, raw: dict[str, Any]) -> Any:
        """See `Settings.inner`: `synthesis_kwargs` is accepted though it is no field."""
        return PyramidKwargs if key == "synthesis_kwargs" else super().inner(key, raw)


class OptimizerConf(Settings):
    """Optimizers of generators, discriminators and solver."""

    G: OptimizerSettings | None = None
    """Both generators; none: Adam with constants that follow from `G_reg_interval` (StyleGAN2, appendix B)."""
    D: OptimizerSettings | None = None
    """Both discriminators; none: Adam with constants that follow from `D_reg_interval`."""
    M: OptimizerSettings | None = None
    """The solver; none: `train.optimizer`."""


class Corrections(Settings):
    """What we do otherwise than the published code; `published: true` sets the published form of every switch."""

    teacher: Literal["previous", "current"] = "previous"
    """Teacher of the distillation. `current` (published) is the student itself: no gradient at all."""
    distil_on: Literal["replay", "all"] = "replay"
    """Distil on replayed images, which the teacher knows, or on the site's own ones too."""
    replay_targets: Literal["soft", "teacher", "map"] = "soft"
    """What the solver learns from a replayed image. `soft`: the distillation alone, the previous solver's answer. `teacher`:
    its hard answer too (Shin 2017, arXiv 1705.08690). `map` (published): the label map that the image was generated from,
    whose frayed edges the solver then learns."""
    frozen: Literal["eval", "train"] = "eval"
    """Mode of the frozen generators. `train` (published) moves their statistics with every replay."""
    merge_buffers: bool = True
    """The merge includes batch-norm statistics and w_avg, not parameters alone."""
    conditioning: Literal["clean", "clipped", "raw"] = "clean"
    """Label map that conditions a replayed image: quantised with the noise of training, clipped, or as generated."""
    replay_noise: Literal["none", "random"] = "none"
    """Noise inside the generators at replay. Random noise (published) frays the edges of label maps, more at every hop."""
    fake_label_noise: bool = True
    """Generated label maps get the noise of real ones before a discriminator sees them."""
    ada_image_only: bool = True
    """Colour, filter and noise of the adaptive augmentation stay off the label channel."""
    codes: Literal["batch", "bank"] = "batch"
    """Fakes carry the site codes of the batch that they are compared with, or codes drawn from the current bank."""
    crossover: Literal["uniform", "halves"] = "uniform"
    """Style mixing splits the layers at a uniform point, or near the middle (binomially)."""
    share_replay: bool = True
    """Generators, discriminators and solver learn from the same replayed images of a batch."""
    r1_on_label: bool = True
    """R1 covers the label channel of the image discriminator's input too."""
    third_stage_at_first_site: bool = False
    """`num_stages: 3` enters its last stage at the first site too (published)."""


PUBLISHED = Corrections(
    teacher="current", distil_on="all", replay_targets="map", frozen="train", merge_buffers=False, conditioning="raw",
    replay_noise="random", fake_label_noise=False,
    ada_image_only=False, codes="bank", crossover="halves", share_replay=False, r1_on_label=False,
    third_stage_at_first_site=True,
)  # fmt: skip


class DoubleGanKwargs(Settings):
    """The relay's networks: label generator, image generator, their discriminators and the solver."""

    task: Task = "segmentation"
    """What the solver does; the data set's `task`. For classification there is no label generator: see
    `relay_core.replay.Replayer`."""
    optimizer_conf: OptimizerConf = OptimizerConf()
    """Optimizers."""
    img_resolution: int = Field(default=64, ge=8)
    """Side of the generators' images and label maps in pixels, a power of two; the solver's too, unless it has its own."""
    solver_resolution: int | None = Field(default=None, ge=8)
    """Side of the images that the solver learns from, in pixels, at least `img_resolution`: replay is drawn at the
    generators' size and enlarged to it. None: `img_resolution`."""
    label_resolution: int | None = Field(default=None, ge=8)
    """Side of the label maps that the label generator draws, a power of two, at most `img_resolution`; they are enlarged
    before an image is drawn from them. None: `img_resolution`."""
    reduced_share: float = Field(default=0.25, ge=0, le=1)
    """Where the solver's images are larger than the generators': share of the site's own images of a batch that are reduced
    to the generators' size and enlarged again, as replay is, so that sharpness does not tell a site."""
    img_channels: Literal[1, 3] = 3
    """Channels of the image."""
    label_num_classes: int = Field(default=3, ge=2)
    """Classes, background included."""
    z_img_dim: int = Field(default=128, ge=1)
    """Latent of the image generator."""
    z_label_dim: int = Field(default=64, ge=1)
    """Latent of the label generator."""
    c_img_dim: int = Field(default=32, ge=1)
    """Site slots of the image networks: the most sites in a relay."""
    c_label_dim: int = Field(default=32, ge=1)
    """Site slots of the label networks."""
    w_img_dim: int = Field(default=256, ge=1)
    """Style of the image generator."""
    w_label_dim: int = Field(default=64, ge=1)
    """Style of the label generator."""
    G_img_kwargs: GeneratorKwargs = GeneratorKwargs(mapping_kwargs=MappingKwargs(num_layers=4))
    """Image generator."""
    G_label_kwargs: GeneratorKwargs = GeneratorKwargs(
        mapping_kwargs=MappingKwargs(num_layers=2), synthesis_kwargs=PyramidKwargs(channel_base=4096, channel_max=128)
    )
    """Label generator."""
    D_img_kwargs: DiscriminatorKwargs = DiscriminatorKwargs()
    """Image discriminator."""
    D_label_kwargs: DiscriminatorKwargs = DiscriminatorKwargs(channel_base=4096, channel_max=128)
    """Label discriminator."""
    solver_name: str = "U-Net"
    """The solver."""
    solver_kwargs: SerializeAsAny[SolverKwargs] = Field(default=None, validate_default=True)
    """Its settings; none for a U-Net: a ResNet-18 for encoder."""
    train_gan: bool = True
    """Train generators and discriminators: the adversarial game."""
    gan_every: int | None = Field(default=None, ge=1)
    """Steps of the solver for each step of the game; none: 2, and 1 where `published` is set."""
    gan_num_mimgs: float | None = Field(default=None, gt=0)
    """Budget of the game, in millions of images of its batches, spread evenly over the solver's steps; none: as `gan_every`
    has it. Where the solver's budget is smaller than the whole, the rest is the game's alone."""
    gan_batch_size: int | None = Field(default=None, ge=2)
    """Images of a step of the game, evenly chosen from the batch, replayed ones included; none: the whole batch."""
    gan_after_solver: bool = False
    """Train the solver first, in its own budget (`train.solver_num_mimgs`), then play the game in the rest of the whole: a
    solver that is ready can be published meanwhile (`relay train --until solver`)."""
    gan_at_last_site: bool | None = None
    """Play the game also at the last site of a run file that trains all its sites: for a relay whose end is open. Otherwise
    the solver alone learns there, and a site after it cannot replay it. None: as published where `published` is set."""
    train_solver: bool = True
    """Train the solver."""
    num_stages: Literal[1, 2, 3] = 2
    """1: replay from the start. 2: half the budget on the site's own images, merge, half with replay. 3: as 2 in
    thirds, and a last stage for the solver alone."""
    weighted_merge: bool = True
    """The merge weighs old and new by their numbers of images, otherwise equally."""
    label_head: Literal["classes", "value"] = "value"
    """What the label generator decides at a pixel: `value` (as published), the value itself, which collapses more easily, or
    `classes` (as the recipes have it), the share of each, whose mean value is drawn. A relay keeps what it began with."""
    label_noise: float = Field(default=0.02, ge=0)
    """Noise on label maps, as a factor of clip(N(0, 1), -3, 3)."""
    style_mixing_prob: float = Field(default=0.8, ge=0, le=1)
    """Probability that a generated sample mixes two styles."""
    replay_w_truncation: float = Field(default=1.0, ge=0, le=1)
    """Truncation psi of replayed samples."""
    replay_keep_batch_size: bool = True
    """Replay takes its place within batch_size; false: it comes on top."""
    replay_data_ratio: Literal["half", "even"] = "half"
    """As many replayed images as real ones, or as many for each previous site as for the current one."""
    recoloured_share: float = Field(default=0, ge=0, le=1)
    """Share of the replayed images of the solver's batch that are not generated, but the site's own in the colours of sites
    before (at most one of each), of which colour statistics travel, as `style` does. 0: no statistics travel."""
    replay_c_select_mode: Literal["uniform", "frequency"] = "uniform"
    """Previous sites are drawn alike, or in proportion to their numbers of images."""
    replay_post_aug: bool = False
    """Augment the replayed half as published, where `train.augment` is `none`; otherwise all is augmented alike."""
    task_merge_replay: bool = False
    """Add samples that mix the styles of two sites to the replay of the last stage."""
    single_cid: bool = True
    """The two styles of a mixed sample share a site, and so do its label map and its image."""
    G_reg_interval: int = Field(default=4, ge=1)
    """Generator steps between two path-length regularisations."""
    D_reg_interval: int = Field(default=8, ge=1)
    """Discriminator steps between two R1 regularisations."""
    pl_weight: float = Field(default=2.0, ge=0)
    """Weight of the path-length regularisation; 0 leaves it out."""
    r1_gamma: float = Field(default=0.1, ge=0)
    """Weight of R1; 0 leaves it out."""
    solver_distil_weight: float = Field(default=1.0, ge=0)
    """Weight of the distillation from the second site on. (Published: 0.5, beside the loss on generated labels.)"""
    distil_tau: float = Field(default=2.0, gt=0)
    """Temperature of the distillation."""
    aug_conf_img: Pipe = "bgcfn"
    """Adaptive augmentation of the image discriminator: blit, geometry, colour, filter, noise."""
    aug_conf_label: Pipe = "bg"
    """Adaptive augmentation of the label discriminator."""
    ada_target_img: float = 0.6
    """Mean sign of D(real) that the augmentation aims at."""
    ada_target_label: float = 0.6
    """The same for label maps."""
    aug_p_range_img: tuple[float, float] = (0.0, 1.0)
    """Bounds of the augmentation probability."""
    aug_p_range_label: tuple[float, float] = (0.0, 1.0)
    """The same for label maps."""
    ada_interval: int = Field(default=4, ge=1)
    """Batches between two adjustments."""
    ada_kimg: float = Field(default=500.0, gt=0)
    """Thousands of images in which the probability can go from 0 to 1."""
    generator_ema_kimg: float = Field(default=0.5, ge=0)
    """Half-life, in thousands of images, of the averaged generators that the next site replays from; 0 (published)
    hands over the last ones."""
    published: bool = False
    """Repeat the published behaviour, faults included, for comparison."""
    corrections: Corrections = Corrections()
    """What is done otherwise than published, one switch each."""

    @model_validator(mode="before")
    @classmethod
    def _expand_published(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("published") is True:
            given = data.get("corrections")
            switches = PUBLISHED.model_dump() | (given if isinstance(given, dict) else {})
            data = {"generator_ema_kimg": 0.0, **data, "corrections": switches}
        return data

    @classmethod
    def inner(cls, key: str, raw: dict[str, Any]) -> Any:
        """See `Settings.inner`: `solver_name` decides on the class of `solver_kwargs`."""
        if key == "solver_kwargs":
            return settings_of(SOLVERS, raw.get("solver_name", "U-Net"))
        return super().inner(key, raw)

    @field_validator("solver_name")
    @classmethod
    def _solver_is_known(cls, name: str) -> str:
        settings_of(SOLVERS, name)
        return name

    @field_validator("solver_kwargs", mode="plain")
    @classmethod
    def _validate_solver_kwargs(cls, value: Any, info: ValidationInfo) -> SolverKwargs:
        name = info.data.get("solver_name")
        if name is None:  # the error of `solver_name` is enough
            return SolverKwargs()
        if value is None:
            value = {"backbone": "resnet18"} if name == "U-Net" else {}
        kwargs = settings_of(SOLVERS, name).model_validate(value)
        assert isinstance(kwargs, SolverKwargs)
        return kwargs

    @field_validator("aug_p_range_img", "aug_p_range_label")
    @classmethod
    def _range_rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError(f"must be two rising numbers from 0 to 1, not {list(value)}")
        return value

    @model_validator(mode="after")
    def _networks_fit_together(self) -> Self:
        if self.img_resolution & (self.img_resolution - 1):
            raise ValueError(f"img_resolution must be a power of two, not {self.img_resolution}")
        if self.solver_side < self.img_resolution:
            raise ValueError(
                f"solver_resolution is {self.solver_resolution}, less than the {self.img_resolution} pixels that the "
                "generators draw (img_resolution); give the solver as many, or reduce img_resolution"
            )
        if self.label_side & (self.label_side - 1) or self.label_side > self.img_resolution:
            raise ValueError(
                f"label_resolution must be a power of two and at most img_resolution ({self.img_resolution}), not "
                f"{self.label_resolution}"
            )
        solver = self.solver_kwargs
        if solver.in_channels != self.img_channels or solver.num_classes != self.label_num_classes:
            raise ValueError(
                f"solver_kwargs has {solver.in_channels} channels and {solver.num_classes} classes, the generators "
                f"have img_channels {self.img_channels} and label_num_classes {self.label_num_classes}"
            )
        return self

    @property
    def solver_side(self) -> int:
        """Return the side of the solver's images in pixels."""
        return self.solver_resolution or self.img_resolution

    @property
    def label_side(self) -> int:
        """Return the side of the label generator's maps in pixels."""
        return self.label_resolution or self.img_resolution

    def adam(self, interval: int, weight: float, published_interval: int) -> OptimizerSettings:
        """Return StyleGAN2's Adam for a regularised network: lr 0.0025 r, beta1 0 and beta2 0.99^r with r = i / (i + 1).

        Args:
            interval: steps between two regularisations, i.
            weight: weight of the regularisation; r is 1 where it is 0.
            published_interval: i of the published code, used where `published` is set.
        """
        if self.published:
            interval = published_interval
        ratio = interval / (interval + 1) if weight > 0 else 1.0
        return OptimizerSettings(name="Adam", kwargs={"lr": 0.0025 * ratio, "betas": [0.0, 0.99**ratio]})

    @model_validator(mode="after")
    def _recoloured_images_have_a_teacher(self) -> Self:
        if self.recoloured_share and self.replay_targets == "map":
            raise ValueError(
                "recoloured_share: recoloured images are answered by the previous solver, who does not teach here "
                "(corrections.replay_targets, solver_distil_weight): set it to 0"
            )
        return self

    @property
    def replay_targets(self) -> Literal["soft", "teacher", "map"]:
        """Return `corrections.replay_targets`; `map` instead of `soft` where the previous solver is not distilled."""
        no_distillation = self.solver_distil_weight == 0 or self.corrections.teacher == "current"
        return "map" if no_distillation and self.corrections.replay_targets == "soft" else self.corrections.replay_targets

    @property
    def solver_steps_a_turn(self) -> int:
        """Return `gan_every`, or what stands for none."""
        return self.gan_every or (1 if self.published else 2)

    @property
    def generator_optimizer(self) -> OptimizerSettings:
        """Return the optimizer of both generators."""
        return self.optimizer_conf.G or self.adam(self.G_reg_interval, self.pl_weight, 4)

    @property
    def discriminator_optimizer(self) -> OptimizerSettings:
        """Return the optimizer of both discriminators; the published constants are those of an interval of 16."""
        return self.optimizer_conf.D or self.adam(self.D_reg_interval, self.r1_gamma, 16)


MODELS = Registry(
    "network", "relay_core.networks", SolverKwargs,
    {
        "doublegan": Entry(DoubleGanKwargs, "relay_core.models.factory:make_gan", "A solver with the relay's generators and "
                           "discriminators: label maps, and images given label maps (or classes)."),
        **SOLVERS.builtin,
    },
)  # fmt: skip
"""Networks by name: a solver alone, or the relay's."""


class ModelSettings(Choice):
    """The networks."""

    registry = MODELS
