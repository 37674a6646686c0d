"""The compiled libraries, built once a session into a folder of their own; without a compiler the tests say so."""

import subprocess

import pytest

from relay_core.cuda import build, loader, native


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
    _compile(lambda into: build.build_cuda(into, architectures=(75, 90)), build.nvcc(), folder)
    return folder


@pytest.fixture
def choose(monkeypatch, request):
    """Call with `torch` or `host`: that form serves the CPU for this test, tensors of every size."""

    def use(form):
        if form == "host":
            monkeypatch.setattr(native, "FOLDER", request.getfixturevalue("host_folder"))
        monkeypatch.setenv("RELAY_OPS", "reference" if form == "torch" else "auto")
        monkeypatch.setattr(loader, "WORTH", 0)
        loader.forget()
        assert loader.backend("cpu") == form

    yield use
    loader.forget()


@pytest.fixture(params=["torch", "host"])
def form(choose, request):
    """The test runs in both forms."""
    choose(request.param)
    return request.param
