// One run: this site's place in it, its training, its checkpoints.
import { h } from "../lib/dom.js";
import { all, get, getText, getWithTag, patch, submit } from "../lib/api.js";
import { bytes, count, moment, t } from "../lib/text.js";
import { button, card, choice, empty, facts, field, form, head, kindWords, link, paged, save, state, table } from "../lib/widgets.js";
import { turnSteps, stepper } from "../lib/steps.js";

export async function show({ parts: [id], me }) {
  const [run, tag] = await getWithTag(`/api/v1/runs/${id}`);
  const may = me.role !== "viewer";
  const [checkpoints, jobs, datasets, steps] = await Promise.all([
    all("/api/v1/checkpoints", { run_id: id }), paged("/api/v1/jobs", { run_id: id }, jobTable, empty(t("There was no job of this run yet."))), all("/api/v1/datasets"), turnSteps(run),
  ]);
  const file = button(t("Download the run file"), async () => save(`${run.name}.yaml`, await getText(`/api/v1/runs/${id}/file`), "application/yaml"));
  return [
    head(h("bdi", run.name), file),
    card(t("What to do next"), stepper(steps)),
    card(null, facts([[t("Strategy"), run.strategy], [t("Registered"), moment(run.created_at)], [t("Id"), run.id]]),
      table(t("Sites of the run"), [[t("Turn"), "number"], t("Site"), t("Role"), t("Data set here")], run.sites.map((site) => [
        count(site.task_id), [h("bdi", site.name), site.task_id === run.site && h("strong", ` (${t("this site")})`)],
        site.trained ? t("trains") : t("is only tested"), dataset(datasets, site)])),
      may && place(run, tag)),
    may && training(run, checkpoints),
    card(t("Checkpoints"), checkpoints.length
      ? table(t("Checkpoints of the run"), [t("Checkpoint"), t("After"), [t("Step"), "number"], t("State"), [t("Size"), "number"], t("Made")], checkpoints.map((row) => [
        link(`#/checkpoints/${row.id}`, `${row.site}, ${t("step {n}", { n: count(row.step) })}`), h("bdi", row.site), count(row.step),
        [row.finished ? t("finished") : t("the solver is ready"), row.pinned && ` 📌 ${t("pinned")}`], bytes(row.size), moment(row.created_at)]))
      : empty(t("No training of this run has left a checkpoint here yet."))),
    card(t("Jobs"), jobs),
  ];
}

const jobTable = (jobs) => table(t("Jobs of the run"), [t("Job"), t("State"), t("By"), t("Since")],
  jobs.map((job) => [link(`#/jobs/${job.id}`, kindWords()[job.kind] ?? job.kind), state(job.state), h("bdi", job.created_by), moment(job.created_at)]));

function dataset(datasets, site) {
  const found = datasets.find((set) => set.name === site.name);
  return found ? link(`#/data/${found.id}`, found.name) : "–";
}

function place(run, tag) {
  const select = choice([["", t("all sites are on this machine")], ...run.sites.filter((site) => site.trained).map((site) => [String(site.task_id), site.name])], String(run.site ?? ""));
  return form(t("Save"), async () => {
    await patch(`/api/v1/runs/${run.id}`, { site: select.value ? Number(select.value) : null }, tag);
    dispatchEvent(new HashChangeEvent("hashchange"));
  }, field(t("This hospital is"), select));
}

function training(run, checkpoints) {
  const order = run.sites.filter((site) => site.trained);
  const own = order.find((site) => site.task_id === run.site);
  const before = own && order[order.indexOf(own) - 1];
  const starts = before ? checkpoints.filter((row) => row.task_id === before.task_id && row.finished) : [];
  const from = choice([["", t("the newest of {site}", { site: before?.name ?? "" })], ...starts.map((row) => [row.id, `${row.site}, ${t("step {n}", { n: row.step })}, ${moment(row.created_at)}`])], "");
  const until = choice([["end", t("the end of its turn")], ["solver", t("the solver is ready; the generators later")]], "end");
  return card(t("Train"), h("p", own ? t("This site trains on its own images{more}.", { more: before ? t(", and on what the replay draws of the sites before") : "" }) : t("All sites of the run are trained on this machine, one after another.")),
    form(t("Start the training"), async () => {
      const job = await submit({ kind: "train", run_id: run.id, site: run.site, checkpoint_id: from.value || null, until: until.value });
      location.hash = `#/jobs/${job.id}`;
    }, before && field(t("Go on from"), from), own && field(t("Until"), until)));
}
