"""A solver of larger images than the generators draw, and a label generator of smaller ones."""

import pytest
import torch

from relay_core.engine import RelayRun, generated_rows
from relay_core.engine.checkpoint import newest
from relay_core.errors import RunFileError
from relay_core.experiments import compare_sites, score_generators
from relay_core.export.checkpoint import export_checkpoint
from relay_core.replay import partly_reduced, resize_images, resize_labels
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


def test_some_of_the_sites_own_images_are_as_smooth_as_replay():
    images, _ = batch()
    smooth = resize_images(resize_images(images, 16), 32)
    reduced = partly_reduced(images, 16, 0.25, 0)
    alike = [torch.equal(image, each) for image, each in zip(reduced, smooth, strict=True)]
    assert alike == [False, False, False, True] * 2  # a quarter
    assert all(torch.equal(reduced[i], images[i]) for i in range(8) if not alike[i])
    two = [not torch.equal(partly_reduced(images[:2], 16, 0.25, step), images[:2]) for step in range(8)]
    assert two == [False, True] * 4  # a quarter in the long run, where a batch has too few for one
    assert torch.equal(partly_reduced(images, 16, 0, 0), images)


def test_processes_reduce_together_what_one_would(monkeypatch):
    images, _ = batch()
    whole = partly_reduced(images, 16, 0.25, 3)
    monkeypatch.setattr("relay_core.distributed.world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("relay_core.distributed.rank", lambda rank=rank: rank)
        assert torch.equal(partly_reduced(images[rank::2], 16, 0.25, 3), whole[rank::2])


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
    compared = compare_sites(last, run, toy.data, 8, CPU)
    assert (compared["resolution"], len(compared["groups"])) == (16, 4)
    (unlike,) = [one["groups"] for one in compared["statistics"] if one["name"] == "unlike"]
    assert unlike[2]["median"] < 1, "of the site's own images, seen as a prediction sees them"
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
