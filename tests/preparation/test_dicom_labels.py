"""Labels as radiology and radiotherapy have them: DICOM SEG and RT structure sets."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from relay_core.errors import DataError
from relay_core.imaging import masks, read_study
from relay_core.preparation import read_volume
from tests.imaging import dicoms

SHAPE = (6, 20, 24)
OBLIQUE = dicoms.OBLIQUE
AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)


def labels():
    """(S, H, W) of the stack as stored; two structures, of which the first is in slices 2 and 3 alone."""
    ids = np.zeros(SHAPE, np.uint8)
    ids[2:4, 4:12, 5:15] = 1
    ids[1:5, 14:18, 3:9] = 2
    return ids


def series(folder, orientation=AXIAL):
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16) + 1000 * labels().astype(np.int16)
    files = dicoms.stack(values, orientation)
    for i, content in enumerate(files):
        (folder / f"{i}.dcm").write_bytes(content)
    return folder, values, files


def seg(files, ids, **change):
    """A SEG that references the series, as the service writes one."""
    study = read_study(dicoms.packed(files), 1)
    frames = ids[None] if ids.ndim == 2 else ids
    lps = study.grid.turned(frames.transpose(2, 1, 0)) if study.grid is not None else frames
    made = pydicom.dcmread(
        io.BytesIO(masks.to_seg(study, np.ascontiguousarray(lps), ["background", "liver", "tumour"], "m", "1"))
    )
    for name, value in change.items():
        setattr(made, name, value)
    content = io.BytesIO()
    made.save_as(content)
    return content.getvalue()


def structure_set(files, regions):
    """An RT structure set: name -> [(slice, corners as (column, row))] in the first file's plane."""
    headers = [pydicom.dcmread(io.BytesIO(file)) for file in files]
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID, made.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, RTStructureSetStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.SOPClassUID, made.Modality = RTStructureSetStorage, "RTSTRUCT"
    frame = Dataset()
    frame.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    for number, (name, drawn) in enumerate(regions.items(), 1):
        roi, item = Dataset(), Dataset()
        roi.ROINumber = item.ReferencedROINumber = number
        roi.ROIName = name
        item.ContourSequence = []
        for z, corners in drawn:
            header = headers[int(z)]
            along, down = np.array(header.ImageOrientationPatient[:3]), np.array(header.ImageOrientationPatient[3:])
            row_mm, column_mm = header.PixelSpacing
            normal = np.cross(along, down) * 2.5 * (z - int(z))
            points = [header.ImagePositionPatient + along * c * column_mm + down * r * row_mm + normal for c, r in corners]
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{x:.4f}" for point in points for x in point]
            item.ContourSequence.append(contour)
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(item)
    content = io.BytesIO()
    made.save_as(content, enforce_file_format=True)
    return content.getvalue()


def box(rows, columns):
    """The corners around voxels."""
    (top, bottom), (left, right) = rows, columns
    return [(left - 0.4, top - 0.4), (right - 0.6, top - 0.4), (right - 0.6, bottom - 0.6), (left - 0.4, bottom - 0.6)]


def drawn():
    liver = [(z, box((4, 12), (5, 15))) for z in (2, 3)]
    return {"liver": liver, "tumour": [(z, box((14, 18), (3, 9))) for z in (1, 2, 3, 4)]}


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, OBLIQUE])
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_labels_lie_over_their_image_however_it_was_scanned(tmp_path, orientation, kind, as_folder):
    folder, _, files = series(tmp_path / "image", orientation)
    content = seg(files, labels()) if kind == "seg" else structure_set(files, drawn())
    path = tmp_path / ("labels" if as_folder else "labels.dcm")
    if as_folder:
        path.mkdir()
    (path / "x" if as_folder else path).write_bytes(content)
    volume = read_volume(folder, path)
    assert volume.labels.shape == volume.values.shape
    np.testing.assert_array_equal(volume.labels == 1, (volume.values >= 1000) & (volume.values < 2000))
    np.testing.assert_array_equal(volume.labels == 2, volume.values >= 2000)
    assert sorted(volume.spacing) == pytest.approx([0.5, 0.75, 2.5])
    only = read_volume(folder, path, structures=["tumour"])
    np.testing.assert_array_equal(only.labels == 1, volume.values >= 2000)


