"""Differentially private training: clipping, noise, who is drawn, what it costs, what is refused."""

import math

import numpy as np
import pytest
import torch

from relay_core.config import PrivacySettings
from relay_core.data import SiteData
from relay_core.engine import RelayRun, checkpoint
from relay_core.errors import CheckpointError, RunFileError, Stopped
from relay_core.strategies import Privacy
from relay_core.strategies.accountant import Spent, divergence, epsilon

from .test_contract import CPU, equal, make_strategy, weights

PRIVATE = {"privacy": {"noise_multiplier": 1.0, "max_grad_norm": 0.5, "delta": 1e-3}}
GROUP = {"solver_kwargs": {"norm": "group"}}
CLIP = 0.5


def private_run(toy, kwargs=(), train=(), sites=2, strategy="relay"):
    return toy.run(
        sites=sites, strategy={"name": strategy}, model={"kwargs": GROUP | dict(kwargs)}, train=PRIVATE | dict(train)
    )


def noiseless(monkeypatch):
    monkeypatch.setattr(Privacy, "_random", lambda self, *purpose: Silent(purpose[0]))


class Silent:
    """Draws every unit, and no noise."""

    def __init__(self, purpose):
        self.random = np.zeros
        self.integers = lambda n: 0
        self.standard_normal = np.zeros


def privacy(units=10, images_each=1, secret=bytes(range(32)), **changes):
    made = Privacy(PrivacySettings(**(PRIVATE["privacy"] | changes)))
    made.secret = secret
    subjects = [f"p{i}" for i in range(units) for _ in range(images_each)]
    made.enter(subjects, [f"i{i}" for i in range(len(subjects))])
    return made


