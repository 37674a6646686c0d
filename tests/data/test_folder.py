import numpy as np
import pytest
from pydantic import ValidationError

from relay_core.config.datasets import FolderKwargs, FundusKwargs, dataset_class
from relay_core.data import load_site, preflight
from relay_core.data.folder import split_subjects
from relay_core.errors import DataError, RunFileError
from tests.data.conftest import save

BINARY = {"num_classes": 2, "mask_values": {0: 0, 255: 1}}


def names(folder, split, **settings) -> list[str]:
    kwargs = FolderKwargs(**BINARY | settings)
    return load_site("folder", kwargs, folder=folder, split=split, resolution=8).names


def messages(folder, **settings) -> list[str]:
    with pytest.raises(DataError) as caught:
        preflight("folder", FolderKwargs(**BINARY | settings), folder)
    return [str(p) for p in caught.value.problems]


def test_mapping_gives_class_ids(polyps):
    site = load_site("folder", FolderKwargs(**BINARY, test_share=0), folder=polyps, split="train", resolution=12)
    _, labels = site.batch(range(len(site)))
    assert labels.amax() == 1
    assert [int(row.sum()) for row in labels[:, :, 0]] == [n for n in range(2, 7) for _ in range(2)]


def test_0_255_without_a_mapping_suggests_one(polyps):
    found = messages(polyps, mask_values=None)
    assert len(found) == 10
    assert found[0].endswith(
        "has unknown mask value 255; num_classes is 2; for a 0/255 mask set mask_values: {0: 0, 255: 1}"
    )


def test_unknown_values_are_named_16_bits_too(polyps):
    save(polyps / "mask" / "p0_0.png", np.array([[0, 300, 255, 301]], np.uint16).repeat(12, 0).repeat(3, 1))
    assert messages(polyps) == ["mask/p0_0.png: has unknown mask values 300, 301; mask_values names only 0, 255"]
    save(polyps / "mask" / "p0_0.png", np.arange(144, dtype=np.uint8).reshape(12, 12))
    assert "1, 2, 3, 4, 5 and 138 more" in messages(polyps)[0]


def test_split_by_share_keeps_patients_together(polyps):
    for seed in range(6):
        settings = {"patient_pattern": r"^(p\d)_", "test_share": 0.4, "split_seed": seed}
        train, test = names(polyps, "train", **settings), names(polyps, "test", **settings)
        assert (len(train), len(test)) == (6, 4)
        assert not {n[:2] for n in train} & {n[:2] for n in test}
        assert sorted(train + test) == [f"p{p}_{i}" for p in range(5) for i in range(2)]
        assert train == sorted(train)


def test_whole_match_is_the_patient_where_there_is_no_group(polyps):
    site = load_site("folder", FolderKwargs(**BINARY, patient_pattern=r"^p\d"), folder=polyps, split="test", resolution=8)
    assert len(set(site.subjects)) == 1
    assert len(site) == 2
    assert "does not match patient_pattern" in messages(polyps, patient_pattern="^p[0-3]")[0]


def test_the_split_depends_on_seed_and_names_only():
    subjects = [f"s{i}" for i in range(40)]
    first = split_subjects(subjects, 0.2, 1234)
    assert first == split_subjects(reversed(subjects), 0.2, 1234) != split_subjects(subjects, 0.2, 1)
    assert sum(side == "test" for side in first.values()) == 8
    assert sorted(s for s, side in first.items() if side == "test")[:3] == ["s14", "s15", "s19"], "fixed for ever"
    assert split_subjects(["a", "b"], 0.01, 0) != {"a": "train", "b": "train"}, "no side is empty"
    assert set(split_subjects(["a", "b"], 0, 0).values()) == {"train"}


def test_without_a_test_share_there_is_no_test_split(polyps):
    assert preflight("folder", FolderKwargs(**BINARY, test_share=0), polyps).counts == {"train": 10}
    with pytest.raises(DataError, match="test_share is 0"):
        names(polyps, "test", test_share=0)