def test_labels_fit_an_image_that_became_nifti(tmp_path):
    _, _, files = series(tmp_path / "image")
    study = read_study(dicoms.packed(files), 1)
    (tmp_path / "a.nii.gz").write_bytes(study.grid.to_nifti(study.pixels[:, 0]))
    for content in (seg(files, labels()), structure_set(files, drawn())):
        (tmp_path / "b.dcm").write_bytes(content)
        volume = read_volume(tmp_path / "a.nii.gz", tmp_path / "b.dcm")
        np.testing.assert_array_equal(volume.labels > 0, volume.values >= 1000)


def test_holes_and_order(tmp_path):
    folder, _, files = series(tmp_path / "image")
    ring = [(2, box((2, 18), (2, 20))), (2, box((6, 12), (6, 12)))]
    (tmp_path / "b.dcm").write_bytes(structure_set(files, {"ring": ring, "all": [(2, box((0, 20), (0, 24)))]}))
    labels_of = lambda *names: read_volume(folder, tmp_path / "b.dcm", structures=names).labels[2]  # noqa: E731
    ring_labels = labels_of("ring")
    assert (ring_labels[3, 3], ring_labels[8, 8], ring_labels[0, 0]) == (1, 0, 0)
    assert ring_labels.sum() == 16 * 18 - 6 * 6
    over = labels_of("all", "ring")
    assert (over[3, 3], over[8, 8], over[0, 0]) == (2, 1, 1)
    assert set(np.unique(labels_of("ring", "all"))) == {2}
    with pytest.raises(DataError, match="overlap"):
        read_volume(folder, tmp_path / "b.dcm")


@pytest.mark.parametrize(
    ("make", "structures", "words"),
    [
        (lambda f: seg(f, labels()), ["lung"], "no structure called 'lung'; it has 'liver', 'tumour'"),
        (lambda f: seg(f, labels(), FrameOfReferenceUID="1.2.3"), [], "drawn on another image"),
        (lambda f: seg(f, labels(), SegmentationType="FRACTIONAL"), [], "FRACTIONAL segmentation; save it as BINARY"),
        (lambda f: structure_set(f, {}), [], "holds no structure"),
        (lambda f: structure_set(f, {"a": [(2.5, box((2, 4), (2, 4)))]}), [], "do not lie in the slices"),
        (lambda f: structure_set(f, drawn())[:-300], [], "labels: "),
        (
            lambda f: seg(dicoms.stack(np.zeros(SHAPE, np.int16), at=[7.5 + 2.5 * i for i in range(6)]), labels()),
            [],
            "another part of the body",
        ),
        (lambda f: seg(dicoms.stack(np.zeros((6, 20, 24), np.int16), gap=3.0), labels()), [], "another grid"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, make, structures, words):
    folder, _, files = series(tmp_path / "image")
    (tmp_path / "b.dcm").write_bytes(make(files))
    with pytest.raises(DataError) as caught:
        read_volume(folder, tmp_path / "b.dcm", structures=structures)
    assert words in str(caught.value)
    assert "MUSTERMANN" not in str(caught.value)


def test_from_the_command_line(tmp_path):
    from tests.preparation.test_cli import relay

    images, label_folder = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    label_folder.mkdir()
    _, _, files = series(images / "p1")
    (label_folder / "p1.dcm").write_bytes(structure_set(files, drawn()))
    done = relay("slices", images, tmp_path / "out", "--labels", label_folder, "--structures", "tumour")
    assert done.exit_code == 0, done.exception
    assert len(list((tmp_path / "out/mask").iterdir())) == 6
