"""The command line as a person or a script meets it: results, errors, exit codes, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def relay(*args, check=True):
    command = [sys.executable, "-m", "relay_core", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def refused(done, code, *words):
    """One clear error: the right exit code, the words that matter, no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    return True


@pytest.fixture(scope="module")
def trained(phantom_data, tmp_path_factory):
    """A relay over two sites, trained from the command line."""
    from tests.conftest import Toy

    toy = Toy(phantom_data, tmp_path_factory.mktemp("trained"))
    run = toy.write()
    done = relay("train", run, "--data-root", toy.data, "--out", toy.folder / "out")
    assert "| Domain2 |" in done.stdout
    assert "Domain1 6/6: " in done.stderr
    assert "images/s" in done.stderr
    return toy


def test_help_and_version():
    assert "relay learning" in relay("--help").stdout.lower()
    assert relay("--version").stdout.startswith("relay ")
    assert "fundus-cpu" in relay("recipes").stdout


def test_train_as_json_ends_with_the_matrices(toy):
    done = relay("train", toy.write(sites=1), "--data-root", toy.data, "--out", toy.folder / "o", "--json", "--tensorboard")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["event"] == "started"
    assert {"step", "checkpoint", "scores", "samples", "finished"} <= {line.get("event") for line in lines[:-1]}
    assert lines[-1]["dice_per_sample"]["rows"] == ["Domain1"]
    assert all("event" in line for line in lines[:-1])
    assert set(lines[-1]) == {"dice_per_sample", "dice", "hd95", "accuracy"}, "the matrices and nothing else"
    assert len((toy.folder / "o/events.jsonl").read_text().splitlines()) == len(lines) - 1
    assert list((toy.folder / "o/tensorboard/Domain1").iterdir())


