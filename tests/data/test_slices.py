"""Slices of 3-D studies: the data sets mediastinum-tumor and midline."""

import csv

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from relay_core.config.datasets import MediastinumKwargs, MidlineKwargs, dataset_class
from relay_core.data import has_test, load_site, preflight, survey
from relay_core.engine import RelayRun
from relay_core.engine.evaluate import evaluate
from relay_core.errors import DataError, Stopped
from tests.data.conftest import save

TUMOR, MIDLINE = "mediastinum-tumor", "midline"
KINDS = {TUMOR: MediastinumKwargs, MIDLINE: MidlineKwargs}
STUDIES = [f"s{i}" for i in range(10)]
COLUMNS = ["instance_id", "study_id", "img_file", "label_file", "positive"]
CPU = torch.device("cpu")

HU = np.array([[-1000, -501, -500, -160], [-60, 40, 140, 150], [151, 240, 241, 3000], [-1000, 200, 0, 0]])
TUMOUR = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 255, 0]], np.uint8)
"""Air and bone that are labelled, and a label that is not 1."""


def write_table(folder, rows, more=()):
    with (folder / "meta.txt").open("w", newline="") as file:
        csv.writer(file).writerows([[*COLUMNS, *more], *rows])


def read_table(folder):
    with (folder / "meta.txt").open(newline="") as file:
        return list(csv.reader(file))[1:]


def row_of(study, number, positive, *more):
    name = f"{study}_{number}"
    return [name, study, f"images/{name}.png", f"labels/{name}.png", str(int(positive)), *more]


def block(shown):
    """An 8 x 8 mask, with a square of 1 or without."""
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:5] = shown
    return mask


def make_tumours(folder, studies=STUDIES, slices=4):
    """Each study's first slice shows a tumour; its pixels hold the numbers of study and slice."""
    rows = []
    for i, study in enumerate(studies):
        for number in range(slices):
            save(folder / f"images/{study}_{number}.png", np.full((8, 8), 100 * i + number, np.uint16))
            save(folder / f"labels/{study}_{number}.png", block(number == 0))
            rows.append(row_of(study, number, number == 0))
    write_table(folder, rows)
    return folder


def make_midlines(folder, studies=STUDIES, slices=4):
    for i, study in enumerate(studies):
        for number in range(slices):
            save(folder / study / f"{number:04d}.jpg", np.full((8, 8), 40 + 10 * i + number, np.uint8))
            save(folder / study / f"mask_{number:04d}.png", block(number == 0))
    return folder


MAKERS = {TUMOR: make_tumours, MIDLINE: make_midlines}
both = pytest.mark.parametrize("name", [TUMOR, MIDLINE])


def load(name, folder, split="train", resolution=8, **settings):
    return load_site(name, KINDS[name](**settings), folder=folder, split=split, resolution=resolution)


def slices_of(data):
    """Study and file: the files of midline are called alike in all studies."""
    return [(study, original.image.name) for study, original in zip(data.subjects, data.originals, strict=True)]


def messages(name, folder, **settings):
    with pytest.raises(DataError) as caught:
        preflight(name, KINDS[name](**settings), folder)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def one_slice(tmp_path):
    """A hospital of one slice, from 0 = -1024 HU."""
    save(tmp_path / "images/a_1.png", (HU + 1024).astype(np.uint16))
    save(tmp_path / "labels/a_1.png", TUMOUR)
    write_table(tmp_path, [row_of("a", 1, True)])
    return tmp_path


# ---- mediastinum tumours: values and classes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("low", "high"), [(-160, 240), (-1000, 400)])
def test_16_bits_are_hu_and_a_window_makes_them_grey(one_slice, channels, low, high):
    data = load(TUMOR, one_slice, resolution=4, hu_min=-1024, hu_window=(low, high), img_channels=channels)
    images, _ = data.batch([0])
    assert images.shape == (1, channels, 4, 4)
    expected = np.clip((HU - low) / (high - low), 0, 1) * 2 - 1
    np.testing.assert_allclose(images[0], np.broadcast_to(expected, images[0].shape), atol=1e-6)


