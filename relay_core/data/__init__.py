"""This package lists, checks, loads and augments the labelled images of a site, and makes synthetic sites (phantoms)."""

from relay_core.data.augment import SolverAugment
from relay_core.data.pairs import Layout, Listing, Pair, Split, data_error, relative
from relay_core.data.phantom import make_phantoms
from relay_core.data.preflight import PreflightReport, Survey, has_test, image_reader, listed, load_site, preflight, survey
from relay_core.data.previews import write_previews
from relay_core.data.site import Original, SiteData, set_digest

__all__ = [
    "Layout",
    "Listing",
    "Original",
    "Pair",
    "PreflightReport",
    "SiteData",
    "SolverAugment",
    "Split",
    "Survey",
    "data_error",
    "has_test",
    "image_reader",
    "listed",
    "load_site",
    "make_phantoms",
    "preflight",
    "relative",
    "set_digest",
    "survey",
    "write_previews",
]
