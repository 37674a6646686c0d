"""A bundle that comes in pieces: it goes on where it broke off, and is the file that was sent."""

import hashlib
import os
import secrets

from tests.api.kit import Site, ok, refused

PATH = "/api/v1/uploads"


def put(site: Site, name: str, offset: int, piece: bytes, client=None):
    headers = {"Content-Type": "application/octet-stream"}
    return (client or site.operator).put(f"{PATH}/{name}", params={"offset": offset}, content=piece, headers=headers)


def test_pieces_become_the_file(site):
    name, content = secrets.token_hex(8), os.urandom(5000)
    assert ok(site.operator.get(f"{PATH}/{name}"))["received"] == 0
    assert ok(put(site, name, 0, content[:2000]))["received"] == 2000
    problem = refused(put(site, name, 0, content[:2000]), 409, "conflict")  # the answer was lost, the piece was not
    assert problem["received"] == 2000
    refused(put(site, name, 3000, content[3000:]), 409, "conflict")
    assert ok(site.operator.get(f"{PATH}/{name}"))["received"] == 2000
    ok(put(site, name, 2000, content[2000:]))
    answer = site.operator.post("/api/v1/imports", params={"upload": name}, headers={"Idempotency-Key": name})
    brought = ok(answer, 202)
    assert (brought["digest"], brought["size"]) == (hashlib.sha256(content).hexdigest(), 5000)
    assert ok(site.operator.get(f"{PATH}/{name}"))["received"] == 0, "the pieces are gone"
    again = site.operator.post("/api/v1/imports", params={"upload": name}, headers={"Idempotency-Key": name + "2"})
    refused(again, 404, "not_found")


def test_nobody_goes_on_with_somebody_elses(site):
    name = secrets.token_hex(8)
    ok(put(site, name, 0, b"mine"))
    other = site.client(site.token("operator"))
    assert ok(other.get(f"{PATH}/{name}"))["received"] == 0
    refused(other.post("/api/v1/imports", params={"upload": name}, headers={"Idempotency-Key": name}), 404, "not_found")
    refused(put(site, name, 4, b"x", site.viewer), 403, "forbidden")


def test_an_upload_has_limits(small_site):
    name = secrets.token_hex(8)
    refused(put(small_site, name, 0, b""), 400, "bad_request")
    refused(put(small_site, name, 0, bytes((2 << 20) + 1)), 413, "too_large")
    refused(put(small_site, name, small_site.settings.max_bundle_mib << 20, b"x"), 413, "too_large")
    for wrong in ("..%2f..%2fx", "a/b", "short", "x" * 65):
        assert put(small_site, wrong, 0, b"x").status_code == 404
    assert ok(small_site.operator.get(f"{PATH}/{name}"))["received"] == 0
