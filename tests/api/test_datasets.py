"""Data sets over REST."""

import pytest

from tests.api.kit import ok, refused


def body(site, **changes):
    return {"name": f"D {site.folder()[-4:]}", "path": site.folder(), "layout": "fundus", **changes}


def test_a_folder_is_registered_listed_changed_and_forgotten(site):
    asked = body(site, note="second scanner", options={"num_classes": 3})
    answer = site.operator.post("/api/v1/datasets", json=asked)
    made = ok(answer, 201)
    assert {key: made[key] for key in asked} == asked
    assert answer.headers["etag"] == '"1"'
    assert made["created_at"].endswith("Z")
    assert ok(site.viewer.get(answer.headers["location"])) == made
    assert ok(site.viewer.get("/api/v1/datasets", params={"name": made["name"]}))["items"] == [made]

    change = {"note": "masks drawn again", "options": {"img_size": 64}}
    answer = site.operator.patch(f"/api/v1/datasets/{made['id']}", json=change, headers={"If-Match": '"1"'})
    assert ok(answer) == {**made, **change, "version": 2}
    assert answer.headers["etag"] == '"2"'
    again = site.operator.patch(f"/api/v1/datasets/{made['id']}", json={}, headers={"If-Match": '"2"'})
    assert ok(again)["version"] == 2

    assert ok(site.operator.delete(f"/api/v1/datasets/{made['id']}"), 204) is None
    refused(site.viewer.get(f"/api/v1/datasets/{made['id']}"), 404, "not_found")
    for action in ("dataset.register", "dataset.update", "dataset.delete"):
        (row,) = site.audited(action, made["id"])
        assert row.actor.startswith("test operator (")


def test_two_people_cannot_overwrite_each_other(site):
    made = site.dataset()
    path = f"/api/v1/datasets/{made['id']}"
    refused(site.operator.patch(path, json={"note": "a"}), 428, "precondition_required")
    ok(site.operator.patch(path, json={"note": "a"}, headers={"If-Match": '"1"'}))
    answer = site.operator.patch(path, json={"note": "b"}, headers={"If-Match": '"1"'})
    refused(answer, 412, "precondition_failed")
    assert answer.headers["etag"] == '"2"'
    assert ok(site.viewer.get(path))["note"] == "a"
    refused(site.operator.patch(path, json={}, headers={"If-Match": "2"}), 422, "invalid_request")


def test_a_name_is_taken_once(site):
    made = site.dataset()
    refused(site.operator.post("/api/v1/datasets", json=body(site, name=made["name"])), 409, "name_taken")


@pytest.mark.parametrize("path", ["..", "a/../../b", "/etc", "a\\..\\b", "a/\0b", "."])
def test_no_path_leaves_the_data_root(site, path):
    problem = refused(site.operator.post("/api/v1/datasets", json=body(site, path=path)), 422, "path_escape")
    assert "data root" in problem["detail"]


def test_no_symbolic_link_is_followed(site, tmp_path):
    root = site.settings.data_folder
    (tmp_path / "secret").mkdir()
    outside, inside = site.folder(), site.folder()
    (root / f"{outside}-link").symlink_to(tmp_path / "secret")
    (root / inside / "image" / "deep.png").symlink_to("/etc/passwd")
    for path in (f"{outside}-link", f"{outside}-link/x", inside):
        refused(site.operator.post("/api/v1/datasets", json=body(site, path=path)), 422, "path_escape")
    refused(site.operator.post("/api/v1/datasets", json=body(site, path="not/there")), 404, "not_found")
    refused(site.operator.post("/api/v1/datasets", json=body(site, path="x" * 400)), 422, "data_invalid")


@pytest.mark.parametrize(
    ("options", "code", "key"),
    [
        ({"nonsense": 1}, "invalid_request", "options.nonsense"),
        ({"img_folder": "/etc"}, "invalid_request", "options.img_folder"),
        ({"img_channels": 2}, "invalid_request", "options.img_channels"),
        ({"mask_values": {"255": 9}}, "invalid_request", "options"),
        ({"split_file": "../other/split.csv"}, "path_escape", "options.split_file"),
        ({"image_dir": "/images"}, "path_escape", "options.image_dir"),
        ({"mask_dir": "C:\\masks"}, "path_escape", "options.mask_dir"),
    ],
)
def test_options_are_those_of_a_run_file_and_stay_inside(site, options, code, key):
    answer = site.operator.post("/api/v1/datasets", json=body(site, layout="folder", options=options))
    assert key in refused(answer, 422, code)["detail"]
    made = site.dataset()
    headers = {"If-Match": '"1"'}
    refused(site.operator.patch(f"/api/v1/datasets/{made['id']}", json={"options": options}, headers=headers), 422, code)


@pytest.mark.parametrize(("layout", "options"), [
    ("mediastinum-tumor", {"hu_min": -1000, "background_label": True, "num_classes": 3}),
    ("midline", {"task": "classification", "class_by": "positive"}),
])  # fmt: skip
def test_every_data_set_of_the_catalogue_can_be_registered(site, layout, options):
    made = ok(site.operator.post("/api/v1/datasets", json=body(site, layout=layout, options=options)), 201)
    assert (made["layout"], made["options"]) == (layout, options)
    wrong = site.operator.post("/api/v1/datasets", json=body(site, layout=layout, options={"num_classes": 7}))
    assert "classes" in refused(wrong, 422, "invalid_request")["detail"]
    problem = refused(site.operator.post("/api/v1/datasets", json=body(site, layout="midlin")), 422, "invalid_request")
    assert "did you mean 'midline'" in problem["detail"]


def test_a_number_that_json_does_not_know_is_refused(site):
    text = '{"name": "inf", "path": "x", "layout": "fundus", "options": {"out_range": [-1, Infinity]}}'
    answer = site.operator.post("/api/v1/datasets", content=text, headers={"Content-Type": "application/json"})
    refused(answer, 422, "invalid_request")


def test_a_data_set_that_a_job_needs_stays(site):
    made = site.dataset()
    job = site.submit({"kind": "preflight", "dataset_id": made["id"]})
    problem = refused(site.operator.delete(f"/api/v1/datasets/{made['id']}"), 409, "in_use")
    assert job["id"] in problem["detail"]
    ok(site.operator.post(f"/api/v1/jobs/{job['id']}/cancel"), 202)
    ok(site.operator.delete(f"/api/v1/datasets/{made['id']}"), 204)


def test_previews_come_from_the_last_preflight(site):
    made = site.dataset()
    path = f"/api/v1/datasets/{made['id']}/preview"
    assert "preflight" in refused(site.viewer.get(path), 409, "preview_missing")["detail"]
    for index, content in enumerate((b"one", b"two")):
        site.attach(made["id"], f"preview-{index:03d}.png", content, "image/png")
    answer = site.viewer.get(path, params={"index": 1})
    assert (answer.content, answer.headers["content-type"]) == (b"two", "image/png")
    assert answer.headers["content-length"] == "3"
    assert "2 pictures" in refused(site.viewer.get(path, params={"index": 2}), 404, "not_found")["detail"]
    ok(site.operator.delete(f"/api/v1/datasets/{made['id']}"), 204)
