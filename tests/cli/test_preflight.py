"""`relay preflight`: what it says of good and of bad data, to a person and to a script, and what it draws."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from relay_core.cli import survey
from relay_core.cli.output import CountLines
from relay_core.imaging.drawing import palette
from tests.cli.test_cli import pixels, refused, relay
from tests.data.conftest import save

OPTIONS = json.dumps(
    {"num_classes": 2, "mask_values": {"0": 0, "255": 1}, "patient_pattern": "^(p[0-9])_", "test_share": 0.2}
)


@pytest.fixture
def said(here, polyps):
    """The JSON lines of a preflight of the polyps, and the exit code."""

    def run(*args):
        done = here("preflight", "folder", polyps, "--options", OPTIONS, "--json", *args)
        return [json.loads(line) for line in done.stdout.splitlines()], done.returncode

    return run


def test_good_data_as_json(polyps, said):
    (report,), code = said()
    assert code == 0
    assert set(report) == {
        "ok", "layout", "counts", "subjects", "class_shares", "digests", "sizes", "duplicates", "repeats", "problems",
        "previews",
    }  # fmt: skip
    assert (report["ok"], report["layout"], report["sizes"]) == (True, "folder", {"12x12": 10})
    assert report["counts"] == {"train": 8, "test": 2}
    assert report["subjects"] == {"train": 4, "test": 1}
    assert sum(report["class_shares"]["train"]) == pytest.approx(1)
    assert (report["duplicates"], report["problems"], report["previews"]) == ([], [], [])
    assert report["repeats"] == {"train": [], "test": []}


def test_duplicates_and_repeats_as_json(here, fundus):
    for split, name in (("train", "b"), ("test", "c")):
        shutil.copy(fundus / "train/ROIs/image/a.png", fundus / split / f"ROIs/image/{name}.png")
    save(fundus / "train/ROIs/image/d.png", np.zeros((6, 14), np.uint8))
    save(fundus / "train/ROIs/mask/d.png", np.zeros((6, 14), np.uint8))
    report = json.loads(here("preflight", "fundus", fundus, "--json").stdout)
    assert report["duplicates"] == [["train/ROIs/image/a.png", "test/ROIs/image/c.png"]]
    assert report["repeats"] == {"train": [["train/ROIs/image/a.png", "train/ROIs/image/b.png"]], "test": []}
    assert report["sizes"] == {"14x6": 1, "12x12": 3}, "width x height"
    text = here("preflight", "fundus", fundus).stdout
    assert "same pixels:\n  train/ROIs/image/a.png = test/ROIs/image/c.png" in text
    assert "train has the same image more than once" in text
    assert "| train | 3 | 3 |" in text


def test_bad_files_are_all_named_beside_the_rest(polyps, said, tmp_path):
    for number in range(5):
        (polyps / f"image/p{number}_0.png").write_bytes(b"no image")
    (polyps / "mask/p1_1.png").unlink()
    (report,), code = said("--previews", tmp_path / "p", "--count", 3)
    assert code == 4
    assert report["ok"] is False
    assert {p["file"] for p in report["problems"]} == {f"image/p{n}_0.png" for n in range(5)} | {"image/p1_1.png"}
    assert all(p["message"] for p in report["problems"])
    assert sum(report["counts"].values()) == 9
    assert report["sizes"] == {"12x12": 4}
    assert report["previews"] == ["preview-000.png", "preview-001.png", "preview-002.png"]
    assert all((tmp_path / "p" / name).is_file() for name in report["previews"])


def test_more_problems_than_an_error_shows_are_in_the_json(polyps, said):
    for number in range(60):
        save(polyps / f"image/p9_{number}.png", np.zeros((4, 4), np.uint8))
    (report,), code = said()
    assert (code, len(report["problems"])) == (4, 60)


def test_bad_files_for_a_person_and_good_ones(polyps):
    arguments = ["preflight", "folder", polyps, "--options", OPTIONS]
    assert "sizes (width x height): 12x12 (10)" in relay(*arguments).stdout
    (polyps / "mask/p0_0.png").unlink()
    done = relay(*arguments, check=False)
    assert refused(done, 4, "polyps cannot be used: 1 problem", "p0_0.png", "has no mask")
    assert done.stdout == ""


def test_no_data_and_wrong_options(here, polyps, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused(here("preflight", "folder", tmp_path / "none"), 4, "none is not there")
    assert refused(here("preflight", "folder", tmp_path / "empty"), 4, "is empty")
    done = here("preflight", "folder", tmp_path / "empty", "--json")
    assert (json.loads(done.stdout)["error"], done.returncode) == ("data_invalid", 4)
    assert refused(here("preflight", "folders", polyps), 3, "data set 'folders' is not known")
    assert refused(here("preflight", "mediastinum-tumor", polyps), 4, "has no meta.txt")
    for options, words in {
        '{"num_clases": 2}': ["--options: unknown key 'num_clases'", "did you mean 'num_classes'?"],
        '{"num_classes": "two"}': ["--options: num_classes: ", "valid integer"],
        '{"patient_pattern": "("}': ["patient_pattern: is not a regular expression"],
        "{": ["--options: not valid JSON"],
        "[" * 100000: ["--options: not valid JSON"],
        "[]": ["give a JSON object"],
    }.items():
        assert refused(here("preflight", "folder", polyps, "--options", options), 3, *words)
    done = here("preflight", "fundus", polyps, "--options", '{"mask_values": {}}', "--json")
    assert json.loads(done.stdout)["error"] == "run_file_invalid"


def test_previews_show_the_mask_and_no_name(here, tmp_path):
    base = tmp_path / "site"
    mask = np.zeros((300, 1200), np.uint8)
    mask[90:210, 300:900] = 1
    for number in range(10):
        save(base / f"image/MUSTERMANN_{number}.png", np.full((300, 1200, 3), 20 * number, np.uint8))
        save(base / f"mask/MUSTERMANN_{number}.png", mask)
    arguments = ["preflight", "folder", base, "--options", '{"num_classes": 2, "test_share": 0}', "--count", 4, "--json"]
    report = json.loads(here(*arguments, "--previews", tmp_path / "p").stdout)
    assert report["previews"] == [f"preview-00{i}.png" for i in range(4)]
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == report["previews"]
    colour = palette(2)[1].astype(float)
    for name, grey in zip(report["previews"], (20, 60, 120, 160), strict=True):  # images 1, 3, 6, 8: evenly spread
        assert b"MUSTERMANN" not in (tmp_path / "p" / name).read_bytes()
        with Image.open(tmp_path / "p" / name) as image:
            assert (image.size, image.info) == ((512, 128), {})
        shown = pixels(tmp_path / "p" / name).astype(float)
        assert shown[5, 5] == pytest.approx([grey] * 3, abs=1)
        assert shown[64, 256] == pytest.approx(0.7 * grey + 0.3 * colour, abs=1), "a translucent fill"
        outlined = (shown == colour).all(axis=-1)
        assert outlined[64, 128], "the class's border"
        assert outlined[64, 128:384].sum() == 2
    again = json.loads(here(*arguments, "--previews", tmp_path / "q").stdout)
    for name in again["previews"]:
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "q" / name).read_bytes()


def test_no_more_previews_than_images_and_small_ones_stay_small(polyps, said, tmp_path):
    (report,), _ = said("--previews", tmp_path / "p", "--count", 99)
    assert len(report["previews"]) == 8
    assert pixels(tmp_path / "p/preview-007.png").shape == (12, 12, 3)


def test_grey_16_bit_images_are_drawn(here, tmp_path):
    save(tmp_path / "s/image/a.png", np.full((8, 8), 32768, np.uint16))
    save(tmp_path / "s/mask/a.png", np.zeros((8, 8), np.uint8))
    options = '{"num_classes": 2, "test_share": 0, "img_channels": 1}'
    done = here("preflight", "folder", tmp_path / "s", "--options", options, "--previews", tmp_path / "p")
    assert f"wrote 1 previews to {tmp_path / 'p'}" in done.stdout
    assert (np.abs(pixels(tmp_path / "p/preview-000.png").astype(int) - 128) <= 1).all()


def test_a_large_site_says_how_far_it_is(polyps, said, monkeypatch):
    assert len(said()[0]) == 1, "ten images are few"
    monkeypatch.setattr(survey, "FEW_IMAGES", 9)
    (polyps / "mask/p0_0.png").write_bytes(b"")
    *progress, report = said()[0]
    assert progress[0] == {"event": "progress", "done": 1, "total": 10}
    assert "ok" in report


def test_progress_is_said_at_most_once_a_second_and_at_the_end():
    now, out = [0.0], io.StringIO()
    progress = CountLines(out, clock=lambda: now[0])
    for done in range(1, 1001):
        now[0] = done * 0.01
        progress(done, 1000)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["done"] for line in lines] == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901, 1000]
    assert {(line["event"], line["total"]) for line in lines} == {("progress", 1000)}
