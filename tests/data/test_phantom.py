from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relay_core.config.datasets import FundusKwargs
from relay_core.data import make_phantoms, preflight
from relay_core.data.phantom_styles import MAX_SITES, style_of
from relay_core.errors import DataError
from relay_core.imaging import read_image, read_mask


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_layout_and_progress(tmp_path):
    steps = []
    folders = make_phantoms(tmp_path / "new" / "p", 2, 3, 1, 32, progress=lambda done, total: steps.append((done, total)))
    assert folders == [tmp_path / "new" / "p" / f"Domain{k}" for k in (1, 2)]
    assert steps == [(n, 8) for n in range(1, 9)]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["p"]
    for folder in folders:
        report = preflight("fundus", FundusKwargs(), folder)
        assert report.counts == {"train": 3, "test": 1}
        assert report.sizes == {(32, 32): 4}
        assert report.duplicates == []
        assert min(report.class_shares["train"]) > 0.02
    with Image.open(folders[0] / "train/ROIs/image/0000.png") as image, Image.open(
        folders[0] / "train/ROIs/mask/0000.png"
    ) as mask:  # fmt: skip
        assert (image.mode, mask.mode) == ("RGB", "L")


def test_the_same_arguments_give_the_same_bytes_and_more_sites_change_nothing(tmp_path):
    make_phantoms(tmp_path / "a", 9, 2, 1, 24, seed=5)
    make_phantoms(tmp_path / "b", 10, 3, 1, 24, seed=5)
    make_phantoms(tmp_path / "c", 9, 2, 1, 24, seed=6)
    a, b, c = (contents(tmp_path / n) for n in "abc")
    assert len(a) == 9 * 3 * 2
    assert all(b[name] == data for name, data in a.items())
    assert all(c[name] != data for name, data in a.items() if "/image/" in name)


def test_sites_differ_and_no_image_is_twice_the_same(tmp_path):
    folders = make_phantoms(tmp_path / "p", 8, 4, 1, 32)
    images = [b for n, b in contents(tmp_path / "p").items() if "/image/" in n]
    assert len(set(images)) == len(images) == 40
    rows = []
    for folder in folders:
        files = sorted((folder / "train/ROIs/image").iterdir())
        pixels = np.stack([read_image(f)[0] for f in files]).astype(float)
        rows.append(pixels.mean((0, 2, 3)))
    apart = np.linalg.norm(np.array(rows)[:, None] - np.array(rows)[None], axis=-1)
    assert apart[~np.eye(8, dtype=bool)].min() > 25, "mean colours of any two sites, of 255"


def test_the_cup_is_brighter_than_the_rim_at_some_sites_and_darker_at_others(tmp_path):
    differences = []
    for folder in make_phantoms(tmp_path / "p", 2, 4, 1, 48):
        for file in sorted((folder / "train/ROIs/image").iterdir()):
            grey, mask = read_image(file, 1)[0][0].astype(float), read_mask(folder / "train/ROIs/mask" / file.name)
            differences.append(grey[mask == 0].mean() - grey[mask == 128].mean())
    assert min(differences[:4]) > 20
    assert max(differences[4:]) < -20


def test_every_site_has_a_style_of_its_own():
    styles = [style_of(site, 0) for site in range(1, MAX_SITES + 1)]
    assert len({style.background for style in styles}) == MAX_SITES
    assert {style.habit for style in styles[:4]} == {"plain", "wide", "core"}


def test_nothing_is_overwritten_or_left_half_written(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(DataError, match="not an empty folder"):
        make_phantoms(tmp_path / "full", 1, 1, 1, 16)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyboardInterrupt):
        make_phantoms(tmp_path / "empty", 1, 1, 1, 16, progress=stop)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["empty", "full", "full/mine"]
    assert len(make_phantoms(tmp_path / "empty", 1, 1, 1, 16)) == 1


@pytest.mark.parametrize("wrong", [{"sites": 0}, {"sites": 33}, {"train": 0}, {"test": 0}, {"size": 8}, {"seed": -1}])
def test_numbers_out_of_range(tmp_path, wrong):
    with pytest.raises(DataError):
        make_phantoms(tmp_path / "p", **{"sites": 1} | wrong)
    assert not list(tmp_path.iterdir())