def test_csv_by_image(polyps):
    rows = [f"p{p}_{i}{'.png' if i else ''},{['train', 'test', 'ignore'][p % 3]}" for p in range(5) for i in range(2)]
    (polyps / "split.csv").write_text("image,split\n" + "\n".join(rows))
    (polyps / "mask" / "p2_0.png").unlink()
    assert names(polyps, "train", split_file="split.csv") == ["p0_0", "p0_1", "p3_0", "p3_1"]
    assert names(polyps, "test", split_file="split.csv") == ["p1_0", "p1_1", "p4_0", "p4_1"]


def test_csv_by_subject_with_sites(polyps):
    (polyps / "split.csv").write_text(
        "subject;site;split\np0;A;train\np1;A;test\np2;B;train\np3;B;test\np4;A;ignore\n", encoding="utf-8-sig"
    )
    settings = {"split_file": "split.csv", "patient_pattern": r"^p\d"}
    assert names(polyps, "train", task_name="A", **settings) == ["p0_0", "p0_1"]
    assert names(polyps, "test", task_name="B", **settings) == ["p3_0", "p3_1"]
    with pytest.raises(DataError, match="no row of site C"):
        names(polyps, "train", task_name="C", **settings)
    with pytest.raises(DataError, match="needs a task_name"):
        names(polyps, "train", **settings)


def test_csv_faults_are_all_named(polyps):
    (polyps / "split.csv").write_text(
        "image,split\n" + "".join(f"p{p}_{i},train\n" for p in range(4) for i in range(2)) + "p4_0,test\nq,test\np0_0,test\n"
    )
    assert messages(polyps, split_file="split.csv") == [
        "split.csv: rows 2 and 12 give p0_0 different splits",
        "split.csv: row 11: there is no image q",
        "image/p4_1.png: has no row in split.csv (split: ignore leaves it out)",
    ]
    (polyps / "split.csv").write_text("image,split\np0_0,val\n")
    assert messages(polyps, split_file="split.csv") == ["split.csv: row 2: split 'val' is not train, test or ignore"]
    for text, words in [("image\np0_0\n", "needs the columns"), ("", "needs the columns"), (None, "is missing")]:
        (polyps / "split.csv").write_text(text) if text is not None else (polyps / "split.csv").unlink()
        with pytest.raises(DataError, match=words):
            names(polyps, "train", split_file="split.csv")


@pytest.mark.parametrize("by_column", [True, False])
def test_a_csv_that_tears_a_patient_apart_is_refused(polyps, by_column):
    rows = [f"p{p}_{i},{'test' if p == 4 or (p, i) == (3, 1) else 'train'},p{p}" for p in range(5) for i in range(2)]
    header = "image,split,subject" if by_column else "image,split,note"
    (polyps / "split.csv").write_text("\n".join([header, *rows]))
    settings = {} if by_column else {"patient_pattern": r"^p\d"}
    assert messages(polyps, split_file="split.csv", **settings) == ["patient p3: has images in train and in test"]


def test_train_and_test_folders(polyps):
    for split, count in (("train", 8), ("test", 10)):
        for kind in ("image", "mask"):
            (polyps / split / kind).mkdir(parents=True)
            for path in sorted((polyps / kind).iterdir())[: count if split == "train" else None]:
                path.rename(polyps / split / kind / path.name)
    for kind in ("image", "mask"):
        (polyps / kind).rmdir()
    assert preflight("folder", FolderKwargs(**BINARY, patient_pattern=r"^p\d"), polyps).counts == {
        "train": 8,
        "test": 2,
    }
    for kind in ("image", "mask"):
        (polyps / "train" / kind / "p3_1.png").rename(polyps / "test" / kind / "p3_1.png")
    assert messages(polyps, patient_pattern=r"^p\d") == ["patient p3: has images in train and in test"]


def test_pairs_must_match_and_stems_differ(polyps):
    (polyps / "mask" / "p0_0.png").unlink()
    (polyps / "image" / "p1_0.png").unlink()
    (polyps / "image" / "p2_0.jpg").write_bytes(b"")
    (polyps / "image" / "more").mkdir()
    assert [m.split(":")[0] for m in messages(polyps)] == [
        "image/more", "image/p2_0.png", "image/p0_0.png", "mask/p1_0.png", "image/p2_0.jpg",
    ]  # fmt: skip


