"""Medical images in and out: files, studies, geometry, measurements. Imports no torch."""

import logging

for _name in ("pydicom", "highdicom"):  # their lines quote values of the files that they work on
    logging.getLogger(_name).setLevel(logging.CRITICAL)
