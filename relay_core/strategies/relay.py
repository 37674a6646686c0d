"""Relay learning (Bo 2023, npj Digital Medicine 6:204): replay of the sites before, from generators that travel along."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from relay_core import distributed
from relay_core.config import DoubleGanKwargs, Groups, SiteSettings
from relay_core.data import SolverAugment
from relay_core.losses import collapsed, completed, distillation, make_loss, regrouped
from relay_core.models import make_gan
from relay_core.models.stylegan2 import Generator
from relay_core.replay import LabelCodec, Replay, Replayer, SiteBank, Styles, partly_reduced, recoloured
from relay_core.strategies.adversarial import Adversaries, FakeSlots, lerp_
from relay_core.strategies.base import AT_ONCE, Images, Position, Strategy
from relay_core.strategies.batches import Batch, joined, singly, thinned
from relay_core.strategies.private import Privacy
from relay_core.strategies.timetable import Timetable

GAN = ("G_label", "G_img", "D_label", "D_img")


class RelayStrategy(Strategy):
    """Generators, discriminators and solver learn from the site's images and from replay of the sites before.

    Stage 1 trains on the site's images alone, then the weights are merged with those that came (`num_stages` 2 and 3);
    stage 2 trains with replay; stage 3 trains the solver alone. A first site stays in stage 1, a relay of
    `num_stages` 1 begins in stage 2. `Corrections` lists where this differs from the published code.
    """

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.s = cast(DoubleGanKwargs, settings.model.kwargs)
        train = settings.train
        self.networks = {**make_gan(self.s, self.half), "solver": self._make_solver()}
        self.gan_names = [name for name in GAN if name in self.networks]
        if self.s.generator_ema_kimg > 0:
            for name in self._generators():
                self.networks[f"{name}_ema"] = copy.deepcopy(self.networks[name]).eval()
        if self.s.recoloured_share:
            self.networks["styles"] = Styles(min(self.s.c_img_dim, self.s.c_label_dim), self.s.img_channels)
        for name, network in self.networks.items():
            network.to(device)
            if name != "solver" or device.type == "cuda":  # a CPU filters far faster so; its U-Net is slower
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.codec = LabelCodec(self.s.label_num_classes, self.s.label_noise)
        scaled = self.half is torch.float16
        self.gan = Adversaries(self.s, self.networks, train.accumulate_grad_batches, scaled, device)
        self.updaters = {"G": self.gan.g_updater, "D": self.gan.d_updater, "solver": self._make_solver_updater()}
        for pair in self.gan.pairs:
            pair.discriminator.sees_spread = self.privacy is None
        self.loss = make_loss(train.loss.name, train.loss.kwargs.model_dump())
        self.augment = SolverAugment(train.augment)
        self.replay_augment = SolverAugment("published" if self.s.replay_post_aug and train.augment == "none" else "none")
        self.previous, self.current = SiteBank(), SiteBank()
        self.anew: list[str] = []
        """Discriminators that did not come from the site before."""
        self.stage = 1
        at_last = self.s.published if self.s.gan_at_last_site is None else self.s.gan_at_last_site
        self.plays = self.s.train_gan and (at_last or not settings.last)
        """Whether the game is played at this site; a site that has begun keeps to what it began with."""

    def _generators(self) -> list[str]:
        return [name for name in GAN if name in self.networks and name.startswith("G_")]

    def hand_over(self) -> list[str]:
        """All networks but the frozen copies."""
        return [name for name in self.networks if not name.startswith("old_")]

    def begin_site(self, name: str, images: int, classes: Sequence[int] | None = None) -> None:
        """Freeze copies of the received networks, move the last site into the previous bank, open a slot for this one."""
        self.previous = self.previous.joined(self.current)
        self.plays = self.plays or (self.s.train_gan and not self.previous.slots)  # a relay that begins does not end
        self.current = SiteBank()
        self.current.enter(name, images, self.previous, min(self.s.c_img_dim, self.s.c_label_dim), classes, self.plays)
        self.current.slots[name].merged = list(self.settings.data.merged)
        self.stage = 1
        if self.previous.slots:
            self._lay_out_memory(["solver", *(name for name in self.gan_names if name not in self.anew)])
            for pair in self.gan.pairs:
                pair.ada.halve()

    def _lay_out_memory(self, names: list[str]) -> None:
        """Freeze copies of networks as `old_*`; a generator is copied from its average (EMA) where there is one."""
        for name in names:
            source = self.networks.get(f"{name}_ema", self.networks[name])
            frozen = copy.deepcopy(source).requires_grad_(False).eval()
            if name.startswith("G_") and self.s.corrections.frozen == "train":
                frozen.train()
            self.networks[f"old_{name}"] = frozen

    def end_site(self, images: Images) -> None:
        """Keep the colours of this site, if later sites are to recolour their own images by them."""
        if self.s.recoloured_share:
            (slot,) = self.current.slots.values()
            self._styles.keep(slot.id, self._signed_batches(images))

    @property
    def _styles(self) -> Styles:
        return cast(Styles, self.networks["styles"])

    def missing_from(self, networks: list[str]) -> list[str]:
        """Averages; colours, which are not known then; and discriminators, which may have stayed behind and start anew."""
        others = ["styles", *(name for name in self.gan_names if name.startswith("D_"))]
        return [
            *super().missing_from(networks),
            *(name for name in others if name in self.networks and name not in networks),
        ]

    def received(self, networks: list[str]) -> None:
        """Begin the adaptive augmentation of a discriminator anew that did not come along."""
        self.anew = [pair.name for pair in self.gan.pairs if pair.name not in networks]
        for pair in self.gan.pairs:
            if pair.name in self.anew:
                pair.ada.restart()

    def real_count(self, position: Position) -> int:
        """Enter the stage of this position, merging where stage 2 begins; return how much of the batch is real."""
        wanted = self.timetable.stage(position.progress)
        while self.stage < wanted:
            self.stage += 1
            if self.stage == 2 and self.previous.slots:
                if self.s.num_stages > 1:
                    self._merge()
                for name in self.gan_names:
                    if name.startswith("D_"):
                        self.networks.pop(f"old_{name}", None)
        batch = self.settings.train.batch_size
        return batch - self._replay_count() if self.s.replay_keep_batch_size else batch

    @property
    def timetable(self) -> Timetable:
        """When stages begin and the game is played at this site."""
        return Timetable(self.s, self.settings.train.batch_size, bool(self.previous.drawn.slots), self.plays)

    def work(self, position: Position) -> Hashable:
        """Return the stage of a step, and which networks and regularisations it trains."""
        stage = self.timetable.stage(position.progress)
        turn = self.timetable.turn(position) if stage < 3 else None
        lazy = [turn is not None and turn % interval == 0 for interval in (self.s.G_reg_interval, self.s.D_reg_interval)]
        return stage, turn is not None, *lazy, super().work(position)

    def _replay_count(self) -> int:
        """How many images of a batch are replayed, over all processes."""
        sites = len(self.previous.drawn.slots)
        if self.stage == 1 or not sites:
            return 0
        batch = self.settings.train.batch_size
        if self.s.replay_keep_batch_size:
            share = 0.5 if self.s.replay_data_ratio == "half" else sites / (sites + 1)
            world = distributed.world()
            return min(batch - world, max(world, round(batch * share / world) * world))
        return batch * (1 if self.s.replay_data_ratio == "half" else sites)

    def _merge(self) -> None:
        """Merge: move generators, discriminators and solver to lerp(current, received, W_old / (W_old + n)).

        W_old is the number of images of the sites before, n that of this site; both count alike without `weighted_merge`.
        """
        old, new = float(self.previous.images), float(self.current.images)
        weight = old / (old + new) if self.s.weighted_merge else 0.5
        for name in ("solver", *(name for name in (self.gan_names if self.plays else ()) if name not in self.anew)):
            lerp_(self.networks[name], self.networks[f"old_{name}"], weight, self.s.corrections.merge_buffers)
        for name in self._generators() if self.plays else ():
            if f"{name}_ema" in self.networks:
                lerp_(self.networks[f"{name}_ema"], self.networks[name], 1.0)

    def _replayer(self, age: Literal["old", "new"]) -> Replayer:
        def generator(kind: str) -> Generator | None:
            names = [f"old_G_{kind}"] if age == "old" else [f"G_{kind}_ema", f"G_{kind}"]
            return next((cast(Generator, self.networks[name]) for name in names if name in self.networks), None)

        return Replayer(
            generator("label"), cast(Generator, generator("img")), self.codec,
            self.previous.drawn if age == "old" else self.known, (self.s.c_label_dim, self.s.c_img_dim),
            truncation=self.s.replay_w_truncation, conditioning=self.s.corrections.conditioning,
            noise=self.s.corrections.replay_noise, select=self.s.replay_c_select_mode, single_cid=self.s.single_cid,
        )  # fmt: skip

    @property
    def known(self) -> SiteBank:
        """The bank of every site so far that the generators draw, this one included."""
        return self.previous.joined(self.current).drawn

    def not_replayed(self) -> list[str]:
        """Return the sites that were last in their run file: no generator learned them."""
        bank = self.previous.joined(self.current)
        return [name for name, slot in bank.slots.items() if not slot.drawn]

    def _fake_slots(self, slots: Tensor) -> FakeSlots:
        """Choose the sites that fakes are made for: those of the batch or drawn ones; where sites may mix, twice."""
        if self.s.corrections.codes == "bank":
            bank = self.current if self.stage == 1 or self.s.num_stages == 1 else self.known
            slots = bank.draw(len(slots), self.s.replay_c_select_mode, self.device)
        if self.s.single_cid:
            return FakeSlots(slots)
        draw = partial(self.known.draw, len(slots), self.s.replay_c_select_mode, self.device)
        return FakeSlots(slots, {pair.kind: draw() for pair in self.gan.pairs})

    def _replay(self) -> Replay | None:
        """Draw this process' part of the replay of a batch; None where there is none."""
        count = self._replay_count() // distributed.world()
        return self._replayer("old").draw(count) if count else None

    def _with_replay(self, images: Tensor, labels: Tensor, replay: Replay | None, side: int) -> Batch:
        """Join the site's images with replay, all of `side` pixels: images, class ids, slots; the site's own come first."""
        slot = next(iter(self.current.slots.values())).id
        classes = self.codec.classes
        own = Replay(images, labels, torch.full((len(images),), slot, device=self.device)).at(side, classes)
        batch = own.images, own.labels, own.slots
        return batch if replay is None else joined(batch, replay.at(side, classes))

    def _expected_slots(self, replay: Replay | None) -> Tensor:
        """Return the slots of a private batch as they are in the mean: how many were drawn is nobody's business."""
        assert self.privacy is not None
        (slot,) = self.current.slots.values()
        own = torch.full((self.privacy.expected,), slot.id, device=self.device)
        return own if replay is None else torch.cat([own, replay.slots])

    @torch.no_grad()
    def _recolour(self, batch: Batch, images: Tensor) -> None:
        """Put the site's own images, in the colours of sites before, in the place of the last replayed ones of a batch.

        Their shapes fit their labels, their sharpness is real, and generators need not have learned what they show.
        """
        sites = [slot.id for slot in self.previous.slots.values() if self.s.recoloured_share and self._styles.knows(slot.id)]
        count = min(len(images), round((len(batch[0]) - len(images)) * self.s.recoloured_share)) if sites else 0
        if count:
            batch[0][-count:] = recoloured(images[:count], *self._styles.draw(count, sites, self.device))
            batch[1][-count:], batch[2][-count:] = batch[1][:count], batch[2][:count]

    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Train generators, discriminators and solver for one step."""
        losses: dict[str, Tensor] = {}
        turn = self.timetable.turn(position) if self.stage < 3 else None
        learns = self.s.train_solver and position.step < position.solver_steps
        if turn is None and not learns:
            return losses
        of_solver, of_game = self.timetable.progress(position)
        images = self._signed(images)
        replay = self._replay()
        share, side = self.s.corrections.share_replay, self.s.img_resolution
        if turn is not None:
            whole, wanted = self.completed(images, labels), (self.s.gan_batch_size or 0) // distributed.world()
            played = thinned(self._with_replay(images, whole, replay, side), wanted)
            if self.privacy is not None:
                losses |= self.gan.step_privately(
                    self.privacy, played, len(images), self._fake_slots(self._expected_slots(replay)), turn, of_game
                )
            else:
                losses |= self.gan.step(
                    played, self._fake_slots(played[2]), turn, of_game, len(played[0]) * distributed.world(),
                    None if share else thinned(self._with_replay(images, whole, self._replay(), side), wanted),
                )  # fmt: skip
        if learns:
            if not share:
                replay = self._replay()
            shown = partly_reduced(images, self.s.img_resolution, self.s.reduced_share, position.step)
            batch = self._with_replay(shown, labels, replay, self.s.solver_side)
            replayed = len(batch[0]) - len(images)
            self._recolour(batch, images)
            if self.stage == 3 and self.s.task_merge_replay:
                mixed = self._replayer("new").draw(max(1, len(images) // 2), two_styles=True)
                batch = joined(batch, mixed.at(self.s.solver_side, self.codec.classes))
            losses["solver"] = self._solver_step(batch, len(images), replayed, of_solver)
        return losses

    def _solver_step(self, batch: Batch, real: int, replayed: int, progress: float) -> Tensor:
        """Train the solver on a batch of `real` images, then `replayed` ones of the sites before, then any of two styles."""
        images, labels, _ = batch
        memory = slice(real, real + replayed)
        targets = self.s.replay_targets
        if targets == "teacher" and replayed:
            labels = labels.clone()
            with torch.no_grad():
                labels[memory] = self._logits(self.networks["old_solver"], images[memory]).argmax(dim=1)
        labels = torch.cat([labels[:real], regrouped(labels[real:], self.untold, self.groups, self.codec.classes)])
        images, labels = self._augmented(images, labels, real)
        if self.privacy is not None:
            return self._learn_privately(self.privacy, images, labels, real, progress)
        logits, coarser = self._logits_to_learn(self.solver, images)
        hard = torch.ones(len(images), dtype=torch.bool, device=self.device)
        if targets == "soft":
            hard[memory] = False
        loss = self.supervised(logits[hard], labels[hard], [level[hard] for level in coarser])
        total = loss + self._distillation(images, logits, memory)
        self.updaters["solver"].update(total, progress)
        return loss.detach()

    def _learn_privately(self, privacy: Privacy, images: Tensor, labels: Tensor, real: int, progress: float) -> Tensor:
        def loss(image: Tensor, label: Tensor) -> Tensor:
            logits, coarser = self._logits_to_learn(self.solver, image)
            return self.supervised(logits, label, coarser)

        losses = (loss(*one) for one in singly(images[:real], labels[:real]))
        memory = images[real:]
        taught = self._distillation(memory, self._logits(self.solver, memory), slice(None)) if len(memory) else None
        return self.updaters["solver"].update_privately(privacy, losses, taught, 1 / privacy.expected, progress)

    def _augmented(self, images: Tensor, labels: Tensor, real: int) -> tuple[Tensor, Tensor]:
        images, labels = self.augment(images, labels)
        if len(images) > real:
            replayed, replayed_labels = self.replay_augment(images[real:], labels[real:])
            images, labels = torch.cat([images[:real], replayed]), torch.cat([labels[:real], replayed_labels])
        return images, labels

    def _distillation(self, images: Tensor, logits: Tensor, memory: slice) -> Tensor:
        """Distillation loss: the previous solver teaches the replayed images, or all of the batch."""
        part = memory if self.s.corrections.distil_on == "replay" else slice(None)
        if not self.previous.slots or self.s.solver_distil_weight == 0 or not len(images[part]):
            return logits.new_zeros([])
        own = self.s.corrections.teacher == "current"
        teacher = self.solver if own else self.networks["old_solver"]
        with torch.no_grad():
            target = self._logits(teacher, images[part])
        tau, known = self.s.distil_tau, logits[part]
        if merged := self.untold:  # of a group that no site before told apart, the teacher knows the whole alone
            return self.s.solver_distil_weight * distillation(
                collapsed(known / tau, merged), collapsed(target / tau, merged), 1.0
            )
        return self.s.solver_distil_weight * distillation(known, target, tau)

    @property
    def untold(self) -> Groups:
        """Groups of classes that no site before this one told apart."""
        slots = self.previous.slots.values()
        return tuple(group for i, group in enumerate(self.groups) if all(i in slot.merged for slot in slots))

    @torch.no_grad()
    def completed(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return labels without groups, for the game: the previous solver says what each is, at a first site this one."""
        if not self.groups or not len(images):
            return labels
        judge = self.networks.get("old_solver", self.solver)
        training = judge.training
        logits = self._logits(judge.eval(), images)
        judge.train(training)
        return completed(labels, logits, self.groups)

    def state(self) -> dict[str, Any]:
        """Site banks, stage, augmentation, path-length means, and which networks are frozen."""
        return {
            "previous": self.previous.to_json(),
            "current": self.current.to_json(),
            "stage": self.stage,
            **{pair.kind: pair.state() for pair in self.gan.pairs},
            "frozen": [name.removeprefix("old_") for name in self.networks if name.startswith("old_")],
        }

    def load_handed_over(self, state: dict[str, Any]) -> None:
        """Take over the banks, and how strongly the discriminators' inputs were augmented."""
        if state:
            self.previous, self.current = SiteBank.from_json(state["previous"]), SiteBank.from_json(state["current"])
            for pair in self.gan.pairs:
                pair.load_state(state[pair.kind])

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state`, laying out the frozen copies that the tensors will fill."""
        self.previous, self.current = SiteBank.from_json(state["previous"]), SiteBank.from_json(state["current"])
        self.stage = int(state["stage"])
        self.plays = self.s.train_gan and all(slot.drawn for slot in self.current.slots.values())
        for pair in self.gan.pairs:
            pair.load_state(state[pair.kind])
        self._lay_out_memory(list(state["frozen"]))
        if self.previous.slots and self.stage == 1:
            self.anew = [name for name in self.gan_names if name.startswith("D_") and name not in state["frozen"]]

    def draw(self, slots: Tensor) -> Replay:
        """Draw one picture for each slot (N,) of a site from the generators as they would be handed over."""
        return self._replayer("new").draw(len(slots), slots=slots)

    @property
    def image_generator(self) -> Generator:
        """The image generator as it would be handed over: its average (EMA) where there is one."""
        return self._replayer("new").image

    def figures(self) -> dict[str, float]:
        """Return the stage (1 to 3) and, in the game, the share of each discriminator's images that is augmented."""
        played = self.gan.pairs if self.plays else []
        return {"stage": self.stage, **{f"ada_{pair.kind}": round(pair.ada.p, 4) for pair in played}}

    @torch.no_grad()
    def samples(self, per_site: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Draw pictures of each site so far from the generators as they would be handed over; no random state changes."""
        replayer, result = self._replayer("new"), {}
        for network in (replayer.label, replayer.image):
            if network is not None:
                network.eval()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.settings.random_seed)
            for name, slot in replayer.bank.slots.items():
                slots = torch.full((per_site,), slot.id, device=self.device).split(AT_ONCE)
                drawn = [self.draw(part) for part in slots]
                result[name] = (torch.cat([d.images for d in drawn]), torch.cat([d.labels for d in drawn]))
        for name in self._generators():
            self.networks[name].train()
        return result
