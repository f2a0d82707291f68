"use strict";
// MLflow's pages open their assistant on a first visit, and menus for language models, unless the browser remembers otherwise.
// What somebody has chosen there stays.
const remembered = { "mlflow.workflowType_v1": "machine_learning", "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": true };
try {
  for (const [key, value] of Object.entries(remembered))
    if (localStorage.getItem(key) === null) localStorage.setItem(key, JSON.stringify(value));
} catch { /* a browser that keeps nothing */ }

const api = async (call, body) => {
  const answer = await fetch(`/ajax-api/2.0/mlflow/${call}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${call}: ${answer.status}`);
  return answer.json();
};
const query = "?workflowType=machine_learning";

// Where in MLflow each run is: by its number, in whichever experiment.
async function connect() {
  const links = [...document.querySelectorAll("[data-run]")];
  const { experiments = [] } = await api("experiments/search", { max_results: 1000 });
  const ids = experiments.map((each) => each.experiment_id);
  const main = document.querySelector("[data-experiment]");
  const named = experiments.find((each) => each.name === main.dataset.experiment);
  if (named) {
    const view = (named.tags ?? []).some((tag) => tag.key === "mlflow.sharedViewState.pcl") ? "&viewStateShareKey=pcl" : "";
    main.href = `/#/experiments/${named.experiment_id}/runs${query}${view}`;
  }
  for (let start = 0; start < links.length; start += 100) {
    const part = links.slice(start, start + 100);
    const listed = part.map((link) => `'${link.dataset.run}'`).join(",");
    const { runs = [] } = await api("runs/search", {
      experiment_ids: ids, filter: `attributes.run_id IN (${listed})`, max_results: 100 });
    const where = new Map(runs.map((run) => [run.info.run_id, run.info.experiment_id]));
    for (const link of part)
      if (where.has(link.dataset.run)) link.href = `/#/experiments/${where.get(link.dataset.run)}/runs/${link.dataset.run}${query}`;
  }
}
connect().catch((error) => console.info(`MLflow does not say where runs are: ${error.message}`));
