"""Sites that do not tell some classes apart: what is learned, completed, distilled and scored."""

import pytest
import torch
import torch.nn.functional as F

from relay_core.config import FolderKwargs
from relay_core.config.states import RelayState
from relay_core.data import load_site, preflight
from relay_core.engine import RelayRun, generated_rows
from relay_core.engine.checkpoint import find, newest
from relay_core.errors import RunFileError
from relay_core.experiments import compare_sites, score_generators, with_nearest
from relay_core.export.checkpoint import export_checkpoint
from relay_core.losses import collapsed, completed, cross_entropy, explog, marginal
from relay_core.metrics import SegmentationScores
from relay_core.strategies import Position, make_strategy

CPU = torch.device("cpu")
GROUPS = ((1, 2),)
WHOLE = {"mask_values": {255: 0, 128: 3, 0: 3}}
PARTS = {"mask_values": {255: 0, 128: 1, 0: 2}}


def run_of(toy, first=WHOLE, second=PARTS, name="relay", strategy=None, **common):
    """A run of two sites of which the first sees disc and cup as one."""
    import yaml

    from relay_core.config import load_run

    folder = {"image_dir": "ROIs/image", "mask_dir": "ROIs/mask", "class_groups": [[1, 2]]}
    chosen = {"name": name, "kwargs": strategy or {}}
    path = toy.write(dataset={"name": "folder", "kwargs": folder}, strategy=chosen, **common)
    raw = yaml.safe_load(path.read_text())
    for entry, values in zip(raw["all_tasks_datasets"], (first, second), strict=True):
        entry["kwargs"] |= values
    path.write_text(yaml.safe_dump(raw))
    return load_run(str(path))


def test_the_loss_of_a_group_is_that_of_its_classes_together():
    logits = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 3, 4]).expand(2, 3, 3)  # background, class 3, the group of 1 and 2
    shares = logits.softmax(dim=1)
    wanted = -torch.stack([shares[:, 0, :, 0], shares[:, 3, :, 1], shares[:, 1, :, 2] + shares[:, 2, :, 2]]).log().mean()
    found = cross_entropy(*marginal(logits, labels, GROUPS))
    torch.testing.assert_close(found, wanted)
    (gradient,) = torch.autograd.grad(found, logits)
    within = logits.detach().clone()
    within[:, 1, :, 2], within[:, 2, :, 2] = logits[:, 2, :, 2].detach(), logits[:, 1, :, 2].detach()
    torch.testing.assert_close(cross_entropy(*marginal(within, labels, GROUPS)), found)  # which of the two does not matter
    assert gradient.isfinite().all()
    (rough,) = torch.autograd.grad(explog(*marginal(logits, labels, GROUPS)), logits)
    assert rough.isfinite().all()
    plain = torch.tensor([0, 1, 2]).expand(2, 3, 3)
    torch.testing.assert_close(cross_entropy(*marginal(logits, plain, GROUPS)), F.cross_entropy(logits, plain))


def test_a_pixel_of_a_group_is_completed_by_the_likelier_of_its_classes():
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0]]).T[None, :, None]  # background is likeliest, and not meant
    assert completed(torch.tensor([[[3, 3]]]), logits, GROUPS).tolist() == [[[2, 1]]]
    assert completed(torch.tensor([[[0, 2]]]), logits, GROUPS).tolist() == [[[0, 2]]]
    whole = collapsed(logits, GROUPS)
    torch.testing.assert_close(whole.softmax(dim=1)[:, 1], logits.softmax(dim=1)[:, 1:].sum(dim=1))


def test_a_site_is_scored_on_what_it_tells_apart():
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[0, 2:6, 2:6] = 3  # the group
    predicted = torch.where(target == 3, 1, 0)
    predicted[0, 3:5, 3:5] = 2
    scores = SegmentationScores(3, GROUPS, GROUPS)
    scores.update(predicted, target, ["a"], [None])
    found = scores.compute()
    assert (found["dice"], found["dice_per_sample"], found["hd95"], found["accuracy"]) == (1.0, 1.0, 0.0, 1.0)
    assert found["dice_per_class"] == [1.0, None]
    assert found["samples"][0]["dice_per_class"] == [1.0, None]
    with pytest.raises(ValueError, match=r"targets hold ids 0 \.\.\. 4, outside 0 \.\.\. 3"):
        scores.update(predicted, torch.where(target == 3, 4, 0), ["b"], [None])
    with pytest.raises(ValueError, match=r"predictions hold ids 0 \.\.\. 3, outside 0 \.\.\. 2"):
        scores.update(target, target, ["b"], [None])


def test_groups_are_read_from_masks_and_counted(toy):
    settings = run_of(toy).site(1).data
    data = load_site("folder", settings, folder=toy.data / "Domain1", split="train", resolution=16)
    assert (data.groups, data.merged) == (GROUPS, GROUPS)
    assert set(data.batch(range(len(data)))[1].unique().tolist()) == {0, 3}
    shares = preflight("folder", settings, toy.data / "Domain1").class_shares["train"]
    assert shares[1:3] == [0, 0]
    assert shares[0] + shares[3] == pytest.approx(1)


