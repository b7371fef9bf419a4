// What is recommended, in the files of each trainer: to look at, copy or download.

import { html, useState } from "./vendor/htm-preact.js";
import { ask, studyPath } from "./api.js";
import { sentence } from "./format.js";
import { Copy, Failure, Loading, download, useAnswer } from "./ui.js";

/** @param {{study: any, best: any}} props */
export function Exports({ study, best }) {
  const { data, error } = useAnswer(() => ask(`${studyPath(study.id)}/exports`), [study.id]);
  const config = best.adapter_config && JSON.stringify(best.adapter_config, null, 2);
  return html`
    ${config && html`<${File} name="adapter_config.json" text=${config} />`}
    <h3>In the files of your trainer</h3>
    ${error && html`<${Failure} error=${error} />`} ${!data && !error && html`<${Loading} what="the formats" />`}
    ${data && html`<${Files} base=${`${studyPath(study.id)}/exports`} takers=${data.takers} />`}
  `;
}

const FORMATS = ["rankwise", "peft", "transformers", "trl", "axolotl", "llamafactory", "accelerate", "deepspeed", "lightning", "pytorch", "slurm", "kubernetes"];

/** How many were shown: a page and a dialog over it have one each. */
let shown = 0;

/** @param {{base: string, takers?: any[]}} props */
export function Files({ base, takers }) {
  const [form, setForm] = useState("");
  const [id] = useState(() => `format-${(shown += 1)}`);
  const chosen = takers?.find((taker) => taker.format === form);
  const forms = takers ? takers.map((taker) => [taker.format, taker.refused ? `${taker.format} (not possible)` : taker.format]) : FORMATS.map((each) => [each, each]);
  return html`
    <div class="field"><label for=${id}>Trainer</label>
      <select id=${id} onChange=${(/** @type {any} */ event) => setForm(event.currentTarget.value)}>
        <option value="">choose …</option>${forms.map(([key, text]) => html`<option value=${key}>${text}</option>`)}
      </select></div>
    ${chosen?.refused && html`<p class="note warning">${sentence(chosen.refused)}</p>`}
    ${form && !chosen?.refused && html`<${OneFormat} key=${form} address=${`${base}/${form}`} />`}
  `;
}

/** @param {{address: string}} props */
function OneFormat({ address }) {
  const { data, error } = useAnswer(() => ask(address), [address]);
  if (error) return html`<${Failure} error=${error} />`;
  if (!data) return html`<${Loading} what="the files" />`;
  return html`
    ${data.warnings.map((/** @type {string} */ each) => html`<p class="note warning">${each}</p>`)}
    ${data.not_expressible.length > 0 && html`<div class="note"><strong>What these files do not say</strong>
      <ul class="reasons">${data.not_expressible.map((/** @type {any} */ gap) => html`<li>${gap.setting}: ${gap.reason}</li>`)}</ul></div>`}
    ${Object.entries(data.files).map(([name, text]) => html`<${File} name=${name} text=${text} />`)}
    ${data.commands.length > 0 && html`<${File} name="commands" text=${data.commands.map((/** @type {string[]} */ words) => words.join(" ")).join("\n")} isFile=${false} />`}
  `;
}

/** @param {{name: string, text: string, isFile?: boolean}} props */
function File({ name, text, isFile = true }) {
  return html`<div class="file">
    <header><code>${name}</code><${Copy} text=${text} what=${name} />
      ${isFile && html`<button type="button" class="small" onClick=${() => download(name, text)} aria-label=${`Download ${name}`}>Download</button>`}</header>
    <pre tabindex="0" aria-label=${name}>${text}</pre>
  </div>`;
}
