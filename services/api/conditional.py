"""Read the headers that make a request conditional on the version that its client has (RFC 9110, section 13)."""

from __future__ import annotations

import re

TAGS = r'^(\*|[ \t,]*(W/)?"[!#-~]*"[ \t]*(,[ \t,]*((W/)?"[!#-~]*"[ \t]*)?)*)$'
"""The form of If-Match and If-None-Match: a list of ETags, or `*`, which stands for any version."""
_TAG = re.compile(r'(?:W/)?"[^"]*"')


def names(header: str, etag: str, *, weakly: bool) -> bool:
    """Return whether If-Match or If-None-Match names the version that is there.

    Args:
        header: the header's value.
        etag: the ETag of what is there; those of this service are strong ones.
        weakly: whether a weak tag, `W/"1"`, is as good as a strong one: for If-None-Match, not for If-Match.
    """
    if header.strip() == "*":
        return True
    tags = _TAG.findall(header)
    return etag in ([tag.removeprefix("W/") for tag in tags] if weakly else tags)
