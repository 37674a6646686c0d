"""A chest on a table, as CT sees it, and its tumour; written as any of the kinds that are read."""

import csv

import numpy as np
import SimpleITK as sitk
from PIL import Image

SHAPE = (24, 96, 96)
SPACING = (5.0, 3.0, 3.0)
LUNGS = ((4, 20), (30, 67), (18, 79))
"""The box around the lungs."""
TUMOUR = ((8, 14), (44, 53), (45, 52))


def ellipse(row, column, high, wide):
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    return ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 <= 1


def chest(table=True):
    """HU (24, 96, 96): the table touches the back, and holds more air than a lung."""
    volume = np.full(SHAPE, -1000, np.int16)
    if table:
        volume[:, 81:93, 4:92] = 200
        volume[:, 82:92, 5:91] = -950
    volume[:, ellipse(48, 48, 33, 42)] = 40
    for column in (30, 66):
        volume[4:20, ellipse(48, column, 18, 12)] = -800
    volume[:, 40:43, 47:50] = -900  # the windpipe, through to the first and the last slice
    return volume


def tumour():
    """Labels (24, 96, 96): slices 8 to 13, of 9 x 1, 9 x 2, ... 9 x 6 pixels."""
    labels = np.zeros(SHAPE, np.uint8)
    for i, number in enumerate(range(8, 14)):
        labels[number, 44:53, 45 : 46 + i] = 1
    return labels


def write(path, values, spacing=SPACING, origin=(0.0, 0.0, 0.0), direction=None):
    """By the suffix; spacing and origin in slices, rows, columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez_compressed(path, volume=values, **({} if spacing is None else {"spacing": spacing}))
        return path
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin[::-1])
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path), path.suffix not in (".mhd", ".nii"))
    return path


def hospital(folder, studies=("a", "b"), suffix=".nii.gz"):
    """Folders of images and labels."""
    for study in studies:
        write(folder / "ct" / f"{study}{suffix}", chest())
        write(folder / "seg" / f"{study}{suffix}", tumour())
    return folder / "ct", folder / "seg"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def table(out):
    with (out / "meta.txt").open(newline="") as file:
        return list(csv.DictReader(file))


def tree(out):
    """Every file below a folder, with its bytes and time."""
    return {
        p.relative_to(out).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(out.rglob("*")) if p.is_file()
    }
