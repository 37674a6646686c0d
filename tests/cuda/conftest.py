"""The compiled libraries, built once a session into a folder of their own; without a compiler the tests say so.

A test with `form` runs in every form of the ops that this machine has: torch's own operations and the host library on the
CPU, and the kernels where there is a GPU; tensors that it makes are then on that. `RELAY_TEST_FORMS=cuda` leaves the others
out.
"""

import os
import subprocess

import pytest
import torch

from relay_core.cuda import build, loader, native

GPU = ["cuda"] if torch.cuda.is_available() else []
FORMS = os.environ["RELAY_TEST_FORMS"].split(",") if "RELAY_TEST_FORMS" in os.environ else ["torch", "host", *GPU]


def _compile(make, tool, folder):
    if tool is None:
        pytest.skip("no compiler on this machine")
    try:
        return make(folder)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"the library does not compile: {error}")


@pytest.fixture(scope="session")
def host_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    _compile(build.build_host, build.compiler(), folder)
    return folder


@pytest.fixture(scope="session")
def cuda_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    own = [10 * major + minor for major, minor in [torch.cuda.get_device_capability()]] if GPU else []
    _compile(lambda into: build.build_cuda(into, architectures=tuple({75, 90, *own})), build.nvcc(), folder)
    return folder


@pytest.fixture
def choose(monkeypatch, request):
    """Call with `torch`, `host` or `cuda`: that form serves this test, tensors of every size.

    `cuda` makes the GPU the device of new tensors, and `torch` after it stays there.
    """

    def use(form):
        if form != "torch":
            monkeypatch.setattr(native, "FOLDER", request.getfixturevalue(f"{form}_folder"))
        if form == "cuda":
            torch.set_default_device("cuda")
            monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the definitions are convolutions
        monkeypatch.setenv("RELAY_OPS", "reference" if form == "torch" else "auto")
        monkeypatch.setattr(loader, "WORTH", 0)
        loader.forget()
        assert loader.backend(torch.get_default_device().type) == form

    yield use
    torch.set_default_device(None)
    loader.forget()


@pytest.fixture(params=FORMS)
def form(choose, request):
    """The test runs in all forms."""
    choose(request.param)
    return request.param


@pytest.fixture(params=[form for form in FORMS if form != "torch"])
def library(choose, request):
    """The test runs with each library, and may choose `torch` to compare with."""
    choose(request.param)
    return request.param
