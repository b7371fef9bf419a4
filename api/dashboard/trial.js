// One trial: what was planned, told and measured, and its files.

import { html } from "./vendor/htm-preact.js";
import { ask, studyPath } from "./api.js";
import { UNKNOWN, bytes, loss, seconds, sentence, speed, whole } from "./format.js";
import { memoryOf, speedOf, unitOf } from "./board.js";
import { Files } from "./exports.js";
import { Dialog, Failure, Loading, State, Table, useAnswer } from "./ui.js";

/** @param {{study: any, id: string, row: any, onClose: () => void}} props */
export function TrialDialog({ study, id, row, onClose }) {
  const { data: trial, error } = useAnswer(() => ask(`${studyPath(study.id)}/trials/${id}`), [id, row?.state]);
  const title = row ? `Trial ${row.number}` : "Trial";
  return html`<${Dialog} title=${title} onClose=${onClose}>
    ${error && html`<${Failure} error=${error} />`}
    ${!trial && !error && html`<${Loading} what="the trial" />`}
    ${trial && html`<${Body} study=${study} trial=${trial} />`}
  <//>`;
}

/** @param {{study: any, trial: any}} props */
function Body({ study, trial }) {
  const measured = trial.measurement || {};
  const told = trial.estimate || {};
  const memory = ["peak_tensor_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "peak_device_bytes", "peak_process_bytes"];
  const names = ["held by tensors", "allocated (CUDA)", "reserved (CUDA)", "on the device", "of the host's process"];
  const rows = memory
    .map((name, index) => [names[index], bytes(told[name]), bytes(measured[name])])
    .filter(([, one, other]) => one !== UNKNOWN || other !== UNKNOWN);
  rows.unshift(["speed", speed(told.tokens_per_s, told.unit === "samples" ? "samples/s" : "tokens/s"), speed(speedOf(measured), unitOf(measured))]);
  return html`
    <p><${State} state=${trial.outcome || trial.state} /> ${trial.description}</p>
    ${trial.reason && html`<p class=${trial.outcome === "ok" ? "" : "reason"}>${sentence(trial.reason)}</p>`}
    <p class="muted">${trial.train_steps ? `Trained ${whole(trial.train_steps)} steps` : "Probed"}${trial.purpose ? `: ${trial.purpose}` : ""}. Took ${seconds(trial.wall_s)}${trial.reused_from ? "; figures are those of an earlier study's trial" : ""}.</p>
    ${measured.heldout_loss != null && html`<p>Held-out loss ${loss(measured.heldout_loss, measured.heldout_loss_se)} on ${whole(measured.heldout_rows)} rows${measured.metric_name ? `; ${measured.metric_name} ${measured.metric_value.toFixed(3)}` : ""}.</p>`}
    ${(measured.disturbances || []).map((/** @type {string} */ each) => html`<p class="note warning">${sentence(each)}</p>`)}
    <h3>Estimated and measured</h3>
    <${Table} caption="Estimated and measured" columns=${[{ name: "figure" }, { name: "estimated", number: true }, { name: "measured", number: true }]} rows=${rows} />
    ${memoryOf(measured) != null && html`<h3>Files for a trainer</h3><${Files} base=${`${studyPath(study.id)}/trials/${trial.id}/exports`} />`}
    <details><summary>Every setting</summary><pre tabindex="0">${JSON.stringify(trial.candidate, null, 2)}</pre></details>
    ${trial.log_tail && html`<details open=${trial.outcome !== "ok"}><summary>End of its log</summary><pre tabindex="0">${trial.log_tail}</pre></details>`}
  `;
}
