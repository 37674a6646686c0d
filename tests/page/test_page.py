"""The site's page over a running API whose worker the test plays: what people see when something is wrong, or hostile."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser, expect
from sqlalchemy import update

from relay_core.experiments.sites import compared
from relay_core.imaging import palette
from services.site import auth, sessions
from services.site.db import BrowserSession, Dataset
from services.trainer.process_output import ProcessOutput
from tests.api.kit import Site, ok, run_text, running
from tests.imaging import dicoms
from tests.imaging.test_study import nifti
from tests.page.kit import Visitor, expected, visiting

AXE = Path(__file__).parents[2] / "docker/page/node_modules/axe-core/axe.min.js"
NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&amp; \u202eאבג ÄÖÜß"
SITE = "<script>alert(3)</script>" + "ü" * 60
LONG = NASTY + "x" * 1500


@dataclass
class Seeded:
    """A site, and one address of each page with something on it."""

    site: Site
    pages: dict[str, str]
    texts: dict[str, list[str]]
    """Page -> what must stand on it as text."""


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory, exported: Any) -> Iterator[Seeded]:
    with running(tmp_path_factory.mktemp("page"), None, RELAY_SITE_NAME="Zürich Süd") as site:
        yield _seed(site, exported)


def _seed(site: Site, exported: Any) -> Seeded:
    dataset = site.dataset()
    change = {"note": LONG, "options": {"num_classes": 2, "class_names": ["background", NASTY]}}
    ok(site.operator.patch(f"/api/v1/datasets/{dataset['id']}", json=change, headers={"If-Match": '"1"'}))
    raw = yaml.safe_load(run_text(990_001))
    raw["all_tasks_datasets"][0]["kwargs"]["task_name"] = SITE
    headers = {"Content-Type": "application/yaml"}
    hostile = ok(site.operator.post("/api/v1/runs", content=yaml.safe_dump(raw), headers=headers), 201)
    run = site.run()
    checkpoint = site.checkpoint(run)
    ok(site.operator.patch(f"/api/v1/checkpoints/{checkpoint.id}", json={"note": LONG}, headers={"If-Match": '"1"'}))
    evaluation = site.evaluation(checkpoint)
    bad = site.dataset()
    report = {"ok": False, "layout": "folder", "counts": {"train": 3}, "subjects": {"train": 3}, "class_shares": {},
              "digests": {}, "sizes": {"32x32": 3}, "duplicates": [["a.png", "b.png"]], "repeats": {"train": []},
              "problems": [{"file": f"image/{NASTY}.png", "message": LONG}], "previews": [], "job": "job-0"}  # fmt: skip
    with site.database.write() as session:
        session.get_one(Dataset, bad["id"]).report = report
    export = site.export(checkpoint)
    signer = {"name": NASTY, "fingerprint": "f" * 64, "trusted": True}
    hop = {"hop": 1, "task_id": 1, "site": NASTY, "signer": NASTY, "fingerprint": "f" * 64, "trusted": True, "images": 8,
           "metrics": {}, "bundle": "0" * 64, "created_at": 1.0,
           "audit": {"outcome": "failed", "override": LONG, "auc": 0.9}}  # fmt: skip
    brought = site.quarantined(run["id"], site=NASTY, signer=signer, history=[hop], metrics={NASTY: {"dice": 0.5}})
    failed = site.submit({"kind": "train", "run_id": run["id"]})
    claim = site.claim(failed["id"])
    site.say(claim, {"event": "log", "line": LONG}, {"event": "warning", "site": NASTY, "message": LONG})
    site.finish(claim, "failed", error={"code": "data_invalid", "message": LONG})
    model = site.model(exported, "fundus")
    second = site.viewer.get("/api/v1/datasets", params={"name": run["sites"][1]["name"]}).json()["items"][0]
    comparison = compare(site, checkpoint.id, run["sites"][1]["name"])
    with site.database.write() as session:
        auth.create_token(session, site.settings.key, NASTY, "viewer")
        site.trusting(session, name=NASTY)
    pages = {
        "overview": "/", "datasets": "/data", "dataset": f"/data/{dataset['id']}",
        "bad data set": f"/data/{bad['id']}", "compared data set": f"/data/{second['id']}",
        "comparison": f"/jobs/{comparison}", "runs": "/runs", "new run": "/runs/new",
        "run": f"/runs/{run['id']}", "hostile run": f"/runs/{hostile['id']}", "jobs": "/jobs",
        "job": f"/jobs/{failed['id']}",
        "checkpoint": f"/checkpoints/{checkpoint.id}", "sites": f"/sites/{evaluation.id}", "hand-off": "/handoff",
        "export": f"/exports/{export.id}", "import": f"/imports/{brought['id']}", "models": "/models",
        "model": f"/models/{model.name}/{model.version}", "keys": "/keys", "audit": "/audit",
    }  # fmt: skip
    texts = {
        "dataset": [LONG], "bad data set": [NASTY, LONG], "datasets": ["files that cannot be used: 1"],
        "compared data set": [f"{isolated(NASTY)}, replay"],
        "comparison": [f"Pieces of {isolated(NASTY)}", f"{isolated('Domain3')} has too few images"],
        "hostile run": [SITE], "job": [LONG], "checkpoint": [LONG], "import": [NASTY, LONG],
        "hand-off": [NASTY], "keys": [NASTY], "audit": ["<script>alert(1)"],
    }  # fmt: skip
    return Seeded(site, pages, texts)


def isolated(name: str) -> str:
    """A name that does not turn what is beside it around."""
    return f"\u2068{name}\u2069"


def compare(site: Site, checkpoint: str, name: str) -> str:
    """What a comparison of sites leaves: the site's images are brighter than the replay, and as sharp."""
    random = np.random.default_rng(0)
    groups = [{"site": NASTY, "kind": "replay", "images": 300}, {"site": name, "kind": "images", "images": 40},
              {"site": "Domain3", "kind": "images", "images": 4}]  # fmt: skip
    values = {
        "brightness": [random.normal(0.3, 0.05, 300), random.normal(0.6, 0.05, 40), random.normal(0.4, 0.1, 4)],
        "sharpness": [random.normal(0.001, 0.0001, size) for size in (300, 40, 4)],
        "pieces": [random.integers(0, 3, size).astype(float) for size in (300, 40, 4)],
    }
    statistics = [
        {"name": key, "class": NASTY if key == "pieces" else None, **compared(each)} for key, each in values.items()
    ]
    content = {"checkpoint": "0" * 64, "resolution": 32, "groups": groups, "statistics": statistics}
    job: str = site.submit({"kind": "compare_sites", "checkpoint_id": checkpoint})["id"]
    claim = site.claim(job)
    site.attach(job, "statistics.json", json.dumps(content).encode(), "application/json")
    site.finish(claim, result={"checkpoints": [], "files": ["statistics.json"]})
    return job