def test_stop_by_signal_then_resume(toy):
    run = toy.write(sites=1, train={"num_mimgs": 4e-4})
    command = [sys.executable, "-m", "relay_core", "train", str(run), "--data-root", str(toy.data), "--json"]
    command += ["--out", str(toy.folder / "o")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        for line in process.stdout:
            if '"step"' in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == 75
    assert "stopped at step" in errors
    assert '"checkpoint"' in rest
    done = relay("train", run, "--data-root", toy.data, "--out", toy.folder / "o", "--resume", "--json")
    started = json.loads(done.stdout.splitlines()[0])
    assert started["event"] == "started"
    assert started["step"] > 0


def test_evaluate_predict_samples_inspect(trained):
    out, folder = trained.folder / "out", trained.folder
    scores = json.loads(
        relay("evaluate", out / "task_2", "--run", folder / "run.yaml", "--data-root", trained.data, "--json").stdout
    )
    matrix = json.loads((out / "evaluation/dice_per_sample.json").read_text())
    assert [scores[name]["dice_per_sample"] for name in matrix["columns"]] == pytest.approx(matrix["values"][-1])
    table = relay(
        "evaluate", out / "task_2", "--run", folder / "run.yaml", "--data-root", trained.data, "--out", folder / "e"
    )
    assert "| Domain2 | 5 |" in table.stdout
    assert (folder / "e/scores.json").is_file()

    options = ["--run", folder / "run.yaml", "--data-root", trained.data, "--out", folder / "f", "--json"]
    *written, last = relay("evaluate", out / "task_2", *options).stdout.splitlines()
    assert json.loads(last) == scores
    files = [str(folder / "f" / name) for name in ("scores.json", "predictions.png", "worst.png")]
    events = [json.loads(line) for line in written]
    assert events[:3] == [{"event": "written", "path": path} for path in files]
    assert {"event": "written", "path": str(folder / "f" / "evaluation" / "dice_per_sample.csv")} in events
    assert all(Path(path).stat().st_size for path in files)

    images = trained.data / "Domain1/test/ROIs/image"
    relay("predict", out / "task_2", images, "--out", folder / "p")
    masks = sorted((folder / "p").iterdir())
    assert [m.name for m in masks] == sorted(f"{p.stem}.png" for p in images.iterdir())
    mask = pixels(masks[0])
    assert mask.shape == (32, 32)
    assert set(np.unique(mask)) <= {0, 1, 2}

    written = json.loads(
        relay("predict", out / "task_2", images, "--out", folder / "n", "--format", "nifti", "--subject-pattern", "^(00)",
              "--json").stdout
    )  # fmt: skip
    import SimpleITK as sitk

    assert len(written) == 1
    assert sitk.ReadImage(written[0]).GetSize() == (32, 32, 5)

    relay("samples", out / "task_2", "--out", folder / "s.png", "--per-site", 3)
    assert pixels(folder / "s.png").shape[1] > 100
    said = relay("samples", out / "task_2", "--out", folder / "t.png", "--per-site", 1, "--json").stdout
    assert json.loads(said) == {"path": str(folder / "t.png")}
    assert pixels(folder / "t.png").size
    facts = json.loads(relay("inspect", out / "task_2", "--json").stdout)
    assert facts["site"] == "Domain2"
    assert facts["sites_before"] == {"Domain1": {"id": 0, "frequency": 8}}
    assert "digest verified" in relay("inspect", out / "task_2").stdout


def test_predictions_do_not_replace_their_images(trained, tmp_path):
    image = next((trained.data / "Domain1/test/ROIs/image").iterdir())
    (tmp_path / "a.png").write_bytes(image.read_bytes())
    done = relay("predict", trained.folder / "out/task_1", tmp_path, "--out", tmp_path, check=False)
    assert refused(done, 1, "would replace the images")
    assert (tmp_path / "a.png").read_bytes() == image.read_bytes()


def test_a_run_of_other_classes_is_not_scored(trained):
    text = (trained.folder / "run.yaml").read_text().replace("kwargs: {}", "kwargs: {num_classes: 2}", 1)
    (trained.folder / "two.yaml").write_text(text)
    options = ["--run", trained.folder / "two.yaml", "--data-root", trained.data]
    done = relay("evaluate", trained.folder / "out/task_1", *options, check=False)
    assert refused(done, 3, "3 classes")


def test_a_flipped_byte_is_refused(trained):
    path = trained.folder / "flipped.safetensors"
    data = bytearray((trained.folder / "out/task_1/step-00000006.safetensors").read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)
    for command in (["inspect", path], ["samples", path], ["predict", path, trained.data / "Domain1/test/ROIs/image"]):
        assert refused(relay(*command, check=False), 5, "flipped.safetensors", "damaged")
    done = relay("inspect", path, "--json", check=False)
    assert json.loads(done.stdout)["error"] == "checkpoint_invalid"


def test_predict_refuses_what_it_cannot_read_and_writes_nothing(trained, tmp_path):
    good = next((trained.data / "Domain1/test/ROIs/image").iterdir())
    (tmp_path / "a.png").write_bytes(good.read_bytes())
    (tmp_path / "b.png").write_bytes(good.read_bytes()[:200])
    done = relay("predict", trained.folder / "out/task_1", tmp_path, "--out", tmp_path / "masks", check=False)
    assert refused(done, 4, "b.png", "1 of 2")
    assert not (tmp_path / "masks").exists()
    assert refused(relay("predict", trained.folder / "out/task_1", tmp_path / "c.png", check=False), 4, "c.png", "no image")


def test_predict_passes_over_what_an_operating_system_left_in_a_folder(trained, tmp_path):
    good = next((trained.data / "Domain1/test/ROIs/image").iterdir())
    (tmp_path / "a.png").write_bytes(good.read_bytes())
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    relay("predict", trained.folder / "out/task_1", tmp_path, "--out", tmp_path / "masks")
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.png"]


@pytest.fixture
def copied(toy):
    """A copy of the phantoms that a test may spoil."""
    import shutil

    shutil.copytree(toy.data, toy.folder / "data")
    return toy


def train_on_copy(toy):
    done = relay("train", toy.write(sites=1), "--data-root", toy.folder / "data", "--out", toy.folder / "out", check=False)
    assert not (toy.folder / "out").exists()
    return done


def test_a_missing_mask_and_a_truncated_image_are_both_named(copied):
    base = copied.folder / "data/Domain1/train/ROIs"
    (base / "mask/0001.png").unlink()
    (base / "image/0002.png").write_bytes((base / "image/0002.png").read_bytes()[:300])
    assert refused(train_on_copy(copied), 4, "0001.png", "0002.png")


def test_a_16_bit_mask_with_an_unknown_value_is_named(copied):
    path = copied.folder / "data/Domain1/train/ROIs/mask/0003.png"
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(path)
    assert refused(train_on_copy(copied), 4, "0003.png", "4000")


def test_an_empty_folder_is_named(copied):
    for path in (copied.folder / "data/Domain1/train/ROIs/image").iterdir():
        path.unlink()
    for path in (copied.folder / "data/Domain1/train/ROIs/mask").iterdir():
        path.unlink()
    assert refused(train_on_copy(copied), 4, "Domain1")


def test_a_misspelt_key_is_named(toy):
    path = toy.write()
    path.write_text(path.read_text().replace("num_layers", "num_layer", 1))
    done = relay("train", path, "--data-root", toy.data, "--out", toy.folder / "out", check=False)
    assert refused(done, 3, "run.yaml:", "num_layer", "did you mean 'num_layers'")
    assert not (toy.folder / "out").exists()


def test_wrong_arguments(toy):
    run = toy.write()
    assert refused(relay("train", run, "--site", 9, check=False), 3, "--site 9")
    assert refused(relay("train", "nowhere.yaml", check=False), 3, "nowhere.yaml", "recipes")
    assert refused(relay("train", run, "--device", "warp", check=False), 7, "warp")
    assert refused(relay("inspect", toy.folder / "none", check=False), 5, "no checkpoint")
    assert relay("train", check=False).returncode == 2
    assert refused(relay("phantom", toy.data, check=False), 4, "phantoms")
