"""Read and write medical images: files, studies, geometry. Loads no torch."""

import logging
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.imaging import masks, out_of_distribution
    from relay_core.imaging.dicom import read_dicom, tells_rescaling
    from relay_core.imaging.display import Display, stretch
    from relay_core.imaging.drawing import as_array, overlay, palette, to_uint8
    from relay_core.imaging.fit import EDGE, axes, shrink, shrink_mask
    from relay_core.imaging.grid import Grid
    from relay_core.imaging.names import is_litter, one_form
    from relay_core.imaging.nifti import read_nifti
    from relay_core.imaging.placement import EVEN, floats
    from relay_core.imaging.readers import (
        NIFTI_SUFFIXES,
        SUFFIXES,
        Spacing,
        read_image,
        read_mask,
        stem_of,
        suffix_of,
        to_channels,
        write_mask,
        write_volume,
    )
    from relay_core.imaging.sheets import contact_sheets
    from relay_core.imaging.study import Study, read_study
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        ["masks", "out_of_distribution"],
        {
            "dicom": ["read_dicom", "tells_rescaling"],
            "display": ["Display", "stretch"],
            "drawing": ["as_array", "overlay", "palette", "to_uint8"],
            "fit": ["EDGE", "axes", "shrink", "shrink_mask"],
            "grid": ["Grid"],
            "names": ["is_litter", "one_form"],
            "nifti": ["read_nifti"],
            "placement": ["EVEN", "floats"],
            "readers": [
                "NIFTI_SUFFIXES",
                "SUFFIXES",
                "Spacing",
                "read_image",
                "read_mask",
                "stem_of",
                "suffix_of",
                "to_channels",
                "write_mask",
                "write_volume",
            ],
            "sheets": ["contact_sheets"],
            "study": ["Study", "read_study"],
        },
    )

for _name in ("pydicom", "highdicom"):  # their log lines quote values of the files that they read
    logging.getLogger(_name).setLevel(logging.CRITICAL)