@pytest.fixture
def admin(browser: Browser, seeded: Seeded) -> Iterator[Visitor]:
    with visiting(browser, seeded.site.url) as visitor:
        visitor.sign_in(seeded.site.tokens["admin"])
        yield visitor


def test_what_came_from_outside_is_text_on_every_page(admin: Visitor, seeded: Seeded) -> None:
    shown = {}
    admin.page.on("dialog", lambda dialog: admin.complaints.append(f"a script ran: {dialog.message}"))
    for name, path in seeded.pages.items():
        admin.go(path)
        admin.page.wait_for_timeout(300)
        shown[name] = admin.page.locator("body").evaluate("body => body.textContent")
        assert admin.page.locator("main script, main img[src=x], main [onerror]").count() == 0, name
        width = admin.page.locator("html").evaluate("html => [html.scrollWidth, html.clientWidth]")
        assert width[0] <= width[1], f"{name} is wider than the window"
    for name, texts in seeded.texts.items():
        for text in texts:
            assert text in shown[name], (name, text[:40])
    assert "Zürich Süd" in shown["overview"]


def violations(visitor: Visitor) -> list[tuple[str, str, str]]:
    """What axe finds on the page that is shown."""
    visitor.page.evaluate(AXE.read_text())
    report = visitor.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (one["id"], one["impact"], one["nodes"][0]["html"][:150]) for one in report["violations"] if one["impact"] != "minor"
    ]


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here: make page installs it")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_everybody_can_use_every_page(browser: Browser, seeded: Seeded, scheme: Any, width: int) -> None:
    view = {"width": width, "height": 800}
    with visiting(browser, seeded.site.url, color_scheme=scheme, viewport=view) as visitor:
        visitor.sign_in(seeded.site.tokens["admin"])
        found = []
        for name, path in seeded.pages.items():
            visitor.go(path)
            found += [(name, *one) for one in violations(visitor)]
            assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than the screen"
        assert not found, found


