"""Pickles are read in one place, in a process of its own, and run nothing."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

from relay_core.cli.convert import register
from relay_core.conversion import isolated, pickled
from relay_core.conversion.isolated import convert_pretrained, unpickled
from relay_core.errors import CheckpointError
from relay_core.models.solvers import ResNetEncoder
from tests.conversion.kit import Call, lightning, saved

ROOT = Path(__file__).parents[2]


def refused(path, *words):
    """By the same code in this process: starting one takes two seconds."""
    with pytest.raises(SystemExit) as error:
        pickled.main(path, path.parent)
    said = str(error.value)
    assert "\n" not in said
    for word in words:
        assert word in said
    assert not (path.parent / "tensors.safetensors").exists()
    return True


def test_a_call_in_a_file_is_named_and_not_made(tmp_path):
    mark = tmp_path / "was-run"
    evil = lightning({"model.solver.a": torch.zeros(2)}, callbacks=Call(os.system, f"touch {mark}"))
    path = saved(tmp_path / "last.ckpt", evil)
    with pytest.raises(CheckpointError) as error:
        unpickled(path)
    assert str(error.value).startswith(f"{path}: it wants to run posix.system")
    assert "\n" not in str(error.value)
    assert refused(saved(tmp_path / "old.ckpt", evil, _use_new_zipfile_serialization=False), "posix.system")
    bare = tmp_path / "bare.ckpt"
    bare.write_bytes(pickle.dumps(Call(os.system, f"touch {mark}"), protocol=2))
    assert refused(bare, "posix.system", "nothing of it was run")
    assert not mark.exists()
    pickle.loads(bare.read_bytes())  # the file is as bad as it looks
    assert mark.exists()


def test_a_type_that_is_not_allowed_is_named_with_a_way_out(tmp_path):
    hyper = lightning({"model.solver.a": torch.zeros(2)}, hyper_parameters=argparse.Namespace(lr=1))
    assert refused(saved(tmp_path / "hyper.ckpt", hyper), "argparse.Namespace", "state_dict")


def test_files_that_are_damaged_or_something_else(tmp_path):
    whole = saved(tmp_path / "whole.ckpt", lightning({"model.solver.a": torch.zeros(5000)})).read_bytes()
    for name, content in {"half": whole[: len(whole) // 2], "text": b"hello" * 100, "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name, "it is damaged, or ")
    assert refused(saved(tmp_path / "list.ckpt", [1, 2]), "a list, not a mapping")
    assert refused(saved(tmp_path / "bare.ckpt", lightning({})), "no tensors by name")
    assert refused(saved(tmp_path / "sparse.ckpt", {"a": torch.eye(3).to_sparse()}), "'a' is not a plain tensor")
    bomb = saved(tmp_path / "bomb.ckpt", {"a": torch.zeros(1).expand(1 << 20, 1 << 20)})
    assert refused(bomb, "far more memory")
    with pytest.raises(CheckpointError, match=r"absent.ckpt: no such file"):
        unpickled(tmp_path / "absent.ckpt")


def test_takes_tensors_and_numbers_and_leaves_the_rest(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    state = {
        "model.solver.a": shared, "model.solver.b": shared.t(), "model.solver_old.a": shared,
        "model.fid_img.a": shared, "model.count": torch.tensor(3),
    }  # fmt: skip
    content = lightning(state, epoch=torch.tensor(4), global_step=float("nan"))
    pickled.main(saved(tmp_path / "last.ckpt", content), tmp_path)
    tensors = load_file(tmp_path / "tensors.safetensors")
    assert tensors.keys() == {"model.solver.a", "model.solver.b", "model.count"}
    assert torch.equal(tensors["model.solver.b"], shared.t())
    rest = json.loads((tmp_path / "rest.json").read_text())
    assert rest["checkpoint"]
    assert rest["epoch"] == 4
    assert rest["global_step"] is None
    assert rest["RL_meta"]["cs_current_task"]["Domain2"]["frequency"] == 240
    assert "optimizer_states" not in rest


def test_pretrained_weights_become_safetensors_that_an_encoder_loads(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise SystemExit('not this one')")  # the reading process must not find it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch.manual_seed(0)
    made, other = ResNetEncoder("resnet18", 3), ResNetEncoder("resnet18", 3)
    state = {**made.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    source = saved(tmp_path / "resnet18-f37072fd.pth", state)
    target = tmp_path / "resnet18.safetensors"
    app = Typer()
    app.callback()(lambda: None)
    register(app)
    command = ["convert-checkpoint", str(source), "--pretrained", "--out", str(target)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"wrote {target}, {len(state)} tensors" in done.output
    assert load_file(target).keys() == state.keys()
    other.load_pretrained(target)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in made.state_dict().items())
    with pytest.raises(CheckpointError, match="exists already"):
        convert_pretrained(source, target)
    assert CliRunner().invoke(app, [*command, "--site", "1"]).exit_code == 2
    assert CliRunner().invoke(app, ["convert-checkpoint", str(source), "--out", str(tmp_path)]).exit_code == 2


def test_a_reading_process_may_take_so_long_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "SECONDS", 0.01)
    with pytest.raises(CheckpointError, match="not read within"):
        unpickled(saved(tmp_path / "last.ckpt", {"a": torch.zeros(2)}))


def test_a_checkpoint_is_not_taken_for_pretrained_weights(tmp_path, monkeypatch):
    pickled.main(saved(tmp_path / "last.ckpt", lightning({"model.a": torch.zeros(1)})), tmp_path)
    monkeypatch.setattr(isolated, "_unpacked", lambda _: nullcontext(tmp_path))
    with pytest.raises(CheckpointError, match="leave out --pretrained"):
        convert_pretrained(tmp_path / "last.ckpt", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_nothing_else_in_the_repository_reads_a_pickle():
    own = Path("relay_core/conversion/pickled.py")
    words = ("torch.load(", "pickle.load", "Unpickler(", "read_pickle", "allow_pickle=True")
    folders = ("relay_core", "services", "benchmarks", "docker", "tests")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.parent != Path(__file__).parent]
    assert len(sources) > 100
    found = {path.relative_to(ROOT) for path in sources if any(word in path.read_text() for word in words)}
    assert found == {own}
    assert (ROOT / own).read_text().count("torch.load(") == 1


def test_the_command_is_known_before_torch_is_loaded():
    code = "import sys, relay_core.cli.convert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
