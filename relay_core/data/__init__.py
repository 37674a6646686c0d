"""Labelled images of a site: readers, layouts, checks, phantoms."""

from relay_core.data.phantom import make_phantoms
from relay_core.data.preflight import PreflightReport, Survey, has_test, load_site, preflight, survey
from relay_core.data.site import Original, SiteData
from relay_core.imaging.readers import read_image, read_mask, write_mask, write_volume

__all__ = [
    "Original",
    "PreflightReport",
    "SiteData",
    "Survey",
    "has_test",
    "load_site",
    "make_phantoms",
    "preflight",
    "read_image",
    "read_mask",
    "survey",
    "write_mask",
    "write_volume",
]