def test_the_published_coding_is_the_default(one_slice):
    save(one_slice / "images/a_1.png", np.clip(HU + 160, 0, None).astype(np.uint16))
    images, labels = load(TUMOR, one_slice, resolution=4).batch([0])
    np.testing.assert_allclose(images[0, 0], np.clip((HU + 160) / 400, 0, 1) * 2 - 1, atol=1e-6)
    assert labels[0].tolist() == (TUMOUR > 0).astype(int).tolist()


@pytest.mark.parametrize(
    ("options", "names", "expected"),
    [
        ({}, ["tissue", "tumour"], [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]),
        ({"background_label": True}, ["air", "tissue", "tumour"], [[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 2, 1]]),
        ({"bone_label": True}, ["tissue", "tumour", "bone"], [[0, 0, 0, 0], [0, 0, 0, 0], [2, 2, 2, 2], [1, 1, 1, 0]]),
        (
            {"background_label": True, "bone_label": True},
            ["air", "tissue", "tumour", "bone"],
            [[0, 0, 1, 1], [1, 1, 1, 1], [3, 3, 3, 3], [2, 2, 2, 1]],
        ),
    ],
)
def test_air_and_bone_are_classes_where_they_are_asked_for(one_slice, options, names, expected):
    settings = {"hu_min": -1024, "num_classes": len(names), "test_share": 0, **options}
    assert MediastinumKwargs(**settings).names() == names
    assert load(TUMOR, one_slice, resolution=4, **settings).batch([0])[1][0].tolist() == expected
    shares = preflight(TUMOR, MediastinumKwargs(**settings), one_slice).class_shares["train"]
    assert shares == pytest.approx([np.mean(np.array(expected) == c) for c in range(len(names))])


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (TUMOR, {"num_classes": 3}, r"give 2 classes \(tissue, tumour\), num_classes says 3"),
        (TUMOR, {"bone_label": True}, r"give 3 classes \(tissue, tumour, bone\), num_classes says 2"),
        (TUMOR, {"background_label": True, "num_classes": 3}, "hu_min -160 no file holds any"),
        (TUMOR, {"hu_window": (240, -160)}, "hu_window must rise"),
        (TUMOR, {"task": "classification", "class_by": "positive", "num_classes": 3}, r"\(negative, positive\)"),
        (MIDLINE, {"background_label": True}, r"give 3 classes \(background, brain, midline\), num_classes says 2"),
        (MIDLINE, {"test_studies": ["a"], "split_by": "slice"}, "test_studies names whole studies"),
        (MIDLINE, {"negatives_per_positive": -1}, "negatives_per_positive"),
        (MIDLINE, {"hu_min": 0}, "hu_min"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(name, settings, words):
    with pytest.raises(ValidationError, match=words):
        KINDS[name](**settings)


def test_names_of_the_classes_of_slices():
    task = {"task": "classification"}
    assert MidlineKwargs(**task, class_by="positive").names() == ["negative", "positive"]
    assert MediastinumKwargs(**task, num_classes=3).names() == ["site 1", "site 2", "site 3"]
    assert MediastinumKwargs(**task, class_names=["A", "B"]).names() == ["A", "B"]


# ---- midline: values and classes


@pytest.fixture
def one_brain(tmp_path):
    """A study of one slice: dark, not so dark, bright; ids 0, 1, 10, 11 in the rows."""
    save(tmp_path / "a/0001.png", np.tile(np.array([0, 9, 10, 200], np.uint8), (4, 1)))
    save(tmp_path / "a/mask_0001.png", np.array([[0], [1], [10], [11]], np.uint8).repeat(4, 1))
    return tmp_path


def test_ids_up_to_10_are_midline_and_others_brain(one_brain):
    assert load(MIDLINE, one_brain, resolution=4).batch([0])[1][0, :, 0].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("scale", [1, 257])
def test_dark_and_unlabelled_is_background_where_it_is_asked_for(one_brain, scale):
    save(
        one_brain / "a/0001.png", np.tile(np.array([0, 9, 10, 200]) * scale, (4, 1)).astype([np.uint8, np.uint16][scale > 1])
    )
    labels = load(MIDLINE, one_brain, resolution=4, background_label=True, num_classes=3).batch([0])[1][0]
    assert labels.tolist() == [[0, 0, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2], [0, 0, 1, 1]]


def test_255_is_refused_with_a_hint(one_brain):
    mask = np.zeros((4, 4), np.uint8)
    mask[1] = 255
    save(one_brain / "a/mask_0001.png", mask)
    expected = ["a/mask_0001.png: has unknown mask value 255; the midline has an id from 1 to 10; write it as 1, not as 255"]
    assert messages(MIDLINE, one_brain, test_share=0) == expected
    assert messages(MIDLINE, one_brain, test_share=0, negatives_per_positive=1) == expected, "not: nothing is positive"
    assert messages(MIDLINE, one_brain, test_share=0, task="classification", class_by="positive") == expected, (
        "not: all are negative"
    )


def test_jpeg_images_are_read_as_grey_or_repeated(tmp_path):
    make_midlines(tmp_path, ["a", "b"])
    grey, three = (load(MIDLINE, tmp_path, img_channels=n, test_share=0).batch([0, 4])[0] for n in (1, 3))
    assert grey.shape == (2, 1, 8, 8)
    np.testing.assert_allclose(grey[:, 0, 4, 4], np.array([40, 50]) / 127.5 - 1, atol=0.02)
    assert torch.equal(three, grey.expand(-1, 3, -1, -1))


# ---- splits


@both
def test_a_split_by_study_tears_no_study_apart(name, tmp_path):
    folder = MAKERS[name](tmp_path)
    train, test = (load(name, folder, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (32, 8)
    assert sorted({*train.subjects, *test.subjects}) == STUDIES
    assert set(test.subjects) == {"s4", "s9"}, "fixed for ever"
    assert not {*train.subjects} & {*test.subjects}
    assert set(load(name, folder, "test", split_seed=1).subjects) != set(test.subjects)
    assert slices_of(load(name, folder, "test")) == slices_of(test)
    assert preflight(name, KINDS[name](), folder).subjects == {"train": 8, "test": 2}


@both
def test_a_split_by_slice_tears_them_apart(name, tmp_path):
    folder = MAKERS[name](tmp_path)
    train, test = (load(name, folder, split, split_by="slice") for split in ("train", "test"))
    assert (len(train), len(test)) == (32, 8)
    assert len({*slices_of(train), *slices_of(test)}) == 40
    assert {*train.subjects} & {*test.subjects}


@both
def test_studies_for_the_test_are_named(name, tmp_path):
    folder = MAKERS[name](tmp_path)
    named = {"test_studies": ["s9", "s1"]}
    assert sorted({*load(name, folder, "test", **named).subjects}) == ["s1", "s9"]
    assert len(load(name, folder, "train", **named)) == 32
    with pytest.raises(DataError, match=r"test_studies names s77, x, and .*; there are s0, s1, s2, s3, s4, \.\.\."):
        load(name, folder, test_studies=["x", "s1", "s77"])


@both
def test_a_split_that_leaves_a_side_empty_is_refused(name, tmp_path):
    one = MAKERS[name](tmp_path, ["a"])
    with pytest.raises(DataError, match="a single study cannot be split; test_share: 0 trains without a test set"):
        load(name, one, "test")
    assert len(load(name, one, "test", split_by="slice")) == 1
    with pytest.raises(DataError, match="test_studies names all studies, and none is left to train"):
        load(name, one, test_studies=["a"])


@both
@pytest.mark.parametrize("settings", [{"test_share": 0}, {"test_studies": []}])
def test_all_studies_may_train(name, settings, tmp_path):
    folder = MAKERS[name](tmp_path)
    assert has_test(name, KINDS[name](), folder)
    assert not has_test(name, KINDS[name](**settings), folder)
    assert preflight(name, KINDS[name](**settings), folder).counts == {"train": 40}


@both
@pytest.mark.parametrize("task", [{}, {"task": "classification", "class_by": "positive"}])
def test_few_negatives_train_and_all_test(name, task, tmp_path):
    folder = MAKERS[name](tmp_path)
    for ratio, wanted in ((0, 8), (0.5, 12), (1, 16), (2, 24), (9, 32)):
        settings = {"negatives_per_positive": ratio, **task}
        train = load(name, folder, **settings)
        assert len(train) == wanted
        assert sum(bool(labels.any()) for labels in train.batch(range(len(train)))[1]) == 8, "all with a finding stay"
        assert len({*train.subjects}) == 8
        assert len(load(name, folder, "test", **settings)) == 8
    spread = [study for study, file in slices_of(load(name, folder, negatives_per_positive=0.5)) if "0.png" not in file[-5:]]
    assert max(map(spread.count, {*spread})) <= 4, "not all from one study"


@both
def test_where_nothing_is_positive_it_says_which_setting_leaves_no_slice(name, tmp_path):
    folder = MAKERS[name](tmp_path, ["a", "b", "c"])
    for path in folder.rglob("*.png"):
        if path.parent.name == "labels" or path.name.startswith("mask_"):
            save(path, block(False))
    if name == TUMOR:
        write_table(folder, [[*row[:4], "0"] for row in read_table(folder)])
    with pytest.raises(DataError, match="negatives_per_positive is 2, and none of the 8 training slices is positive"):
        load(name, folder, negatives_per_positive=2)


# ---- classes of slices


@both
def test_the_class_is_the_site(name, tmp_path):
    folder = MAKERS[name](tmp_path, ["a", "b"])
    settings = {"task": "classification", "num_classes": 3, "test_share": 0}
    for task_id in (None, 1, 2, 3):
        _, labels = load(name, folder, task_id=task_id, **settings).batch(range(8))
        assert labels.tolist() == [(task_id or 1) - 1] * 8
    with pytest.raises(DataError, match="class_by is site, and site 4 is more than num_classes 3"):
        load(name, folder, task_id=4, **settings)


@both
def test_the_class_is_whether_it_is_positive(name, tmp_path):
    folder = MAKERS[name](tmp_path, ["a", "b"])
    settings = {"task": "classification", "class_by": "positive", "test_share": 0}
    data = load(name, folder, **settings)
    assert data.batch(range(8))[1].tolist() == [1, 0, 0, 0] * 2
    assert data.subjects == ["a"] * 4 + ["b"] * 4
    assert preflight(name, KINDS[name](**settings), folder).class_shares == {"train": [0.75, 0.25]}


def test_positive_may_be_said_in_other_words(tmp_path):
    folder = make_tumours(tmp_path, ["a"], slices=6)
    words = ["1", "0", "True", "false", "1.0", "0.0"]
    write_table(folder, [[*row[:4], word] for row, word in zip(read_table(folder), words, strict=True)])
    data = load(TUMOR, folder, task="classification", class_by="positive", test_share=0)
    assert data.batch(range(6))[1].tolist() == [1, 0] * 3


def test_masks_are_needed_only_where_they_are_used(tmp_path):
    tumours, midlines = make_tumours(tmp_path / "t", ["a"]), make_midlines(tmp_path / "m", ["a"])
    write_table(tumours, [[*row[:3], "", row[4]] for row in read_table(tumours)])
    for path in [*(tumours / "labels").iterdir(), *midlines.glob("a/mask_*")]:
        path.unlink()
    site = {"task": "classification", "test_share": 0}
    assert len(load(TUMOR, tumours, **site)) == len(load(MIDLINE, midlines, **site)) == 4
    assert len(load(TUMOR, tumours, **site, class_by="positive")) == 4, "the table says it"
    assert messages(TUMOR, tumours)[0] == "meta.txt: row 2: label_file is empty"
    missing = [f"a/{i:04d}.jpg: has no mask (a file mask_{i:04d}.png beside it)" for i in range(4)]
    for settings in ({}, {**site, "class_by": "positive"}, {**site, "negatives_per_positive": 1}):
        assert messages(MIDLINE, midlines, **settings) == missing


# ---- spacing


class Bright(nn.Module):
    """Tumour is what is bright."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return torch.cat([-images, images], dim=1) * self.scale


def test_distances_are_millimetres_of_studies_where_the_table_has_a_spacing(tmp_path):
    """What is bright lies 2 pixels below the tumour, and in study b 1 to its right; files are twice as large as images."""
    rows = []
    for study, shift, spacing in (("a", (4, 0), ("0.5", "0.7")), ("b", (0, 2), ("0.5", "0.9"))):
        for number in range(2):
            mask = np.zeros((16, 16), np.uint8)
            mask[4:8, 4:8] = 1
            save(tmp_path / f"labels/{study}_{number}.png", mask)
            save(tmp_path / f"images/{study}_{number}.png", np.roll(mask, shift, (0, 1)).astype(np.uint16) * 400)
            rows.append(row_of(study, number, True, *spacing))
    write_table(tmp_path, rows, ["spacing_row", "spacing_column"])
    data = load(TUMOR, tmp_path, "test", test_studies=["a", "b"])
    assert data.spacing == [pytest.approx((1.0, 1.4))] * 2 + [pytest.approx((1.0, 1.8))] * 2
    scores = evaluate(Bright(), data, CPU)
    assert scores["hd95_unit"] == "mm"
    assert [(s["subject"], s["num_images"]) for s in scores["samples"]] == [("a", 2), ("b", 2)]
    assert [s["hd95"] for s in scores["samples"]] == pytest.approx([2.0, 1.8])
    write_table(tmp_path, [[*row[:5], "", ""] for row in rows], ["spacing_row", "spacing_column"])
    scores = evaluate(Bright(), load(TUMOR, tmp_path, "test", test_studies=["a", "b"]), CPU)
    assert (scores["hd95_unit"], [s["hd95"] for s in scores["samples"]]) == ("px", pytest.approx([2.0, 1.0]))


# ---- bad input


def test_what_is_no_hospital(tmp_path):
    folder = tmp_path / "north"
    with pytest.raises(DataError, match="north is not there; expected in it: meta"):
        load(TUMOR, folder)
    (folder / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"north has no meta\.txt; expected .*`relay prepare mediastinum` makes it"):
        load(TUMOR, folder)
    with pytest.raises(DataError, match="north has no train images; expected in it: <study>"):
        load(MIDLINE, folder)
    (folder / "images").rmdir()
    save(folder / "0001.jpg", block(True))
    with pytest.raises(DataError, match="north has no study; expected <study>"):
        load(MIDLINE, folder)
    for content, words in [
        (b"study_id,image\na,b\n", "lacks the columns instance_id, img_file, label_file, positive; it has study_id, image"),
        (b"", "lacks the columns"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8 text"),
        (",".join(COLUMNS).encode() + b"\n", "has no train images; expected in it: meta.txt"),
        (",".join(COLUMNS).encode() + b'\n"' + b"a,b\n" * 50_000, "cannot be read as CSV: .*quote"),
    ]:
        (folder / "meta.txt").write_bytes(content)
        with pytest.raises(DataError, match=rf"north.*{words}"):
            load(TUMOR, folder)


def test_a_table_with_a_mark_spaces_and_more_columns(tmp_path):
    make_tumours(tmp_path, ["a"])
    text = "\n".join(", ".join([*row, "note", "extra"]) for row in read_table(tmp_path))
    (tmp_path / "meta.txt").write_text(f"{' , '.join(COLUMNS)} , note\n{text}\n\n", encoding="utf-8-sig")
    assert load(TUMOR, tmp_path, test_share=0).names == ["a_0", "a_1", "a_2", "a_3"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("instance_id", "", "instance_id is empty"),
        ("study_id", " ", "study_id is empty"),
        ("img_file", "", "img_file is empty"),
        ("label_file", "", "label_file is empty"),
        ("positive", "yes", "positive is 'yes', not 0 or 1"),
        ("positive", "", "positive is '', not 0 or 1"),
        ("img_file", "images/none.png", "there is no file images/none.png"),
        ("label_file", "labels", "there is no file labels"),
        ("label_file", "x" * 300, f"there is no file {'x' * 100}"),
        ("img_file", "../other/a.png", "../other/a.png leads out of the folder"),
        ("img_file", "images/../../a.png", "images/../../a.png leads out of the folder"),
        ("img_file", "/etc/passwd", "/etc/passwd leads out of the folder"),
        ("img_file", "..\\a.png", "..\\a.png leads out of the folder"),
        ("label_file", "C:/a.png", "C:/a.png leads out of the folder"),
        ("instance_id", "s0_0", "instance_id s0_0 stands there twice"),
        ("spacing_row", "wide", "spacing_row and spacing_column must be mm, not wide and 1"),
        ("spacing_row", "-2", "spacing_row and spacing_column must be mm above 0, not -2 and 1"),
        ("spacing_row", "nan", "spacing_row and spacing_column must be mm above 0, not nan and 1"),
    ],
)
def test_a_bad_row_is_named_and_hides_no_other(tmp_path, column, value, message):
    make_tumours(tmp_path, ["s0", "s1", "s2"], slices=1)
    header, rows = [*COLUMNS, "spacing_row", "spacing_column"], [[*row, "1", "1"] for row in read_table(tmp_path)]
    rows[1][header.index(column)] = value
    rows[2][header.index("positive")] = "2"
    write_table(tmp_path, rows, header[5:])
    found = messages(TUMOR, tmp_path, test_studies=["s1"])
    assert found == [f"meta.txt: row 3: {message}", "meta.txt: row 4: positive is '2', not 0 or 1"]


def test_a_table_names_files_with_backslashes_too(tmp_path):
    make_tumours(tmp_path, ["a"])
    write_table(tmp_path, [[cell.replace("/", "\\") for cell in row] for row in read_table(tmp_path)])
    assert len(load(TUMOR, tmp_path, test_share=0)) == 4


def test_a_table_that_was_prepared_with_another_hu_min_is_refused(tmp_path):
    make_tumours(tmp_path, ["a", "b"])
    write_table(tmp_path, [[*row, "-1024"] for row in read_table(tmp_path)], ["hu_min"])
    assert "its file's 0 is -1024 HU, and dataset.kwargs.hu_min is -160: set it alike" in messages(TUMOR, tmp_path)[0]
    assert len(load(TUMOR, tmp_path, hu_min=-1024)) == 4


def test_a_data_set_of_masks_is_not_for_classification():
    with pytest.raises(ValueError, match="this data set is for segmentation, not for classification"):
        dataset_class("fundus")(task="classification")


def test_8_bits_are_no_hu(tmp_path):
    make_tumours(tmp_path, ["a", "b"], slices=2)
    save(tmp_path / "images/a_1.png", np.zeros((8, 8), np.uint8))
    hint = "is not a 16-bit image: HU cannot be told from it; `relay prepare mediastinum` writes 16 bits"
    assert messages(TUMOR, tmp_path) == [f"images/a_1.png: {hint}"]
    assert messages(TUMOR, tmp_path, task="classification") == [f"images/a_1.png: {hint}"]


@both
def test_masks_of_another_size_and_damaged_files_are_named(name, tmp_path):
    folder = MAKERS[name](tmp_path, ["a", "b"])
    paths = {TUMOR: ("images/a_{}.png", "labels/a_{}.png"), MIDLINE: ("a/000{}.jpg", "a/mask_000{}.png")}[name]
    image, mask = ([path.format(i) for i in range(4)] for path in paths)
    save(folder / mask[0], np.zeros((8, 10), np.uint8))
    (folder / image[1]).write_bytes((folder / image[1]).read_bytes()[:50])
    (folder / mask[2]).write_bytes(b"no image")
    expected = [
        f"{mask[0]}: is 10x8 pixels (width x height), its image is 8x8",
        f"{image[1]}: is truncated or damaged: its pixels cannot be decoded",
        f"{mask[2]}: is no PNG, JPEG or TIFF file that can be read, or its header is damaged",
    ]
    assert messages(name, folder) == expected
    found = survey(name, KINDS[name](), folder)
    assert sum(len(pairs) for pairs in found.usable.values()) == 5


def test_a_damaged_mask_is_no_negative_slice(tmp_path):
    make_midlines(tmp_path, ["a", "b"])
    (tmp_path / "a/mask_0000.png").write_bytes(b"no image")
    expected = ["a/mask_0000.png: is no PNG, JPEG or TIFF file that can be read, or its header is damaged"]
    assert messages(MIDLINE, tmp_path, task="classification", class_by="positive") == expected
    assert messages(MIDLINE, tmp_path, negatives_per_positive=0, test_studies=["b"]) == expected


def test_files_that_are_no_slices_are_named(tmp_path):
    make_midlines(tmp_path, ["a", "report"])
    (tmp_path / "a/mask_0002.png").unlink()
    (tmp_path / "a/0003.jpg").unlink()
    save(tmp_path / "a/0000.png", block(False))
    (tmp_path / "a/0007.bmp").write_bytes(b"BM")
    (tmp_path / "a/more").mkdir()
    (tmp_path / "a/notes.txt").write_text("")
    save(tmp_path / ".report/a.png", block(False))
    assert messages(MIDLINE, tmp_path) == [
        "a/0000.png: has the same stem as 0000.jpg; stems must differ",
        "a/0007.bmp: is of an unsupported type; use .png, .jpg, .jpeg, .tif, .tiff, .nii.gz, .nii",
        "a/more: is a folder; files are read from one level only",
        "a/mask_0003.png: is a mask without an image",
        "a/0002.jpg: has no mask (a file mask_0002.png beside it)",
    ]


# ---- studies at two sites


@both
def test_a_study_at_two_sites_is_refused_unless_sites_number_them_alike(name, toy):
    MAKERS[name](toy.folder / "data/Domain1", ["p1", "p2", "p3"])
    MAKERS[name](toy.folder / "data/Domain2", ["p3", "p4", "p1"])
    one = {"img_channels": 1, "label_num_classes": 2, "solver_kwargs": {"in_channels": 1, "num_classes": 2}}

    def play(**kwargs):
        run = toy.run(dataset={"name": name, "kwargs": {"test_share": 0.3, **kwargs}}, model={"kwargs": one})
        RelayRun(run, toy.folder / "out", toy.folder / "data", CPU, stop=lambda: True)()

    with pytest.raises(DataError, match=r"dataset\.kwargs\.same_study_ids: true") as caught:
        play()
    problems = [str(problem) for problem in caught.value.problems]
    assert problems
    assert all(p.endswith("of Domain2: its study is at Domain1 too") for p in problems), problems
    assert not (toy.folder / "out").exists()
    with pytest.raises(Stopped):
        play(same_study_ids=True)