def test_a_page_is_used_by_keyboard_alone(admin: Visitor, seeded: Seeded) -> None:
    admin.go("/data")
    admin.page.keyboard.press("Tab")
    for _ in range(40):
        focused = admin.page.locator(":focus")
        if focused.count() and focused.inner_text() == "Runs":
            break
        admin.page.keyboard.press("Tab")
    admin.page.keyboard.press("Enter")
    expect(admin.page.get_by_role("heading", level=1, name="Runs")).to_be_focused()


def test_a_wrong_token_and_a_session_that_is_over(browser: Browser, seeded: Seeded) -> None:
    with visiting(browser, seeded.site.url) as visitor:
        visitor.page.goto(visitor.url)
        visitor.page.get_by_label("Token").fill("relay_0123456789_wrong")
        visitor.press("Sign in")
        expect(visitor.page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")
        expected(visitor, "401")
        visitor.page.get_by_label("Token").fill(seeded.site.tokens["viewer"])
        visitor.press("Sign in")
        visitor.go("/jobs")
        with seeded.site.database.write() as session:
            session.execute(update(BrowserSession).values(seen_at=BrowserSession.seen_at - sessions.IDLE))
        visitor.page.goto(f"{visitor.url}/#/runs")
        expect(visitor.page.get_by_text("You are signed out. Sign in to go on where you were.")).to_be_visible()
        expected(visitor, "401")
        visitor.page.get_by_label("Token").fill(seeded.site.tokens["viewer"])
        visitor.press("Sign in")
        expect(visitor.page.get_by_role("heading", level=1, name="Runs")).to_be_visible()


def test_a_viewer_is_offered_nothing_that_changes(browser: Browser, seeded: Seeded) -> None:
    reading = {"Sign out", "Show more", "Menu", "Download the run file", "Save the card"}
    with visiting(browser, seeded.site.url) as visitor:
        visitor.sign_in(seeded.site.tokens["viewer"])
        assert visitor.page.get_by_role("link", name="Audit log").count() == 0
        for name, path in seeded.pages.items():
            if name not in ("new run", "audit"):
                visitor.go(path)
                buttons = visitor.page.locator("main button").all_inner_texts()
                assert set(buttons) <= reading, (name, buttons)
        visitor.go("/audit")
        expect(visitor.page.get_by_role("alert")).to_contain_text("admin")
        expected(visitor, "403")


def test_a_training_is_watched_through_a_broken_connection(admin: Visitor, seeded: Seeded) -> None:
    site = seeded.site
    job = site.submit({"kind": "train", "run_id": site.run()["id"]})
    claim = site.claim(job["id"])
    step = {
        "event": "step",
        "site": "R",
        "steps": 100,
        "losses": {"solver": 0.5},
        "images_per_second": 10.0,
        "eta_seconds": 9,
    }
    admin.go(f"/jobs/{job['id']}")
    expect(admin.page.locator("main h1")).to_contain_text("running")
    site.say(claim, {"event": "log", "line": "line one"}, {**step, "step": 10})
    log = admin.page.get_by_label("Log")
    expect(log).to_contain_text("line one")
    expect(admin.page.locator(".progress")).to_contain_text("10 / 100")
    admin.page.context.set_offline(True)
    expect(admin.page.get_by_text("The site does not answer. What you see may be old")).to_be_visible()
    site.say(claim, {"event": "log", "line": "line two"}, {"event": "log", "line": "line three"}, {**step, "step": 20})
    admin.page.context.set_offline(False)
    expect(log).to_contain_text("line three")
    expect(admin.page.get_by_text("The site does not answer. What you see may be old")).to_be_hidden()
    lines = log.inner_text().splitlines()
    assert [line for line in lines if line.startswith("line ")] == ["line one", "line two", "line three"]
    site.finish(claim, "failed", error={"code": "out_of_memory", "message": "memory ran out at step 20"})
    expect(admin.page.get_by_role("alert").first).to_contain_text("memory ran out at step 20")
    expected(admin, "ERR_INTERNET_DISCONNECTED|Failed to load resource")
    admin.press("Try again")
    expect(admin.page.locator("main h1")).to_contain_text("waiting")
    again = site.claim(job["id"])
    site.say(again, {"event": "log", "line": "line four"}, {**step, "step": 30})
    expect(log).to_contain_text("line four")  # the story goes on after a second attempt
    assert log.inner_text().count("line one") == 1
    site.finish(again, "failed", error={"code": "out_of_memory", "message": "again"})
    admin.press("Try again")
    expect(admin.page.locator("main h1")).to_contain_text("waiting")
    admin.press("Stop")
    admin.press("Cancel", admin.page.locator("dialog"))  # not sure after all
    expect(admin.page.locator("main h1")).to_contain_text("waiting")
    admin.press("Stop")
    admin.press("Stop", admin.page.locator("dialog"))
    expect(admin.page.locator("main h1")).to_contain_text("cancelled")


def test_a_training_shows_its_stage_and_its_pictures_while_it_runs(admin: Visitor, seeded: Seeded) -> None:
    site = seeded.site
    job = site.submit({"kind": "train", "run_id": site.run()["id"]})
    claim = site.claim(job["id"])

    def step(number: int, stage: int) -> dict[str, Any]:
        figures = {"stage": stage, "ada_img": number / 100, "ada_label": 0.0}
        return {"event": "step", "site": "R", "step": number, "steps": 100, "losses": {"solver": 1 / number},
                "figures": figures, "images_per_second": 10.0, "eta_seconds": 9}  # fmt: skip

    def say(*events: dict[str, Any]) -> None:
        output = ProcessOutput(site.database, claim, Path("/work"), Path("/data"))
        for event in events:
            output.line("out", json.dumps(event))
        output.flush()

    def draw(number: int) -> None:
        name = f"task_1.samples-{number:08d}.png"
        picture = io.BytesIO()
        Image.new("RGB", (number, 8)).save(picture, format="PNG")
        site.attach(job["id"], name, picture.getvalue(), "image/png")
        say({"event": "samples", "site": "R", "step": number, "path": name.replace(".", "/", 1)})

    admin.go(f"/jobs/{job['id']}")
    say(*(step(number, 1) for number in (10, 20)))
    draw(20)
    pictures = admin.card("Pictures")
    expect(pictures).to_contain_text("What the generators draw at step 20")
    say(*(step(number, 2) for number in (30, 40)))
    chart = admin.page.get_by_role("figure", name="Losses of the solver")
    expect(chart).to_contain_text("step 30: stage 2 of R")
    expect(admin.page.get_by_role("figure", name="Share of images augmented")).to_contain_text("ada_img (R) 0.400")
    draw(40)
    expect(pictures).to_contain_text("at step 40")  # whoever has not moved the slider sees the newest
    slider = pictures.get_by_role("slider")
    slider.press("ArrowLeft")
    expect(pictures).to_contain_text("at step 20")
    draw(60)
    expect(slider).to_have_attribute("max", "2")
    expect(pictures).to_contain_text("at step 20")
    assert pictures.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 20
    say(*(step(40, 2) for _ in range(600)))  # the newest 500 events, which are read again, tell of no picture
    admin.page.reload()
    expect(pictures).to_contain_text("at step 60")
    admin.go("/")
    expect(admin.page.get_by_role("figure", name="Loss of the solver, live")).to_contain_text("R 0.025")
    site.finish(claim, "failed", error={"code": "out_of_memory", "message": "over"})
    expect(admin.page.get_by_role("figure", name="Loss of the solver, live")).to_have_count(0)


def test_a_sites_images_are_seen_against_those_of_the_sites_before(admin: Visitor, seeded: Seeded) -> None:
    admin.go(seeded.pages["compared data set"])
    card = admin.card("Against the sites before")
    expect(card.locator("figure canvas")).to_have_count(3)
    expect(card.locator("figure h3")).to_have_text(["Brightness", "Sharpness", f"Pieces of {isolated(NASTY)}"])
    expect(card).to_contain_text(re.compile(r"Furthest apart: Brightness of .*, images and .*, replay \((0\.9\d|1\.00)\)\."))
    brightness = card.locator("figure").first.locator(".legend")
    expect(brightness).to_contain_text(f"{isolated(NASTY)}, replay median 0.29")
    expect(brightness.locator("li").first).to_have_text(re.compile(r", images\s*median 0\.60"))  # this site's comes first
    apart = card.get_by_role("region", name="How far apart two groups are")
    expect(apart.locator("tbody tr")).to_have_count(3)
    card.locator("figure").first.get_by_text("As a table").click()
    shown = card.get_by_role("region", name="Brightness", exact=True).locator("tbody tr")
    expect(shown).to_have_count(20)
    assert brightness.locator(".swatch").count() == 2, "four images tell nothing"
    admin.press("Compare", card)
    expect(admin.page.locator("main h1")).to_contain_text("Comparison of sites")
    seeded.site.finish(seeded.site.claim(admin.page.url.rpartition("/")[2]), "failed", error={"code": "x", "message": "y"})

    admin.go(seeded.pages["comparison"])
    expect(admin.card("Against the sites before").locator("figure canvas")).to_have_count(3)
    admin.go(seeded.pages["dataset"])
    expect(admin.card("Against the sites before")).to_contain_text("No checkpoint of a site before is here.")


def test_a_tampered_bundle_says_what_is_wrong_with_it(admin: Visitor, seeded: Seeded) -> None:
    brought = ok(seeded.site.bring(), 202)
    admin.go(f"/imports/{brought['id']}")
    expect(admin.page.locator("main h1")).to_contain_text("being verified")
    claim = seeded.site.claim(brought["job_id"])
    error = {"code": "signature_invalid", "message": "the signature does not fit the manifest: the file was changed"}
    seeded.site.finish(claim, "failed", error=error)
    expect(admin.page.get_by_role("alert")).to_contain_text("the file was changed")
    assert admin.page.get_by_role("button", name="Accept").count() == 0


def test_an_import_is_rejected_with_a_reason(admin: Visitor, seeded: Seeded) -> None:
    brought = seeded.site.quarantined(seeded.site.run()["id"])
    admin.go(f"/imports/{brought['id']}")
    admin.page.get_by_text("Reject it").click()
    admin.page.get_by_label("Reason").fill("Dice fell on Domain1")
    admin.press("Reject")
    expect(admin.page.locator("main h1")).to_contain_text("rejected")
    expect(admin.page.locator("main")).to_contain_text("Dice fell on Domain1")


def test_the_overview_says_that_no_worker_is_there(admin: Visitor, seeded: Seeded) -> None:
    admin.go("/")
    expect(admin.page.get_by_text("No worker was seen lately")).to_be_visible()
    expect(admin.page.get_by_text("The site cannot carry out jobs")).to_be_visible()
    with seeded.site.worker():
        admin.page.reload()
        expect(admin.page.get_by_role("region", name="Workers")).to_contain_text("cpu", timeout=30_000)


def test_a_run_file_with_a_mistake_is_explained_before_it_is_kept(admin: Visitor, seeded: Seeded) -> None:
    admin.go("/runs/new")
    expect(admin.page.get_by_label("Run file (YAML)")).to_have_value(re.compile("extends: fundus-cpu"))
    admin.page.get_by_label("train.batch_size").fill("8")
    expect(admin.page.get_by_label("Run file (YAML)")).to_have_value(re.compile("batch_size: 8"))
    admin.page.get_by_label("Run file (YAML)").fill("extends: fundus-cpu\ncommon: {train: {batch_sise: 8}}\n")
    admin.press("Check")
    expect(admin.page.get_by_role("alert")).to_contain_text("batch_size")
    expected(admin, "422")


def test_the_page_speaks_german(browser: Browser, seeded: Seeded) -> None:
    with visiting(browser, seeded.site.url) as visitor:
        visitor.sign_in(seeded.site.tokens["admin"])
        visitor.page.locator("header").get_by_label("Language").select_option("de")
        expect(visitor.page.get_by_role("heading", level=1, name="Überblick")).to_be_visible()
        assert visitor.page.locator("html").get_attribute("lang") == "de"
        visitor.go("/audit")
        expect(visitor.page.locator("main")).to_contain_text(re.compile("MES?Z"))


def test_going_back_after_signing_out_stays_signed_out(admin: Visitor, seeded: Seeded) -> None:
    admin.go("/jobs")
    admin.go("/runs")
    admin.press("Sign out")
    expect(admin.page.get_by_label("Token")).to_be_visible()
    admin.page.go_back()
    expect(admin.page.get_by_label("Token")).to_be_visible()


def test_a_card_is_shown_before_it_is_trusted(admin: Visitor, seeded: Seeded, tmp_path: Path) -> None:
    admin.go("/keys")
    path = tmp_path / "card.json"
    path.write_text(json.dumps({"name": NASTY, "public_key": "a key"}))
    admin.page.get_by_label("Card of the other site (card.json)").set_input_files(path)
    said = hashlib.sha256(b"a key").hexdigest()
    expect(admin.card("Trust a site").locator(".fingerprint")).to_have_text(re.compile(f"^{said[:4]} {said[4:8]}"))
    other = tmp_path / "other.json"
    other.write_text("no card")
    admin.page.get_by_label("Card of the other site (card.json)").set_input_files(other)
    expect(admin.page.get_by_role("alert")).to_contain_text("not a site's card")
    assert admin.page.get_by_role("button", name="It is the same: trust this card").count() == 0
    expected(admin, "422")


def slice_shown(visitor: Visitor) -> np.ndarray:
    """What the canvas with a slice holds: (H, W, 3)."""
    address = visitor.page.locator(".viewer canvas").evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


@pytest.mark.parametrize("kind", ["nifti", "series"])
def test_a_volume_is_looked_through_by_keyboard(admin: Visitor, seeded: Seeded, tmp_path: Path, kind: str) -> None:
    volume = np.zeros((4, 24, 32), np.int16)
    for i in range(4):
        volume[i, 4 * i : 4 * i + 4, 8:16] = 200  # each slice has its own place
    content = nifti(volume, tmp_path, spacing=(1, 1, 1)) if kind == "nifti" else dicoms.packed(dicoms.stack(volume))
    (tmp_path / "volume").write_bytes(content)
    admin.go(seeded.pages["model"])
    admin.page.locator("#trial-image").set_input_files(tmp_path / "volume")
    place = admin.page.get_by_label(re.compile(r"^Slice \d of 4$"))
    expect(place).to_be_visible(timeout=60_000)
    expect(admin.page.get_by_role("region", name="What was found")).to_contain_text("optic disc")
    opacity = admin.page.get_by_label("Opacity of what was found")
    opacity.focus()
    admin.page.keyboard.press("Home")
    place.focus()
    admin.page.keyboard.press("Home")
    for i in range(4):
        expect(admin.page.get_by_label(f"Slice {i + 1} of 4")).to_be_focused()
        shown = slice_shown(admin)
        step = len(shown) // 24 if kind == "nifti" else len(shown) / 24
        assert (shown[round(4 * i * step) : round((4 * i + 4) * step), 8:16] == 255).all(), "the image itself"
        assert np.count_nonzero(shown) == 3 * 8 * round(4 * step)
        admin.page.keyboard.press("ArrowRight")
    if AXE.is_file():
        assert not violations(admin)


def test_a_dicom_has_a_picture_below_what_was_found(admin: Visitor, seeded: Seeded, exported: Any, tmp_path: Path) -> None:
    eye = np.asarray(Image.open(io.BytesIO(exported.image())).convert("RGB"))
    (tmp_path / "eye.dcm").write_bytes(dicoms.one(eye, photometric="RGB", PixelSpacing=[0.5, 0.5]))
    admin.go(seeded.pages["model"])
    admin.page.locator("#trial-image").set_input_files(tmp_path / "eye.dcm")
    opacity = admin.page.get_by_label("Opacity of what was found")
    expect(opacity).to_be_visible(timeout=60_000)
    assert admin.page.get_by_label(re.compile("^Slice")).count() == 0
    half = slice_shown(admin)
    opacity.focus()
    admin.page.keyboard.press("Home")
    assert (slice_shown(admin) == eye).all(), "the picture below is the image"
    admin.page.keyboard.press("End")
    full = slice_shown(admin)
    assert (full == palette(3)[1]).all(axis=-1).any(), "a border in its class's colour"
    far, near = (np.abs(shown.astype(int) - eye).sum() for shown in (full, half))
    assert far > near > 0
    assert admin.page.get_by_text("a disease that no site had goes unnoticed").is_visible()


def test_a_study_that_became_a_job_is_looked_through_too(browser: Browser, exported: Any, tmp_path: Path) -> None:
    from services.trainer.worker_loop import WorkerLoop

    volume = np.zeros((3, 24, 32), np.int16)
    volume[1, 4:8, 8:16] = 200
    (tmp_path / "volume").write_bytes(nifti(volume, tmp_path, spacing=(1, 1, 1)))
    with running(tmp_path, None) as site, visiting(browser, site.url) as visitor:
        model = site.model(exported, "fundus")
        visitor.sign_in(site.tokens["viewer"])
        visitor.page.route(
            "**/predict?*",
            lambda route: route.continue_(headers={**route.request.headers, "prefer": "respond-async"}),
        )
        visitor.go(f"/models/{model.name}/{model.version}")
        visitor.page.locator("#trial-image").set_input_files(tmp_path / "volume")
        expect(visitor.page.locator("main h1")).to_contain_text("Prediction of a study")
        worker = WorkerLoop(site.settings, lambda: False)
        try:
            assert worker.work_once()
        finally:
            worker.close()
        visitor.job_done()
        place = visitor.card("What was found").get_by_label(re.compile("^Slice . of 3$"))
        expect(place).to_be_visible()
        visitor.page.get_by_label("Opacity of what was found").fill("0")
        place.fill("2")
        assert (slice_shown(visitor)[4:8, 8:16] == 255).all()
        expect(visitor.card("What was found")).to_contain_text("optic disc")


def test_what_is_no_image_is_said(admin: Visitor, seeded: Seeded, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    admin.go(seeded.pages["model"])
    admin.page.locator("#trial-image").set_input_files(tmp_path / "notes.txt")
    refused = admin.card("Try it").get_by_role("alert")
    expect(refused).to_contain_text("send PNG, JPEG, TIFF, NIfTI, DICOM", timeout=60_000)
    assert admin.page.get_by_text("The model looks at it.").count() == 0
    expected(admin, "422")


def test_an_upload_goes_on_where_the_line_broke(admin: Visitor, seeded: Seeded, tmp_path: Path) -> None:
    content = os.urandom(7 << 20)
    (tmp_path / "hop.relay").write_bytes(content)
    sent = []

    def line(route: Any) -> None:
        if route.request.method == "PUT":
            sent.append(route.request.url)
        if len(sent) == 2 and route.request.method == "PUT":
            route.abort("connectionreset")
        else:
            route.continue_()

    admin.page.route("**/api/v1/uploads/**", line)
    admin.go("/handoff")
    admin.page.locator("#bundle-file").set_input_files(tmp_path / "hop.relay")
    expect(admin.page.locator("main h1")).to_contain_text("being verified", timeout=60_000)
    expected(admin, "ERR_CONNECTION_RESET")
    assert [int(url.rpartition("=")[2]) >> 20 for url in sent] == [0, 2, 2, 4, 6]
    (newest,) = ok(seeded.site.operator.get("/api/v1/imports", params={"limit": 1}))["items"]
    assert newest["digest"] == hashlib.sha256(content).hexdigest()
