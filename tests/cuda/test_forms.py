"""The compiled forms against the definitions: types, memory formats, sizes; tracing, compiling, exporting."""

import math

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from relay_core.cuda import setup_filter, styled_conv2d
from relay_core.cuda.ops import bias_act, epilogue, modulated_conv2d, upfirdn2d
from relay_core.cuda.ops.bias_act import reference as plain_bias_act
from relay_core.cuda.ops.epilogue import reference as plain_epilogue
from relay_core.cuda.ops.upfirdn2d import expand_padding
from relay_core.cuda.ops.upfirdn2d import reference as plain_upfirdn2d
from relay_core.models.stylegan2.ada_transforms import SYM6

OPS = torch.ops.relay
LRELU = (1, "lrelu", 0.2, 2**0.5, 1.5)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def f4():
    return setup_filter([1, 3, 3, 1]).to(torch.get_default_device())


def sym6():
    return setup_filter(SYM6).to(torch.get_default_device())


def near(actual, expected, dtype):
    """Equal up to the rounding of `dtype`; `expected` was computed in float32."""
    assert actual.dtype == dtype
    size = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=TOLERANCE[dtype] * 4 * size)


def images(dtype, kind, n=2, c=5, h=19, w=37):
    return torch.randn(n, c, h, w).to(dtype).to(memory_format=kind)


kinds = pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


@dtypes
@kinds
def test_types_and_memory_formats(dtype, kind, form):
    torch.manual_seed(0)
    x, b = images(dtype, kind), torch.randn(5).to(dtype)
    y = OPS.bias_act(x, b, *LRELU)
    near(y, plain_bias_act(x.float(), b.float(), *LRELU), dtype)
    assert y.is_contiguous(memory_format=kind)
    for args in ((f4(), (2, 2), (1, 1), (2, 1, 2, 1), False, 4.0), (sym6(), (1, 1), (2, 2), (5,) * 4, True, 1.0)):
        y = OPS.upfirdn2d(x, *args)
        near(y, plain_upfirdn2d(x.float(), *args), dtype)
        assert y.is_contiguous(memory_format=kind)
    others = (torch.rand(2, 5) + 0.5, torch.randn(2, 1, 19, 37).to(dtype), torch.tensor(0.3), torch.randn(5))
    y = OPS.epilogue(x, *others, 0.2, 1.0, math.inf)
    near(y, plain_epilogue(x.float(), *(t.float() for t in others), 0.2, 1.0, math.inf), dtype)
    assert y.is_contiguous(memory_format=kind)


@kinds
def test_derivatives_in_both_memory_formats(kind, choose, library):
    torch.manual_seed(0)
    inputs = [torch.randn(3, 6, 7, 9).to(memory_format=kind), torch.rand(3, 6) + 0.5, torch.tensor([0.3]), torch.randn(6)]
    noise, f, direction = torch.randn(3, 1, 7, 9), torch.randn(3, 3), torch.randn(3, 6, 7, 9)

    def everything():
        y, scale, strength, bias = (t.clone().requires_grad_() for t in inputs)
        out = OPS.epilogue(y, scale, noise, strength, bias, 0.2, 1.4, 1.5)
        out = OPS.upfirdn2d(out, f, (1, 2), (2, 1), (2, 1, 0, 2), False, 1.0)
        wanted = [y, scale, strength, bias]
        first = torch.autograd.grad((out * direction.mean()).sin().sum(), wanted, create_graph=True)
        return [out, *first, *torch.autograd.grad(sum(t.square().sum() for t in first), wanted)]

    ours = everything()
    choose("torch")
    for one, expected in zip(ours, everything(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 0, 8), (1, 1, 1, 1)])
def test_empty_and_tiny(shape, form):
    x = torch.randn(shape, requires_grad=True)
    y = OPS.bias_act(x, torch.zeros(shape[1]), *LRELU)
    z = OPS.epilogue(x, torch.ones(shape[:2]), None, None, torch.zeros(shape[1]), 0.2, 1.0, math.inf)
    assert y.shape == z.shape == shape
    assert torch.autograd.grad(y.sum() + z.sum(), x)[0].shape == shape
    if shape[0] == 0:
        assert upfirdn2d(x, f4(), up=2, padding=(2, 1, 2, 1)).shape == (0, 3, 16, 16)


def test_not_a_number_and_infinity_pass_as_in_torch(form):
    x = torch.tensor([float("nan"), math.inf, -math.inf, 0.0, -0.0] * 4).reshape(1, 1, 4, 5)
    for act, alpha in (("relu", 0.0), ("lrelu", 0.2), ("linear", 0.0)):
        for clamp in (math.inf, 2.0):
            args = (None, 1, act, alpha, 1.0, clamp)
            torch.testing.assert_close(OPS.bias_act(x, *args), plain_bias_act(x, *args), equal_nan=True)


def test_results_do_not_depend_on_the_number_of_threads(choose):
    choose("host")
    torch.manual_seed(0)
    y, g = torch.randn(8, 32, 33, 31), torch.randn(8, 32, 33, 31)
    rest = (torch.rand(8, 32), torch.randn(33, 31), torch.tensor([0.3]), torch.randn(32), 0.2, 1.4, math.inf)

    def everything():
        return [*OPS.epilogue_grad(g, y, *rest), OPS.upfirdn2d(y, f4(), (1, 1), (2, 2), (1,) * 4, False, 1.0)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(alone, everything(), strict=True))
    finally:
        torch.set_num_threads(before)


