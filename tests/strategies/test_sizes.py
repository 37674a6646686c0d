"""A solver of larger images than the generators draw, and a label generator of smaller ones."""

import pytest
import torch

from relay_core.engine import RelayRun, generated_rows
from relay_core.engine.checkpoint import newest
from relay_core.errors import RunFileError
from relay_core.experiments import score_generators
from relay_core.export.checkpoint import export_checkpoint
from relay_core.replay import resize_images, resize_labels
from relay_core.replay.sampler import _moved
from relay_core.strategies import Position

from .test_contract import CPU, equal, make, weights

SIZES = {"solver_resolution": 32, "label_resolution": 8}


def batch(n=8, side=32):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, side, side, generator=generator) * 2 - 1, torch.randint(
        0, 3, (n, side, side), generator=generator
    )


def test_every_network_sees_images_of_its_own_size(toy, monkeypatch):
    strategy = make(toy, num_stages=1, **SIZES)
    seen = {}

    def watch(name):
        def hook(_, args, __):
            seen.setdefault(name, set()).add(tuple(args[0].shape[1:]))

        return hook

    for name in ("D_label", "D_img", "solver"):
        strategy.networks[name].register_forward_hook(watch(name))
    strategy.begin_site("A", 8)
    strategy.begin_site("B", 8)
    images, labels = batch()
    position = Position(0, 8, 8)
    real = strategy.real_count(position)
    losses = strategy.step(images[:real], labels[:real], position)
    assert all(value.isfinite() for value in losses.values())
    assert seen == {"D_label": {(1, 8, 8)}, "D_img": {(4, 16, 16)}, "solver": {(3, 32, 32)}}
    assert {tuple(images.shape[2:]) for images, _ in strategy.samples(2).values()} == {(16, 16)}


def test_some_of_the_sites_own_images_are_as_smooth_as_replay(toy):
    strategy = make(toy, num_stages=1, **SIZES)
    strategy.begin_site("A", 8)
    images, _ = batch()
    assert torch.equal(strategy._reduced(images), images)  # nothing is replayed at a first site
    strategy.begin_site("B", 8)
    strategy.real_count(Position(0, 8, 8))
    reduced = strategy._reduced(images)
    assert torch.equal(reduced[2:], images[2:])  # a quarter
    assert torch.equal(reduced[:2], resize_images(resize_images(images[:2], 16), 32))
    sharp = make(toy, num_stages=1, reduced_share=0, **SIZES)
    for name in "AB":
        sharp.begin_site(name, 8)
    sharp.real_count(Position(0, 8, 8))
    assert torch.equal(sharp._reduced(images), images)


def test_labels_are_resized_by_the_largest_share():
    ids = torch.zeros(1, 4, 4, dtype=torch.long)
    ids[0, :2, :2], ids[0, 2:, 2:], ids[0, 3, 0] = 2, 1, 1
    assert resize_labels(ids, 2, 3).tolist() == [[[2, 0], [0, 1]]]
    wide = resize_labels(torch.tensor([[[0, 0], [0, 2]]]), 8, 3)
    assert set(wide.unique().tolist()) == {0, 2}  # no class between two others appears
    assert (wide[0, 7, 7], wide[0, 4, 4]) == (2, 0)  # the corner is round
    classes = torch.tensor([1, 2])
    assert resize_labels(classes, 8, 3) is classes


def test_a_relay_of_two_sizes_is_trained_resumed_scored_and_exported_at_the_solvers(toy):
    run = toy.run(model={"kwargs": {**SIZES, "gan_at_last_site": True}})
    RelayRun(run, toy.folder / "out", toy.data, CPU)()
    last = newest(toy.folder / "out/task_2", print)
    assert {images.shape[-1] for _, images, _, _ in generated_rows(run.site(2), last, CPU)} == {16}
    scores = score_generators(last, run, toy.data, None, 8, CPU)
    assert set(scores) == {"Domain1", "Domain2"}
    assert all(0 <= row["agreement"] <= 1 and row["num_real"] == 8 for row in scores.values())
    _, facts = export_checkpoint(last, run, toy.data, toy.folder / "model.onnx", "fp32")
    assert facts["resolution"] == 32


def test_sizes_that_do_not_fit_are_refused_with_the_way_out(toy):
    with pytest.raises(RunFileError, match=r"solver_resolution is 8, less than the 16 pixels that the generators draw"):
        toy.run(model={"kwargs": {"solver_resolution": 8}})
    with pytest.raises(RunFileError, match=r"label_resolution must be a power of two and at most .* \(16\), not 32"):
        toy.run(model={"kwargs": {"label_resolution": 32}})
    site = toy.run(dataset={"kwargs": {"img_size": 16}}, model={"kwargs": {"solver_resolution": 32}}).site(1)
    with pytest.raises(RunFileError, match=r"img_size is 16, the solver learns at 32 .*leave img_size out"):
        site.require_consistent()


def test_a_relay_of_one_size_is_what_it_was(toy):
    plain, same = make(toy, num_stages=1), make(toy, num_stages=1, solver_resolution=16, label_resolution=16)
    for strategy in (plain, same):
        torch.manual_seed(1)
        for name in "AB":
            strategy.begin_site(name, 8)
        images, labels = batch(side=16)
        position = Position(0, 8, 8)
        real = strategy.real_count(position)
        strategy.step(images[:real], labels[:real], position)
    for name, network in plain.networks.items():
        assert equal(weights(network), weights(same.networks[name])), name


def test_replayed_maps_are_moved_before_an_image_is_drawn_from_them(toy):
    drawn = {}
    for moves in (0.0, 0.3):
        strategy = make(toy, num_stages=1, replay_map_moves=moves)
        strategy.begin_site("A", 8)
        strategy.begin_site("B", 8)
        torch.manual_seed(0)
        drawn[moves] = strategy._replayer("old").draw(8)
    assert not torch.equal(drawn[0.0].labels, drawn[0.3].labels)
    assert not torch.equal(drawn[0.0].images, drawn[0.3].images)
    with pytest.raises(RunFileError, match=r"replay_map_moves .* needs corrections.conditioning: clean"):
        make(toy, replay_map_moves=0.3, corrections={"conditioning": "raw"})


def test_a_move_scales_and_shifts_by_what_was_asked_at_most():
    ids = torch.zeros(64, 40, 40, dtype=torch.long)
    ids[:, 10:30, 10:30] = 1
    torch.manual_seed(0)
    moved = _moved(ids, 0.1)
    side = moved.sum(dim=(1, 2)).float().sqrt()
    assert 17.5 <= side.min() < 19.5
    assert 20.5 < side.max() <= 22.5
    places = torch.arange(40.0)
    centre = (moved.sum(dim=2) * places).sum(dim=1) / moved.sum(dim=(1, 2)) - 19.5
    assert 2 < centre.abs().max() <= 4.5