@pytest.mark.parametrize("name", ["relay", "fedavg", "lwf", "rehearsal", "style"])
def test_a_run_whose_first_site_labels_less(toy, name):
    run = run_of(toy, name=name, strategy={"local_steps": 1} if name == "fedavg" else {})
    matrices = RelayRun(run, toy.folder / "out", toy.data, CPU)()
    last = newest(toy.folder / ("out/joint" if name == "fedavg" else "out/task_2"), print)
    assert all(value is not None for value in matrices["dice_per_sample"].values[-1])
    if name == "relay":
        state = last.meta["state"]
        assert state["previous"]["Domain1"]["merged"] == [0]
        assert "merged" not in state["current"]["Domain2"]
        RelayState.model_validate(state | {"frozen": []})
        proof, _ = export_checkpoint(find(toy.folder / "out/task_2", print), run, toy.data, toy.folder / "m.onnx", "fp32")
        assert set(proof["tests"]) == {"Domain1", "Domain2"}


def test_what_no_site_before_told_apart_is_distilled_as_a_whole(toy):
    second = make_strategy(run_of(toy).site(2), CPU)
    first = make_strategy(run_of(toy).site(1), CPU)
    first.begin_site("Domain1", 8)
    second.load_handed_over(first.state())
    second.begin_site("Domain2", 8)
    assert second.untold == GROUPS
    images, logits = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    swapped = logits[:, [0, 2, 1]]
    memory = slice(0, 2)
    torch.testing.assert_close(second._distillation(images, logits, memory), second._distillation(images, swapped, memory))
    third = make_strategy(run_of(toy).site(2), CPU)
    third.load_handed_over(second.state())
    third.begin_site("Domain3", 8)
    assert third.untold == ()  # the second site told them apart
    assert float(third._distillation(images, logits, memory)) != float(third._distillation(images, swapped, memory))


@pytest.mark.parametrize("targets", ["teacher", "map"])
def test_hard_targets_of_replay_say_no_more_than_the_sites_before_knew(toy, targets, monkeypatch):
    run = run_of(toy, model={"kwargs": {"num_stages": 1, "corrections": {"replay_targets": targets}}})
    strategy = make_strategy(run.site(2), CPU)
    first = make_strategy(run.site(1), CPU)
    first.begin_site("Domain1", 8)
    strategy.load_handed_over(first.state())
    strategy.begin_site("Domain2", 8)
    seen = []
    monkeypatch.setattr(strategy, "supervised", lambda logits, labels, coarser: seen.append(labels) or logits.sum() * 0)
    monkeypatch.setattr(strategy, "augment", lambda images, labels: (images, labels))
    position = Position(0, 8, 8)
    real = strategy.real_count(position)
    labels = torch.randint(1, 3, (real, 16, 16))
    strategy.step(torch.rand(real, 3, 16, 16) * 2 - 1, labels, position)
    assert torch.equal(seen[0][:real], labels)
    assert set(seen[0][real:].unique().tolist()) <= {0, 3}


def test_a_replay_is_scored_and_shown_where_the_site_labels_less(toy):
    run = run_of(toy, model={"kwargs": {"gan_at_last_site": True}})
    RelayRun(run, toy.folder / "out", toy.data, CPU)()
    last = newest(toy.folder / "out/task_2", print)
    scores = score_generators(last, run, toy.data, None, 8, CPU)
    assert scores["Domain1"]["real_maps"]["present"] == [1.0, 0.0]  # disc and cup are one there
    assert scores["Domain2"]["real_maps"]["present"][1] > 0
    rows = with_nearest(generated_rows(run.site(2), last, CPU, 2), last, run, toy.data, CPU)
    assert len(rows) == 4
    assert int(rows[1][2].max()) <= 2
    areas = [one["groups"] for one in compare_sites(last, run, toy.data, 8, CPU)["statistics"] if one["name"] == "area"]
    assert [["withheld" in group for group in groups] for groups in areas] == [[False, False, True, False]] * 2


def test_groups_that_make_no_sense_are_refused(toy):
    for groups, said in (
        ([[0, 1]], "class_groups names class 0; a group has classes from 1 to 2"),
        ([[1]], "a group has two classes or more"),
        ([[1, 2], [2, 1]], "none is in two groups"),
    ):
        with pytest.raises(ValueError, match=said):
            FolderKwargs(class_groups=groups, mask_values={0: 0})
    with pytest.raises(ValueError, match="mask_values gives class 4, but classes are 0 to 2, groups of classes 3 to 3"):
        FolderKwargs(class_groups=[[1, 2]], mask_values={0: 4})
    with pytest.raises(ValueError, match="class_groups needs mask_values"):
        FolderKwargs(class_groups=[[1, 2]])
    with pytest.raises(RunFileError, match=r"class_groups is \[\] at site Domain2 and .* at the first; put it under"):
        run_of(toy, second={**PARTS, "class_groups": []})
    with pytest.raises(RunFileError, match="loss bce asks of each class alone"):
        run_of(toy, train={"loss": {"name": "bce"}}).site(1).require_consistent()