CHECKS = {
    "bias_act": lambda x: (x, torch.randn(3), 1, "swish", 0.0, 1.0, math.inf),
    "bias_act_grad": lambda x: (torch.randn(2, 3, 8, 6), x, torch.randn(3), 1, "tanh", 0.0, 1.0, 0.9, 1, False),
    "upfirdn2d": lambda x: (x, f4(), [2, 1], [1, 3], [2, 1, 3, -1], False, 2.0),
    "epilogue": lambda x: (x, torch.rand(2, 3), torch.randn(8, 6), torch.rand(1), torch.randn(3), 0.2, 1.4, 1.0),
    "epilogue_grad": lambda x: (
        torch.randn(2, 3, 8, 6), x, torch.rand(2, 3), torch.randn(8, 6), torch.rand(1), torch.randn(3), 0.2, 1.4, 1.0,
    ),
    "epilogue_grad_grad": lambda x: (
        torch.randn(2, 3, 8, 6), torch.randn(3, 2, 3), torch.randn(2, 3, 8, 6), x.detach(), None, None, None, None, 0.2, 1.4,
        1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
@kinds
def test_opcheck(name, kind, form):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 6).to(memory_format=kind).requires_grad_()
    torch.library.opcheck(getattr(OPS, name).default, CHECKS[name](x))


class Layers(nn.Module):
    """All ops, one after the other."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
        self.bias = nn.Parameter(torch.randn(6))
        self.strength = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("noise", torch.randn(16, 16))
        self.register_buffer("f", f4())

    def forward(self, x, styles):
        x = styled_conv2d(
            x, self.weight, styles, self.bias, self.noise, self.strength, up=2, padding=1, resample_filter=self.f,
            flip_weight=False,
        )  # fmt: skip
        x = bias_act(x, self.bias, act="swish")
        return upfirdn2d(x, self.f, down=2, padding=1)


def double(function, x, styles, parameters):
    """Value, gradient, and the gradient of its squared norm."""
    x, styles = x.clone().requires_grad_(), styles.clone().requires_grad_()
    y = function(x, styles)
    first = torch.autograd.grad(y.sin().sum(), [x, styles], create_graph=True)
    return [y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, styles, *parameters])]


def test_forms_agree_in_value_and_double_backward(choose, library):
    torch.manual_seed(0)
    layers, x, styles = Layers(), torch.randn(2, 4, 8, 8), torch.rand(2, 4) + 0.5
    ours = double(layers, x, styles, list(layers.parameters()))
    choose("torch")
    for a, b in zip(ours, double(layers, x, styles, list(layers.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_compiles_without_graph_breaks_forward_and_backward(form):
    torch.manual_seed(0)
    torch.compiler.reset()
    layers, x, styles = Layers(), torch.randn(2, 4, 8, 8), torch.rand(2, 4) + 0.5
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)

    def once(function):
        a, b = x.clone().requires_grad_(), styles.clone().requires_grad_()
        y = function(a, b)
        return [y, *torch.autograd.grad(y.sin().sum(), [a, b, *layers.parameters()])]

    for ours, eager in zip(once(compiled), once(layers), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)


def test_a_compiled_double_backward_equals_eager(form):
    torch.manual_seed(0)
    torch.compiler.reset()
    layers, x, styles = Layers(), torch.randn(2, 4, 8, 8), torch.rand(2, 4) + 0.5

    def penalty(x, styles):
        (g,) = torch.autograd.grad(layers(x, styles).sin().sum(), styles, create_graph=True)
        return g.square().sum()

    def gradient(function):
        a, b = x.clone().requires_grad_(), styles.clone().requires_grad_()
        return torch.autograd.grad(function(a, b), [a, b])

    traced = make_fx(lambda a, b: torch.autograd.grad(penalty(a, b), [a, b]))(
        x.clone().requires_grad_(), styles.clone().requires_grad_()
    )
    compiled = torch.compile(traced, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        second = compiled(x, styles)
    for ours, eager in zip(second, gradient(penalty), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


def test_an_export_holds_torch_operations_alone(form):
    torch.manual_seed(0)
    layers, x, styles = Layers().eval(), torch.randn(2, 4, 8, 8), torch.rand(2, 4) + 0.5
    program = torch.export.export(layers, (x, styles))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert all(t.startswith("aten.") for t in targets)
    torch.testing.assert_close(program.module()(x, styles), layers(x, styles), rtol=1e-5, atol=1e-5)


def test_one_sample_takes_the_grouped_form_and_many_the_shared(monkeypatch):
    groups = []
    real = torch.nn.functional.conv2d
    monkeypatch.setattr("torch.nn.functional.conv2d", lambda *a, **k: groups.append(a[0].shape[:2]) or real(*a, **k))
    w = torch.randn(3, 4, 3, 3)
    for n in (1, 2):
        modulated_conv2d(torch.randn(n, 4, 16, 16), w, torch.rand(n, 4), padding=1)
    assert groups == [(1, 4), (2, 4)]


def test_gradients_by_noise_are_kept(form):
    noise = torch.randn(2, 1, 8, 8, requires_grad=True)
    epilogue(torch.randn(2, 3, 8, 8), noise=noise).sum().backward()
    assert noise.grad is not None


def test_a_filter_that_learns_gets_its_gradient(form):
    f = f4().clone().requires_grad_()
    upfirdn2d(torch.randn(1, 2, 8, 8), f, padding=2).square().sum().backward()
    assert f.grad.abs().sum() > 0
    assert expand_padding((1, 2)) == (1, 1, 2, 2)