def private_gradient(made, samples, share=1.0):
    """The gradient of a small network by the samples."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    parameters = list(network.parameters())
    with made.step(0, 5):
        made.differentiate((network(x).square().sum() * 100 for x in samples), parameters, share)
    return torch.cat([p.grad.flatten() for p in parameters])


def test_one_unit_moves_a_step_by_no_more_than_the_clipped_norm(monkeypatch):
    noiseless(monkeypatch)
    made = privacy()
    samples = list(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    whole, fewer = private_gradient(made, samples), private_gradient(made, samples[:-1])
    torch.testing.assert_close((whole - fewer).norm(), torch.tensor(CLIP), rtol=1e-4, atol=0)  # its own is far larger
    broken = private_gradient(made, [*samples[:-1], torch.full((4,), math.nan)])
    assert torch.equal(broken, fewer)
    assert torch.equal(private_gradient(made, []), torch.zeros_like(whole))


def test_the_noise_is_as_large_as_stated_and_of_each_step_its_own():
    made = privacy(noise_multiplier=3.0)
    network = torch.nn.Linear(400, 100, bias=False)
    seen = []
    for step, updates in ((0, 2), (1, 1)):
        with made.step(step, 5):
            for _ in range(updates):
                made.differentiate([], [network.weight], 0.25)
                seen.append(network.weight.grad.clone())
    for noise in seen:
        assert noise.std() == pytest.approx(0.25 * 3.0 * CLIP, rel=0.02)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(torch.corrcoef(torch.stack([seen[a].flatten(), seen[b].flatten()]))[0, 1]) < 0.02
    assert made.facts()["spent"] == [[3.0, 0.5, 1, 1], [3.0, 0.5, 2, 1]]


def test_a_patient_is_drawn_once_however_many_images_there_are():
    made = privacy(units=6, images_each=3)
    draws = [made.draw(place, 2) for place in range(3000)]
    assert made.unit == "patient"
    patients = [[number // 3 for number in draw] for draw in draws]
    assert all(len(set(drawn)) == len(drawn) for drawn in patients)
    counts = np.bincount(np.concatenate(patients).astype(int), minlength=6) / len(draws)
    assert counts == pytest.approx([1 / 3] * 6, abs=0.04)
    sizes = np.bincount([len(draw) for draw in draws], minlength=7) / len(draws)
    assert sizes == pytest.approx([math.comb(6, k) * 2 ** (6 - k) / 3**6 for k in range(7)], abs=0.03)  # binomial
    assert len(set(np.concatenate([draw for draw in draws if draw]))) == 18  # every image has its turn
    assert [made.draw(place, 2) for place in range(20)] == draws[:20]
    other = privacy(units=6, images_each=3, secret=bytes(32))
    assert [other.draw(place, 2) for place in range(20)] != draws[:20]


def test_epsilon_is_that_of_the_literature():
    """Abadi 2016, section 3.2: 1.26 by the moments accountant for these numbers; Opacus 1.6 converts it to 1.03549."""
    assert epsilon([Spent(4.0, 0.01, 1, 10_000)], 1e-5) == 1.036
    assert epsilon([], 1e-5) == 0


@pytest.mark.parametrize(("noise", "rate", "order"), [(1.0, 0.1, 2), (0.7, 0.3, 5), (3.0, 0.01, 40)])
def test_the_divergence_is_that_of_the_densities(noise, rate, order):
    """Integrated in both directions: a unit that is added, and one that is taken away."""
    x = np.linspace(-60, 120, 400_001)
    without = -((x / noise) ** 2) / 2 - math.log(noise * math.sqrt(2 * math.pi))
    with_it = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + without + (2 * x - 1) / (2 * noise**2))
    both = [
        np.log(np.trapezoid(np.exp(order * p + (1 - order) * q), x)) / (order - 1)
        for p, q in ((with_it, without), (without, with_it))
    ]
    assert divergence(order, noise, rate) == pytest.approx(max(both), rel=1e-6)


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 1), (5.0, 10)])
def test_epsilon_is_near_the_exact_one_where_everybody_takes_part(noise, steps):
    """Without subsampling the steps are one Gaussian, whose delta is known (Balle 2018, arXiv 1805.06530, theorem 8)."""
    found = epsilon([Spent(noise, 1.0, 1, steps)], 1e-5)

    def cdf(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta(of):
        distance = math.sqrt(steps) / noise
        return cdf(distance / 2 - of / distance) - math.exp(of) * cdf(-distance / 2 - of / distance)

    assert delta(found) <= 1e-5  # never less than it costs
    assert delta(0.85 * found) > 1e-5


def test_networks_that_learn_from_one_draw_cost_as_if_there_were_less_noise():
    twice = epsilon([Spent(2.0, 0.1, 4, 50)], 1e-5)
    assert twice == epsilon([Spent(1.0, 0.1, 1, 50)], 1e-5)
    apart = epsilon([Spent(2.0, 0.1, 1, 50), Spent(2.0, 0.1, 1, 50)], 1e-5)
    assert apart == epsilon([Spent(2.0, 0.1, 1, 100)], 1e-5) < twice


@pytest.mark.parametrize("strategy", ["relay", "baseline", "lwf"])
def test_one_image_of_a_step_changes_no_network_by_more_than_it_may(toy, monkeypatch, strategy):
    """Through whole steps: with one image more, each private gradient moves by the clipped norm at most."""
    noiseless(monkeypatch)
    seen = []
    for count in (3, 4):
        torch.manual_seed(0)
        made = make_strategy(private_run(toy, {"D_reg_interval": 1}, {"augment": "none"}, strategy=strategy).site(1), CPU)
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
        labels = torch.randint(0, 3, (4, 16, 16), generator=torch.Generator().manual_seed(5))
        made.privacy.enter([*"abcdefgh"], [*"abcdefgh"])
        made.begin_site("A", 8)
        totals = []
        original = made.privacy.differentiate

        def watched(losses, parameters, share, original=original, totals=totals):
            torch.manual_seed(7)  # the same augmentation and label noise
            mean = original(losses, parameters, share)
            totals.append(torch.cat([p.grad.flatten() for p in parameters]) / share)
            return mean

        made.privacy.differentiate = watched
        with made.privacy.step(0, 4):
            from relay_core.strategies import Position

            assert made.real_count(Position(0, 6, 6)) == 8
            torch.manual_seed(3)
            losses = made.step(images[:count], labels[:count], Position(0, 6, 6))
        assert all(value.isfinite() for value in losses.values())
        seen.append(totals)
    assert len(seen[0]) == (2 if strategy == "relay" else 1)
    for fewer, more in zip(*seen, strict=True):
        assert 0 < (more - fewer).norm() <= CLIP * 1.001


def test_a_relay_stopped_and_resumed_is_bit_equal_and_its_secret_ends_with_it(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_bytes", lambda n: bytes(range(n)))
    run = private_run(toy, kwargs={"gan_every": 2}, train={"checkpoint_seconds": 0, "batch_size": 4, "num_mimgs": 16e-6})
    found = []
    for name, stops in (("whole", []), ("parts", [1, 2, 3])):
        for limit in [*stops, None]:
            asked = []

            def stop(asked=asked, limit=limit):
                asked.append(1)
                return limit is not None and len(asked) >= limit

            try:
                RelayRun(run, tmp_path / name, toy.data, CPU, resume=True, stop=stop)()
            except Stopped:
                half = checkpoint.newest(max((tmp_path / name).glob("task_*")), print)
                assert checkpoint.SECRET in half.tensors
        found.append([checkpoint.newest(tmp_path / name / f"task_{site}", print) for site in (1, 2)])
    for whole, parts in zip(*found, strict=True):
        assert whole.tensors.keys() == parts.tensors.keys()
        assert all(torch.equal(value, parts.tensors[key]) for key, value in whole.tensors.items())
        assert whole.meta["privacy"] == parts.meta["privacy"]
        assert checkpoint.SECRET not in whole.tensors
    first, second = (one.meta["privacy"] for one in found[0])
    assert (first["unit"], first["units"], first["delta"]) == ("image", 8, 1e-3)
    assert first["spent"] == [[1.0, 0.5, 1, 2], [1.0, 0.5, 2, 2]]  # the game has every second step
    assert sum(steps for *_, steps in second["spent"]) == 4
    assert first["epsilon"] > 1
    assert found[0][0].meta["looks"] == found[0][1].meta["looks"] == {}


def test_two_runs_share_no_randomness(toy, tmp_path):
    run = private_run(toy, strategy="baseline", sites=1)
    for name in "ab":
        RelayRun(run, tmp_path / name, toy.data, CPU)()
    a, b = (checkpoint.newest(tmp_path / name / "task_1", print).network("solver") for name in "ab")
    assert not equal(a, b)


def test_a_training_that_began_without_it_cannot_claim_it(toy, tmp_path):
    with_it, without = (private_run(toy, train=train, strategy="baseline", sites=1) for train in ({}, {"privacy": None}))
    for first, then in ((with_it, without), (without, with_it)):
        out = tmp_path / first.digest[:8]
        RelayRun(first, out, toy.data, CPU)()
        with pytest.raises(CheckpointError, match=r"train\.privacy"):
            RelayRun(then, out, toy.data, CPU, resume=True)()


def test_nobody_may_be_drawn(toy, tmp_path, monkeypatch):
    """A step without any image moves the networks all the same, by noise."""
    monkeypatch.setattr(Privacy, "draw", lambda self, place, expected: [])
    run = private_run(toy)
    RelayRun(run, tmp_path / "out", toy.data, CPU)()
    last = checkpoint.newest(tmp_path / "out/task_2", print)
    assert all(value.isfinite().all() for value in last.network("solver").values())


@pytest.mark.parametrize("patients", [False, True])
def test_patients_are_the_units_where_they_are_named(toy, tmp_path, monkeypatch, patients):
    entered = []
    original = SiteData.__init__

    def named(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if patients:
            self.subjects = [name[:3] for name in self.names]

    monkeypatch.setattr(SiteData, "__init__", named)
    monkeypatch.setattr(Privacy, "draw", lambda self, place, expected: entered.append(self.units) or [0, 1])
    RelayRun(private_run(toy, strategy="baseline", sites=1), tmp_path / "out", toy.data, CPU)()
    facts = checkpoint.newest(tmp_path / "out/task_1", print).meta["privacy"]
    assert (facts["unit"], facts["units"]) == (("patient", 1) if patients else ("image", 8))


@pytest.mark.parametrize(
    ("strategy", "model", "train", "key"),
    [
        ("relay", {"solver_kwargs": {"norm": "batch"}}, {}, r"solver_kwargs\.norm"),
        ("relay", {"recoloured_share": 0.5}, {}, "recoloured_share"),
        ("relay", {"gan_batch_size": 4}, {}, "gan_batch_size"),
        ("relay", {"task_merge_replay": True}, {}, "task_merge_replay"),
        ("relay", {"published": True}, {}, "corrections"),
        ("relay", {"solver_distil_weight": 0}, {}, "solver_distil_weight"),
        ("relay", {"solver_resolution": 32}, {}, "reduced_share"),
        ("relay", {}, {"precision": "16"}, "precision"),
        ("relay", {}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches"),
        ("baseline", {}, {"joint_training": True}, "joint"),
        *[(name, {}, {}, name) for name in ("ewc", "si", "owm", "style", "rehearsal", "fedavg")],
    ],
)
def test_what_would_let_images_leak_past_it_is_refused_by_its_key(toy, strategy, model, train, key):
    private_run(toy).site(1).require_consistent()
    with pytest.raises(RunFileError, match=rf"train\.privacy: .*{key}"):
        private_run(toy, model, train, strategy=strategy).site(1).require_consistent()


def test_a_network_of_any_kind_that_keeps_statistics_of_batches_is_refused(toy):
    with pytest.raises(RunFileError, match=r"train\.privacy: .*batch norm"):
        make_strategy(private_run(toy, {"solver_kwargs": {"norm": "batch"}}).site(1), CPU)


def test_a_discriminator_that_must_not_sees_no_neighbours(toy):
    made = make_strategy(private_run(toy).site(1), CPU)
    images = torch.rand(4, 4, 16, 16)
    code = torch.eye(made.s.c_img_dim)[:1].repeat(4, 1)
    together = made.networks["D_img"](images, code)
    alone = torch.cat([made.networks["D_img"](images[i : i + 1], code[:1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert weights(made.networks["D_img"]).keys() == weights(make_strategy(toy.run().site(1), CPU).networks["D_img"]).keys()
