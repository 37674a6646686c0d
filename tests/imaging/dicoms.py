"""Small DICOM files, made as they are wanted."""

import io
import zipfile

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

SERIES, STUDY, FRAME = generate_uid(), generate_uid(), generate_uid()
OBLIQUE = [0.8, 0.6, 0.0, 0.0, 0.0, -1.0]


def _base(storage, number):
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.MediaStorageSOPClassUID = storage
    found.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID, found.SOPInstanceUID = storage, found.file_meta.MediaStorageSOPInstanceUID
    found.StudyInstanceUID, found.SeriesInstanceUID, found.FrameOfReferenceUID = STUDY, SERIES, FRAME
    found.PatientName, found.PatientID, found.PatientBirthDate, found.PatientSex = "MUSTERMANN^MAX", "P-4711", "", ""
    found.StudyID, found.StudyDate, found.StudyTime, found.AccessionNumber = "1", "20260101", "120000", "A-1"
    found.ReferringPhysicianName, found.Modality, found.SeriesNumber, found.InstanceNumber = "", "CT", 1, number
    found.ImageType, found.PositionReferenceIndicator = ["ORIGINAL", "PRIMARY", "AXIAL"], ""
    return found


def _pixels(found, values, photometric):
    colour = values.ndim == 3 and photometric == "RGB"
    found.SamplesPerPixel, found.PhotometricInterpretation = 3 if colour else 1, photometric
    if colour:
        found.PlanarConfiguration = 0
    found.Rows, found.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    bits = values.dtype.itemsize * 8
    found.BitsAllocated, found.BitsStored, found.HighBit = bits, bits, bits - 1
    found.PixelRepresentation = int(values.dtype.kind == "i")
    found.PixelData = values.tobytes()


def _written(found):
    content = io.BytesIO()
    found.save_as(content, enforce_file_format=True)
    return content.getvalue()


def one(values, position=(0.0, 0.0, 0.0), orientation=(1, 0, 0, 0, 1, 0), number=1, photometric="MONOCHROME2", **more):
    """A CT slice of 0.5 x 0.75 mm pixels; keywords that are None are left out."""
    found = _base(CTImageStorage, number)
    found.ImagePositionPatient, found.ImageOrientationPatient = [float(x) for x in position], list(map(float, orientation))
    found.PixelSpacing, found.SliceThickness = [0.75, 0.5], 2.0
    found.RescaleSlope, found.RescaleIntercept = 1, 0
    for name, value in more.items():
        if value is None:
            delattr(found, name)
        else:
            setattr(found, name, value)
    _pixels(found, values, photometric)
    return _written(found)


def stack(volume, orientation=(1, 0, 0, 0, 1, 0), gap=2.5, at=None, **more):
    """One file a slice, along the normal."""
    normal = np.cross(orientation[:3], orientation[3:])
    places = at or [gap * i for i in range(len(volume))]
    return [
        one(values, np.array([-10.0, 20.0, 5.0]) + normal * place, orientation, i + 1, **more)
        for i, (values, place) in enumerate(zip(volume, places, strict=True))
    ]


def enhanced(volume, gap=2.5, at=None):
    """A multi-frame file whose geometry lies in its functional groups."""
    found = _base(EnhancedCTImageStorage, 1)
    found.NumberOfFrames = len(volume)
    shared, measures, plane, rescale, window = (Dataset() for _ in range(5))
    measures.PixelSpacing, measures.SliceThickness = [0.75, 0.5], gap
    plane.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = 0, 1, "US"
    window.WindowCenter, window.WindowWidth = 100, 200
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    shared.PixelValueTransformationSequence, shared.FrameVOILUTSequence = Sequence([rescale]), Sequence([window])
    found.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for place in at or [gap * i for i in range(len(volume))]:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-10.0, 20.0, 5.0 + place]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    found.PerFrameFunctionalGroupsSequence = Sequence(frames)
    _pixels(found, volume, "MONOCHROME2")
    return _written(found)


def packed(files, name="scan/{}.dcm"):
    """A zip of files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for i, file in enumerate(files):
            archive.writestr(name.format(i), file)
    return content.getvalue()
