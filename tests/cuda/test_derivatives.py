"""First and second derivatives of the operators, by finite differences in float64, over a drawn space of settings."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay_core.cuda import ACTIVATIONS
from relay_core.cuda.ops.bias_act import PIECEWISE

pytestmark = pytest.mark.usefixtures("form")
drawn = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
OPS = torch.ops.relay


def away_from_kinks(*shape):
    """Values whose sign no finite difference changes."""
    x = torch.randn(*shape, dtype=torch.float64)
    return x + 0.1 * x.sign()


def check(function, *inputs, second=True):
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, inputs)
    if second:
        assert torch.autograd.gradgradcheck(function, inputs)


@drawn
@given(data=st.data())
def test_bias_act(data):
    torch.manual_seed(0)
    act = data.draw(st.sampled_from(sorted(ACTIVATIONS)))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    dim = data.draw(st.integers(0, len(shape) - 1))
    alpha, gain = data.draw(st.sampled_from([0.0, 0.2, -0.3])), data.draw(st.sampled_from([1.0, 2**0.5, -0.5]))
    clamp = data.draw(st.sampled_from([math.inf, 0.37]))
    x, b = away_from_kinks(*shape), torch.zeros(shape[dim], dtype=torch.float64)
    check(lambda x, b: OPS.bias_act(x, b, dim, act, alpha, gain, clamp), x, b)
    check(lambda x: OPS.bias_act(x, None, dim, act, alpha, gain, clamp), x, second=act not in PIECEWISE)


pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


@drawn
@given(data=st.data())
def test_upfirdn2d(data):
    torch.manual_seed(0)
    up, down, flip = data.draw(pair), data.draw(pair), data.draw(st.booleans())
    pads = data.draw(st.tuples(*[st.integers(-1, 4)] * 4))
    height, width = data.draw(st.integers(3, 6)), data.draw(st.integers(3, 6))
    taps = data.draw(st.one_of(st.tuples(st.integers(1, 4)), st.tuples(st.integers(1, 3), st.integers(1, 4))))
    f = torch.randn(*taps, dtype=torch.float64)
    x = torch.randn(2, 2, height, width, dtype=torch.float64)
    padded = width * up[0] + pads[0] + pads[1] - taps[-1], height * up[1] + pads[2] + pads[3] - taps[0]
    if min(padded) < 0:
        with pytest.raises(ValueError, match="does not fit"):
            torch.ops.relay.upfirdn2d(x, f, up, down, pads, flip, 1.5)
        return
    check(lambda x: OPS.upfirdn2d(x, f, up, down, pads, flip, 1.5), x)


@drawn
@given(data=st.data())
def test_epilogue(data):
    torch.manual_seed(0)
    n, c, h, w = (data.draw(st.integers(1, 3)) for _ in range(4))
    clamp, alpha = data.draw(st.sampled_from([math.inf, 0.9])), data.draw(st.sampled_from([0.2, 0.0]))
    noise = data.draw(st.sampled_from([None, torch.randn(n, 1, h, w).double(), torch.randn(h, w).double()]))
    y = away_from_kinks(n, c, h, w)
    scale, bias = torch.rand(n, c).double() + 0.5, torch.full((c,), 0.01).double()
    strength = torch.tensor(0.01).double()
    with_scale = data.draw(st.booleans())

    def function(y, scale, strength, bias):
        return OPS.epilogue(y, scale if with_scale else None, noise, strength, bias, alpha, 2**0.5, clamp)

    inputs = [t.requires_grad_() for t in (y, scale, strength, bias)]
    with torch.no_grad():  # a finite difference across a kink says nothing
        u = (y * scale[:, :, None, None] if with_scale else y) + (0 if noise is None else noise * strength)
        u = u + bias[:, None, None]
        safe = (u.abs() > 1e-3) & ((2**0.5 * torch.nn.functional.leaky_relu(u, alpha)).abs() - clamp).abs().gt(1e-3)
    if not safe.all():
        return
    assert torch.autograd.gradcheck(function, inputs, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(function, inputs, check_undefined_grad=False)


def test_a_third_derivative_is_refused_rather_than_wrong():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    y = OPS.bias_act(x, None, 1, "swish", 0.0, 1.0, math.inf)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="two derivatives"):
        torch.autograd.grad(second.sum(), x)
