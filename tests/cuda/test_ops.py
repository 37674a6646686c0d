"""Every op against the published values, in each of its forms: results, gradients, gradients of gradients."""

import pytest
import torch

from relay_core import cuda
from tests.reference import needs_reference, op_cases, tensors

pytestmark = pytest.mark.usefixtures("form")


def case(op, index):
    prefix = f"{op}/{index}/"
    return {
        k.removeprefix(prefix): v.to(torch.get_default_device()) for k, v in tensors("ops").items() if k.startswith(prefix)
    }


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-6)


@needs_reference
@pytest.mark.parametrize("settings", op_cases("upfirdn2d"), ids=lambda s: str(s["index"]))
def test_upfirdn2d_and_its_gradient(settings):
    t = case("upfirdn2d", settings["index"])
    keys = ("up", "down", "padding", "flip_filter", "gain")
    x = t["x"].requires_grad_()
    function = getattr(cuda, settings.get("fn", "upfirdn2d"))
    y = function(x, t.get("f"), **{k: settings[k] for k in keys if k in settings})
    close(y, t["y"])
    if "gx" in t:
        close(torch.autograd.grad(y, x, t["gy"])[0], t["gx"])


@needs_reference
@pytest.mark.parametrize("settings", op_cases("bias_act"), ids=lambda s: str(s["index"]))
def test_bias_act_first_and_second_derivative(settings):
    t = case("bias_act", settings["index"])
    x, gy = t["x"].requires_grad_(), t["gy"].requires_grad_()
    b = t["b"].requires_grad_() if "b" in t else None
    y = cuda.bias_act(x, b, act=settings["act"], **settings["kw"])
    close(y, t["y"])
    inputs = [x] if b is None else [x, b]
    gradients = torch.autograd.grad(y, inputs, gy, create_graph=True)
    close(gradients[0], t["gx"])
    if b is not None:
        close(gradients[1], t["gb"])
    if not gradients[0].requires_grad:
        return
    ggx, ggy = torch.autograd.grad(gradients[0], [x, gy], t["v"], allow_unused=True)
    close(torch.zeros_like(x) if ggx is None else ggx, t["ggx"])
    close(ggy, t["ggy"])


@needs_reference
@pytest.mark.parametrize("settings", op_cases("conv2d_resample"), ids=lambda s: str(s["index"]))
def test_conv2d_resample(settings):
    t = case("conv2d_resample", settings["index"])
    keys = ("up", "down", "padding", "flip_weight")
    y = cuda.conv2d_resample(t["x"], t["w"], t.get("f"), **{k: settings[k] for k in keys if k in settings})
    close(y, t["y"])


@needs_reference
@pytest.mark.parametrize("fused", [False, True, None])
@pytest.mark.parametrize("settings", op_cases("modulated_conv2d"), ids=lambda s: str(s["index"]))
def test_modulated_conv2d_fused_or_not(settings, fused):
    t = case("modulated_conv2d", settings["index"])
    keys = ("up", "padding", "flip_weight", "demodulate")
    y = cuda.modulated_conv2d(
        t["x"], t["w"], t["styles"], noise=t.get("noise"), resample_filter=t.get("f"), fused=fused,
        **{k: settings[k] for k in keys if k in settings},
    )  # fmt: skip
    close(y, t["y"])
