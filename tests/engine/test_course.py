"""What a training costs: operations counted by hand, kinds of steps, no change of the training, resuming."""

import json
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relay_core.engine import Course, RelayRun, operations
from relay_core.engine.checkpoint import newest
from relay_core.errors import Stopped
from relay_core.metrics import Point, cost_to_quality

CPU = torch.device("cpu")


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_convolution_costs_three_times_its_forward_pass(make, groups):
    layer, x = make(16, 32, 3, padding=1, groups=groups), torch.randn(4, 16, 8, 8, requires_grad=True)
    once = 2 * 4 * 16 * (32 // groups) * 9 * 64
    with operations() as counted:
        y = layer(x)
    assert counted.count == once
    with operations() as counted:
        y.sum().backward()
    assert counted.count == 2 * once


def test_what_is_differentiated_twice_is_counted():
    x, w = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    once = 2 * 5 * 7 * 3
    with operations() as counted:
        (gradient,) = torch.autograd.grad(F.softplus(x @ w).sum(), x, create_graph=True)
    assert counted.count == 2 * once
    with operations() as counted:
        gradient.square().sum().backward()  # by w and by the softplus's slope, then on to x and w
    assert counted.count == 4 * once


class EveryStep(Course):
    """Counts every step, whatever its kind."""

    def watch(self, site, step, steps, work):
        return super().watch(site, step, steps, (work, step))


KINDS = {
    "relay": {"model": {"kwargs": {"G_reg_interval": 2, "D_reg_interval": 3}}, "train": {"solver_num_mimgs": 32e-6}},
    "relay in three stages": {"model": {"kwargs": {"num_stages": 3}}},
    "ewc": {"strategy": {"name": "ewc"}},
    "rehearsal": {"strategy": {"name": "rehearsal"}},
}


@pytest.mark.parametrize("name", KINDS)
def test_steps_of_one_kind_cost_the_same_and_counting_changes_nothing(toy, name):
    run = toy.run(**KINDS[name])
    for folder, course in (("kinds", Course), ("every", EveryStep), ("none", None)):
        out = toy.folder / folder
        RelayRun(run, out, toy.data, CPU, course=course and course(out / "course.json", 3))()
    kinds, every = (Course(toy.folder / folder / "course.json") for folder in ("kinds", "every"))
    assert [(p.site, p.step, p.steps) for p in kinds.points] == [
        (s, n, 6) for s in ("Domain1", "Domain2") for n in (2, 4, 6)
    ]
    every_step = [pytest.approx(p.operations, rel=0.01) for p in every.points]  # augmentation blurs some images, at random
    assert [p.operations for p in kinds.points] == every_step
    assert all(p.seconds > 0 for p in kinds.points)
    assert [list(p.scores) for p in kinds.points] == [["Domain1"]] * 3 + [["Domain1", "Domain2"]] * 3
    digests = {newest(toy.folder / folder / "task_2", print).digest for folder in ("kinds", "none")}
    assert len(digests) == 1
    assert json.loads((toy.folder / "kinds/evaluation/dice_per_sample.json").read_text())["values"][1][0] == pytest.approx(
        kinds.points[-1].scores["Domain1"]
    )


def test_a_course_that_was_interrupted_goes_on(toy):
    run, out, steps = toy.run(sites=1), toy.folder / "out", []

    def play(stop=lambda: False):
        course = Course(out / "course.json", 2)
        RelayRun(run, out, toy.data, CPU, resume=True, stop=stop, course=course)()

    with pytest.raises(Stopped):
        play(lambda: steps.append(1) or len(steps) == 4)
    play()
    whole = Course(toy.folder / "whole.json", 2)
    RelayRun(run, toy.folder / "whole", toy.data, CPU, course=whole)()
    points = Course(out / "course.json").points
    assert [p.step for p in points] == [3, 6]
    assert points[0].operations == whole.points[0].operations
    assert points[1].operations == pytest.approx(whole.points[1].operations, rel=0.4)  # step 4 is taken to be as the mean
    assert points[1].scores == whole.points[1].scores


def test_the_clock_stands_still_while_a_solver_is_scored(tmp_path):
    course = Course(tmp_path / "course.json", 1)
    with course.watch("A", 0, 1, "kind"):
        pass
    assert course.due(1)
    assert course.add(1, lambda: time.sleep(0.3) or {}, CPU).seconds < 0.2
    assert Course(tmp_path / "course.json").seconds < 0.2


def test_cost_and_quality_add_up_over_the_sites():
    alone = [
        Point("A", 1, 2, 1.0, 10.0, {"A": 0.4}),
        Point("A", 2, 2, 2.0, 20.0, {"A": 0.6}),
        Point("B", 1, 1, 3.0, 5.0, {"B": 0.8}),
    ]
    assert cost_to_quality(alone) == [(1.0, 10.0, 0.4), (2.0, 20.0, 0.6), (5.0, 25.0, pytest.approx(0.7))]
    forgets = [*alone[:2], Point("B", 1, 1, 3.0, 5.0, {"A": 0.2, "B": 0.8})]
    assert cost_to_quality(forgets)[-1] == (5.0, 25.0, 0.5)
    assert cost_to_quality([Point("A", 1, 1, 1.0, 1.0, {"A": None})]) == [(1.0, 1.0, None)]
