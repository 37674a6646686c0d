"""Run files over REST."""

import pytest
import yaml

from tests.api.kit import NUMBERS, ok, refused, run_text

YAML = {"Content-Type": "application/yaml"}


def upload(site, text, **options):
    return site.operator.post("/api/v1/runs", content=text, **{"headers": YAML, **options})


def test_a_run_file_is_registered_once_and_given_back(site):
    text = run_text(next(NUMBERS))
    answer = upload(site, text, params={"name": "autumn"})
    made = ok(answer, 201)
    assert (made["name"], made["strategy"], made["site"]) == ("autumn", "relay", None)
    assert [entry["trained"] for entry in made["sites"]] == [True, True]
    assert ok(site.viewer.get(answer.headers["location"])) == made
    assert ok(upload(site, text, params={"name": "again"})) == made
    file = site.viewer.get(f"/api/v1/runs/{made['id']}/file")
    assert file.headers["content-type"].startswith("application/yaml")
    assert ok(upload(site, file.text))["id"] == made["id"]
    assert made in ok(site.viewer.get("/api/v1/runs"))["items"]
    assert len(site.audited("run.register", made["id"])) == 1


@pytest.mark.parametrize("media_type", ["text/yaml; charset=utf-8", "application/x-yaml", "text/plain"])
def test_yaml_goes_by_several_names(site, media_type):
    ok(upload(site, run_text(next(NUMBERS)), headers={"Content-Type": media_type}), 201)


def test_a_run_says_which_hop_this_site_is(site):
    run = site.run()
    path = f"/api/v1/runs/{run['id']}"
    refused(site.operator.patch(path, json={"site": 2}), 428, "precondition_required")
    answer = site.operator.patch(path, json={"site": 2}, headers={"If-Match": '"1"'})
    assert ok(answer) == {**run, "site": 2, "version": 2}
    refused(site.operator.patch(path, json={"site": 1}, headers={"If-Match": '"1"'}), 412, "precondition_failed")
    problem = refused(site.operator.patch(path, json={"site": 7}, headers={"If-Match": '"2"'}), 422, "invalid_request")
    assert "1, 2" in problem["detail"]
    refused(site.operator.patch(path, json={}, headers={"If-Match": '"2"'}), 422, "invalid_request")
    assert ok(site.operator.patch(path, json={"site": None}, headers={"If-Match": '"2"'}))["site"] is None
    assert [row.detail for row in site.audited("run.site", run["id"])] == [{"site": 2}, {"site": None}]


def test_what_is_wrong_in_a_run_file_is_named(site):
    text = run_text(next(NUMBERS)).replace("batch_size", "bach_size")
    problem = refused(upload(site, text, params={"name": "r.yaml"}), 422, "run_file_invalid")
    assert "did you mean 'batch_size'" in problem["detail"]
    assert "r.yaml:" in problem["detail"]
    refused(upload(site, run_text(1, strategy={"name": "owmm"})), 422, "run_file_invalid")
    refused(upload(site, run_text(1, root_path="/etc")), 422, "path_escape")
    refused(upload(site, "extends: /etc/passwd"), 422, "run_file_invalid")
    refused(upload(site, "a: [1"), 422, "run_file_invalid")
    refused(upload(site, b"\xff\xfe"), 400, "bad_request")
    refused(upload(site, b""), 422, "run_file_invalid")
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    refused(upload(site, bomb), 422, "run_file_invalid")


@pytest.mark.parametrize("name", ["x" * 101, "a\nb", "a\x7fb", "\u202eb"])
def test_a_site_whose_name_cannot_be_kept(small_site, name):
    seed = next(NUMBERS)
    file = yaml.safe_load(run_text(seed))
    file["all_tasks_datasets"][1]["kwargs"]["task_name"] = name
    problem = refused(upload(small_site, yaml.safe_dump(file)), 422, "run_file_invalid")
    assert "site 2: a task_name" in problem["detail"]
    assert name not in problem["detail"]


def test_a_file_too_large_or_of_another_type_is_not_read(site):
    refused(upload(site, "x" * 10_000_000), 413, "too_large")
    refused(upload(site, "#" * ((1 << 20) + 1)), 413, "too_large")
    chunks = (b"#" * 65536 for _ in range(160))
    refused(upload(site, chunks), 413, "too_large")
    refused(upload(site, "{}", headers={"Content-Type": "application/json"}), 415, "unsupported_media_type")
    refused(upload(site, "{}", headers={}), 415, "unsupported_media_type")
    refused(upload(site, run_text(1), params={"name": "../x"}), 422, "invalid_request")


def test_a_strategy_that_keeps_real_images_is_not_accepted(site):
    text = run_text(next(NUMBERS)).replace("name: relay\n", "name: rehearsal\n")
    assert "rehearsal" in text
    assert "real images" in refused(upload(site, text), 422, "run_file_invalid")["detail"]
