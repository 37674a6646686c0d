"""A relay of two sites through two pages, as two people and a courier would do it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import Toy
from tests.page.kit import PATIENCE, Visitor, visiting
from tests.services.up import Up


@pytest.fixture
def sites(tmp_path: Path, phantom_data: Path) -> Iterator[tuple[Up, Up]]:
    """Two hospitals, each with a `relay up` of its own."""
    found: list[Up] = []
    try:
        for name in ("North", "South"):
            folder = tmp_path / name
            folder.mkdir()
            found.append(Up(folder, phantom_data, RELAY_SITE_NAME=name))
        yield found[0], found[1]
    finally:
        for site in found:
            site.stop()


def register(visitor: Visitor, run_file: Path, turn: int) -> None:
    """Register the images and the run, and say which site this is."""
    visitor.go("/data")
    visitor.page.get_by_label("Name", exact=True).fill(f"Domain{turn}")
    visitor.press(f"▸ Domain{turn}")
    expect(visitor.page.get_by_label("Folder", exact=True)).to_have_value(f"Domain{turn}")
    visitor.page.get_by_label("Layout", exact=True).select_option("fundus")
    visitor.press("Register and check")
    expect(visitor.page.get_by_role("heading", level=1, name=f"Domain{turn}")).to_be_visible()
    visitor.go("/jobs")
    visitor.page.get_by_role("link", name="Check of a data set").first.click()
    visitor.job_done()
    visitor.go("/data")
    visitor.page.get_by_role("link", name=f"Domain{turn}").click()
    expect(visitor.page.get_by_text("Every file can be used.")).to_be_visible()
    assert visitor.page.locator("figure img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0

    visitor.go("/runs/new")
    visitor.page.get_by_label("A run file from this computer").set_input_files(run_file)
    expect(visitor.page.get_by_label("Run file (YAML)")).to_have_value(run_file.read_text())
    visitor.press("Check")
    visitor.press("Register")
    expect(visitor.page.get_by_role("heading", level=1, name=run_file.stem)).to_be_visible()
    visitor.page.get_by_label("This hospital is").select_option(str(turn))
    visitor.press("Save")
    expect(visitor.page.get_by_text("(this site)")).to_be_visible()


def train(visitor: Visitor) -> None:
    visitor.press("Start the training")
    visitor.job_done()
    expect(visitor.card("Curves").locator("canvas").first).to_be_visible()
    visitor.page.get_by_role("link", name="See its scores").click()
    expect(visitor.card("After each site, on each test set").locator("td.cell").first).to_be_visible()
    expect(visitor.card("Worst images first").locator("tbody tr").first).to_be_visible()


def to_checkpoint(visitor: Visitor, site: str) -> None:
    visitor.go("/runs")
    visitor.page.locator("tbody a").first.click()
    visitor.card("Checkpoints").get_by_role("link", name=f"{site}, step").first.click()
    expect(visitor.card("Hand it on")).to_be_visible()


def test_two_sites_through_two_pages(browser: Browser, sites: tuple[Up, Up], toy: Toy, tmp_path: Path) -> None:
    north_site, south_site = sites
    run_file = toy.write("autumn.yaml")
    with (
        visiting(browser, f"http://127.0.0.1:{north_site.port}") as north,
        visiting(browser, f"http://127.0.0.1:{south_site.port}") as south,
    ):
        north.page.goto(north_site.link)  # the link that relay up printed signs in
        expect(north.page.get_by_role("heading", level=1, name="Overview")).to_be_visible()
        assert "link_" not in north.page.url
        register(north, run_file, 1)
        train(north)
        to_checkpoint(north, "Domain1")
        north.press("Build the bundle", north.card("Hand it on"))
        north.job_done()
        north.page.get_by_role("link", name="See the bundle").click()
        north.shown()
        bundle = north.download("Download", tmp_path / "carried.relay")
        north.go("/keys")
        fingerprint = north.page.locator(".fingerprint").first.inner_text()
        card = north.download("Save the card", tmp_path / "card.json")
        assert json.loads(card.read_text())["name"] == "North"

        south.sign_in(south_site.token)
        register(south, run_file, 2)
        south.go("/handoff")
        south.page.locator("#bundle-file").set_input_files(bundle)
        south.page.wait_for_url("**/#/imports/bundle-*")
        expect(south.page.get_by_role("alert")).to_contain_text("not trusted here", timeout=PATIENCE)  # refused: a stranger

        south.go("/keys")
        south.page.get_by_label("Card of the other site (card.json)").set_input_files(card)
        assert south.card("Trust a site").locator(".fingerprint").inner_text() == fingerprint
        south.press("It is the same: trust this card")
        south.job_done()
        south.go("/keys")
        expect(south.card("Trusted sites").locator("tbody")).to_contain_text("North")

        south.go("/handoff")
        south.page.locator("#bundle-file").set_input_files(bundle)
        south.page.wait_for_url("**/#/imports/bundle-*")
        expect(south.page.locator("main h1")).to_contain_text("waits for a decision", timeout=PATIENCE)
        assert south.page.locator(".fingerprint").first.inner_text() == fingerprint, "read aloud, it is the same at both"
        expect(south.card("Where it has been")).to_contain_text("North")
        expect(south.card("Scores that it brings")).to_contain_text("Domain1")
        south.press("Accept")
        expect(south.page.locator("main h1")).to_contain_text("accepted")

        south.go("/data")
        south.page.get_by_role("link", name="Domain2").click()
        south.press("Compare", south.card("Against the sites before"))
        south.job_done()
        against = south.card("Against the sites before")
        expect(against).to_contain_text("Furthest apart: ", timeout=PATIENCE)
        south.go("/data")
        south.page.get_by_role("link", name="Domain2").click()
        expect(against.locator("figure canvas").first).to_be_visible()
        expect(against.get_by_role("region", name="How far apart")).to_contain_text("optic disc")

        south.go("/runs")
        south.page.locator("tbody a").first.click()
        train(south)
        expect(south.card("What was learned and what was forgotten").locator("canvas")).to_be_visible()
        to_checkpoint(south, "Domain2")
        south.press("Evaluate")
        south.job_done()
        to_checkpoint(south, "Domain2")
        south.press("Make a model")
        south.job_done()
        south.page.get_by_role("link", name="See the model").click()
        south.press("Put into production")
        expect(south.page.locator("main h1")).to_contain_text("in production")
        image = next((south_site.home / "data/Domain2/test/ROIs/image").iterdir())
        south.page.locator("#trial-image").set_input_files(image)
        expect(south.page.get_by_label("Opacity of what was found")).to_be_visible()
        expect(south.page.get_by_role("region", name="What was found")).to_contain_text("optic disc")

        south.go("/audit")
        south.press("Verify the chain")
        expect(south.page.get_by_text("rows fit")).to_be_visible()
        expect(south.page.locator("main")).to_contain_text("import.accept")
        south.press("Sign out")
        expect(south.page.get_by_label("Token")).to_be_visible()
        south.page.goto(f"{south.url}/#/audit")
        expect(south.page.get_by_label("Token")).to_be_visible()
