"""The libraries themselves: they compile without a warning, load without a GPU, and the choice between them is told."""

import ctypes
import logging
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay_core.cuda import backend, loader, native, setup_filter
from relay_core.cuda.ops import bias_act
from relay_core.cuda.ops.upfirdn2d import _out_size
from relay_core.cuda.ops.upfirdn2d import reference as plain_upfirdn2d
from relay_core.errors import DeviceError
from relay_core.models.stylegan2.ada_transforms import SYM6


@pytest.fixture
def fresh():
    loader.forget()
    yield
    loader.forget()


def test_the_cuda_library_answers_without_a_driver(cuda_folder):
    library = native.load("cuda", cuda_folder)
    assert not isinstance(library, str), library
    assert library.relay_ops_version() == native.VERSION
    count = library.relay_devices()
    assert count >= 0 or library.relay_error(-count)
    if not torch.cuda.is_available():
        assert count <= 0


def test_a_refused_call_says_so_before_it_reaches_a_device(cuda_folder, host_folder):
    for kind, folder in (("cuda", cuda_folder), ("host", host_folder)):
        library = native.load(kind, folder)
        wrong = library.relay_bias_act(*[None] * 4, 9, 4, 1, 1, 0, 0, 0, loader.doubles(1, 1, math.inf), None)
        assert wrong == -1
        assert b"does not serve" in library.relay_error(wrong)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_kernels_arithmetic_on_the_host(host_folder, data):
    """Pixel by pixel, by blocks, by packs of channels: the kernels' bodies, thread after thread, against the definition."""
    torch.manual_seed(0)
    library = native.load("host", host_folder)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    up, down, taps = data.draw(st.sampled_from([(1, 1, 4), (2, 1, 4), (1, 2, 4), (2, 1, 12), (1, 2, 12)]))
    n, c, h, w = (data.draw(st.integers(1, most)) for most in (2, 8, 40, 40))
    pads, flip = data.draw(st.tuples(*[st.integers(-2, 12)] * 4)), data.draw(st.booleans())
    f = torch.randn(4, 4) if taps == 4 else setup_filter(SYM6)
    x = torch.randn(n, c, h, w).to(dtype)
    try:
        width, height = _out_size(x, f, (up, up), (down, down), pads)
    except ValueError:
        return
    expected = plain_upfirdn2d(x.float(), f, (up, up), (down, down), pads, flip, 1.5)
    tolerance = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}[dtype] * (1 + expected.abs().max().item())
    limit = data.draw(st.sampled_from([8 << 10, 32 << 10]))
    for fast in (0, 1, 2):
        kind = torch.channels_last if fast == 2 else torch.contiguous_format
        ours, y = x.to(memory_format=kind), torch.full((n, c, height, width), math.nan, dtype=dtype).to(memory_format=kind)
        sizes = (n, c, h, w, height, width, up, up, down, down, pads[0], pads[2], taps, taps, f.ndim == 1, flip)
        status = library.relay_test_upfirdn2d(
            *map(ctypes.c_void_p, (y.data_ptr(), ours.data_ptr(), f.data_ptr())), loader.DTYPES[dtype],
            loader.longs((*sizes, *ours.stride(), *y.stride())), ctypes.c_double(1.5), fast, ctypes.c_int64(limit),
        )  # fmt: skip
        if status == -1:  # a block of four such rows is too much for so little memory; channels that fill no 16 bytes
            assert (
                limit < 32 << 10 if fast == 1 else c % (16 // x.element_size()) or y.is_contiguous() or ours.is_contiguous()
            )
            continue
        assert status == 0
        torch.testing.assert_close(y.float(), expected, rtol=0, atol=tolerance)


def test_without_a_library_torch_computes_and_the_log_says_why(fresh, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.delenv("RELAY_OPS", raising=False)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert backend("cpu") == "torch"
            bias_act(torch.randn(4, 64, 16, 16))
    said = [r.message for r in caplog.records if "ops on cpu" in r.message]
    assert len(said) == 1
    assert "was not built" in said[0]


def test_the_wish_is_heeded(fresh, monkeypatch, host_folder):
    monkeypatch.setattr(native, "FOLDER", host_folder)
    monkeypatch.setenv("RELAY_OPS", "auto")
    assert backend("cpu") == native.in_use("cpu") == "host"
    loader.forget()
    monkeypatch.setenv("RELAY_OPS", "reference")
    assert backend("cpu") == native.in_use("cpu") == "torch"
    monkeypatch.setenv("RELAY_OPS", "cude")
    with pytest.raises(DeviceError, match="one of auto, cuda, reference"):
        native.setting()


def test_cuda_where_there_is_none_is_an_error(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setenv("RELAY_OPS", "auto")
    assert backend("cuda", 0) == native.in_use("cuda:0") == "torch"
    loader.forget()
    monkeypatch.setenv("RELAY_OPS", "cuda")
    with pytest.raises(DeviceError, match="was not built"):
        backend("cuda", 0)
    with pytest.raises(DeviceError, match="RELAY_OPS=cuda"):
        native.require("cpu")


def test_a_gpu_that_is_too_old_gets_torch(fresh, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setenv("RELAY_OPS", "auto")
    assert "7.0" in loader.library("cuda", 0)


@pytest.mark.parametrize(("content", "why"), [(b"", "cannot be loaded"), (b"no library", "cannot be loaded")])
def test_a_damaged_library_is_named(tmp_path, content, why):
    (tmp_path / native.file_name("cuda")).write_bytes(content)
    assert why in native.load("cuda", tmp_path)


def test_a_library_that_computes_something_else_is_not_used(choose, monkeypatch, caplog):
    choose("host")
    right = loader.call

    def wrong(found, name, out, *args):
        right(found, name, out, *args)
        if name == "relay_upfirdn2d":
            out.mul_(1.5)

    monkeypatch.setattr(loader, "call", wrong)
    loader.forget()
    assert loader.backend("cpu") == "torch"
    assert "upfirdn2d in float32 gives other values than its definition" in caplog.text
