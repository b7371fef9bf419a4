// Two trials side by side, with what differs marked.

import { html, useState } from "./vendor/htm-preact.js";
import { ask, studyPath } from "./api.js";
import { UNKNOWN, bytes, loss, seconds, speed } from "./format.js";
import { memoryOf, speedOf, unitOf } from "./board.js";
import { Dialog, Failure, Loading, useAnswer } from "./ui.js";

/** Nested settings as lines of a table: `level.quantization`. @param {any} value @param {string} [path] @returns {[string, string][]} */
function flat(value, path = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([name, part]) => flat(part, path ? `${path} · ${name}` : name));
  }
  const text = value === null || (Array.isArray(value) && !value.length) ? UNKNOWN : Array.isArray(value) ? value.join(", ") : String(value);
  return [[path.replaceAll("_", " "), text]];
}

/** @param {any} trial @returns {[string, string][]} */
function linesOf(trial) {
  const measured = trial.measurement || {};
  return [
    ["outcome", trial.outcome || trial.state],
    ["speed", speed(speedOf(measured), unitOf(measured))],
    ["memory", bytes(memoryOf(measured))],
    ["held-out loss", loss(measured.heldout_loss, measured.heldout_loss_se)],
    ["steps trained", String(trial.train_steps || UNKNOWN)],
    ["took", seconds(trial.wall_s)],
    ...flat(trial.candidate),
  ];
}

/** @param {{study: any, ids: string[], onClose: () => void}} props */
export function Compare({ study, ids, onClose }) {
  const [isWhole, setWhole] = useState(false);
  const load = () => Promise.all(ids.map((id) => ask(`${studyPath(study.id)}/trials/${id}`)));
  const { data, error } = useAnswer(load, [ids.join()]);
  return html`<${Dialog} title="Two trials side by side" onClose=${onClose}>
    ${error && html`<${Failure} error=${error} />`} ${!data && !error && html`<${Loading} what="both trials" />`}
    ${data && html`
      <label><input type="checkbox" checked=${isWhole} onChange=${() => setWhole(!isWhole)} /> Also what is equal</label>
      <${Both} trials=${data} isWhole=${isWhole} />`}
  <//>`;
}

/** @param {{trials: any[], isWhole: boolean}} props */
function Both({ trials, isWhole }) {
  const [ours, theirs] = trials.map((trial) => new Map(linesOf(trial)));
  const names = [...new Set([...ours.keys(), ...theirs.keys()])];
  const rows = names
    .map((name) => ({ name, one: ours.get(name) ?? UNKNOWN, other: theirs.get(name) ?? UNKNOWN }))
    .filter((row) => isWhole || row.one !== row.other);
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Two trials side by side"><table>
    <thead><tr><th scope="col">setting or figure</th>${trials.map((trial) => html`<th scope="col">trial ${trial.number}<small>${trial.description}</small></th>`)}<th scope="col"><span class="hidden">differs</span></th></tr></thead>
    <tbody>${rows.map((row) => {
      const differs = row.one !== row.other;
      return html`<tr class=${differs ? "differs" : ""}><th scope="row">${row.name}</th><td>${row.one}</td><td>${row.other}</td>
        <td>${differs && html`<span aria-hidden="true">≠</span><span class="hidden">differs</span>`}</td></tr>`;
    })}</tbody></table></div>`;
}