def test_missing_folder(polyps):
    with pytest.raises(DataError, match="has no folder labels; expected"):
        names(polyps, "train", mask_dir="labels")


@pytest.mark.parametrize(
    "wrong",
    [
        {"patient_pattern": "("},
        {"patient_pattern": "(a)(b)"},
        {"mask_values": {7: 3}},
        {"test_share": 1},
        {"out_range": (1, 0)},
        {"img_channels": 2},
        {"task_id": 0},
        {"root_path": {"Amiga": "a"}},
        {"maskvalues": {}},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong)).split("_")[0]):
        FolderKwargs(**wrong)


def test_settings_have_defaults():
    assert FolderKwargs(root_path={"Linux": "a", "Windows": "b"}).mask_values is None


def test_names_of_data_sets(polyps):
    assert dataset_class("fundus") is FundusKwargs
    with pytest.raises(RunFileError, match="did you mean 'midline'"):
        dataset_class("midlin")
    with pytest.raises(RunFileError, match="fundus, folder"):
        dataset_class("fundsu")
    with pytest.raises(TypeError):
        preflight("folder", FundusKwargs(), polyps)


CLASSES = {"task": "classification", "num_classes": 2, "class_names": ["round", "long"], "split_file": "t.csv"}


def table(polyps, *classes, header="image,split,class"):
    rows = [f"p{i // 2}_{i % 2},{'test' if i > 7 else 'train'},{name}" for i, name in enumerate(classes)]
    (polyps / "t.csv").write_text("\n".join([header, *rows]))


def test_a_table_gives_images_their_classes(polyps):
    table(polyps, *["round", "long"] * 5)
    site = load_site("folder", FolderKwargs(**CLASSES), folder=polyps, split="train", resolution=8)
    assert (site.task, len(site)) == ("classification", 8)
    assert site.batch(range(8))[1].tolist() == [0, 1] * 4
    report = preflight("folder", FolderKwargs(**CLASSES), polyps)
    assert (report.counts, report.class_shares["test"]) == ({"train": 8, "test": 2}, [0.5, 0.5])
    (polyps / "mask").rename(polyps / "no masks are needed")
    assert preflight("folder", FolderKwargs(**CLASSES), polyps).counts == {"train": 8, "test": 2}


def test_classes_are_left_out_or_named_as_unknown(polyps):
    table(polyps, *["round", "long"] * 4, "odd", "round")
    kwargs = CLASSES | {"ignore_classes": ["odd"]}
    assert names(polyps, "test", mask_values=None, **kwargs) == ["p4_1"]
    assert messages(polyps, mask_values=None, **CLASSES) == [
        "t.csv: row 10: class 'odd' is not in class_names (round, long; ignore_classes leaves a class out)"
    ]
    table(polyps, *["round", "long"] * 5)
    text = (polyps / "t.csv").read_text()
    (polyps / "t.csv").write_text(text + "\np0_0,train,long")
    assert messages(polyps, mask_values=None, **CLASSES) == ["t.csv: rows 2 and 12 give p0_0 different classes"]
    table(polyps, *["round"] * 10, header="image,split,kind")
    with pytest.raises(DataError, match=r"needs the column class \(class_column\)"):
        preflight("folder", FolderKwargs(**CLASSES), polyps)
    assert preflight("folder", FolderKwargs(**CLASSES, class_column="kind"), polyps).counts["train"] == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split_file": None}, "give split_file, a table with the columns image, split and class"),
        ({"class_names": None}, "class_names, the classes that it names"),
        ({"ignore_classes": ["long"]}, "long is in class_names and in ignore_classes"),
    ],
)
def test_a_classification_needs_a_table_and_names(change, words):
    with pytest.raises(ValidationError, match=words):
        FolderKwargs(**CLASSES | change)
