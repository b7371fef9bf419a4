// What if: what a training needs and how fast it is, worked out without a GPU while one waits.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { ask } from "./api.js";
import { UNKNOWN, bytes, seconds, speed, whole } from "./format.js";
import { Failure, Field, Heading, Table } from "./ui.js";

const METHODS = ["lora", "adalora", "ia3", "oft", "miss", "head", "last-blocks", "bitfit", "norms", "full"];
const GPUS = ["RTX 4090", "RTX 3090", "A10", "L4", "L40S", "A100-40GB", "A100-80GB", "H100", "H200", "T4"];
const START = { model: "", method: "lora", rank: "16", targets: "balanced", quantization: "none", precision: "bf16", batch_size: "1", seq_len: "", gpu: "A100-80GB", gradient_checkpointing: "yes", loss: "plain", optimizer: "adamw_torch" };
const LOOK_MS = 1000;
const FITS = { yes: "Fits", no: "Does not fit", "too-close": "Too close to call" };

/** The body of a question. @param {any} form */
export function questionOf(form) {
  const body = /** @type {Record<string, any>} */ ({});
  for (const [name, value] of Object.entries(form)) {
    if (value === "") continue;
    if (["batch_size", "seq_len", "rank"].includes(name)) body[name] = Number(value);
    else if (name === "gradient_checkpointing") body[name] = value === "yes";
    else body[name] = value;
  }
  if (!["lora", "adalora", "miss"].includes(form.method)) delete body.rank;
  if (!["lora", "adalora", "ia3", "oft", "miss"].includes(form.method)) delete body.targets;
  return body;
}

/** Asks once more where the server is busy with others' questions. @param {any} body @param {AbortSignal} [signal] */
export async function estimate(body, signal) {
  for (let turn = 0; ; turn += 1) {
    try {
      return await ask("/v1/estimates", { method: "POST", json: body, signal });
    } catch (error) {
      if (/** @type {any} */ (error).status !== 503 || turn === 5) throw error;
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}

/** Whether a question would be answered at once: until then libraries are imported, which begins with this. */
export function useReadiness() {
  const [isReady, setReady] = useState(false);
  useEffect(() => {
    let timer = 0;
    let isGone = false;
    const look = async () => {
      const { ready } = await ask("/v1/estimates/readiness", { method: "POST" }).catch(() => ({ ready: false }));
      if (isGone) return;
      setReady(ready);
      if (!ready) timer = setTimeout(look, LOOK_MS);
    };
    look();
    return () => {
      isGone = true;
      clearTimeout(timer);
    };
  }, []);
  return isReady;
}

export function EstimatePage() {
  const [form, setForm] = useState({ ...START, model: new URLSearchParams(location.search).get("model") || "" });
  const [found, setFound] = useState(/** @type {any} */ (null));
  const [largest, setLargest] = useState(/** @type {any} */ (null));
  const isReady = useReadiness();
  const [error, setError] = useState(/** @type {any} */ (null));
  const [isBusy, setBusy] = useState(false);
  const asking = useRef(new AbortController());
  const set = (/** @type {string} */ name) => (/** @type {string} */ value) => setForm((old) => ({ ...old, [name]: value }));
  const work = async (/** @type {Event} */ event) => {
    event?.preventDefault();
    if (!form.model.trim()) return;
    asking.current.abort();
    asking.current = new AbortController();
    const { signal } = asking.current;
    setBusy(true);
    setError(null);
    setLargest(null);
    const body = questionOf(form);
    try {
      setFound(await estimate({ ...body, every_gpu: true, largest: false }, signal));
      setBusy(false);
      // What takes longer is told when it is known.
      if (body.gpu) setLargest(await estimate(body, signal));
    } catch (failure) {
      if (!signal.aborted) setError(failure);
    } finally {
      if (!signal.aborted) setBusy(false);
    }
  };
  useEffect(() => {
    if (form.model) work(/** @type {any} */ (null));
    return () => asking.current.abort();
  }, []);
  const problemOf = (/** @type {string} */ name) => error?.errors?.find((/** @type {any} */ each) => each.pointer === `/${name}`)?.message;
  const general = error && !error.errors?.length ? error : null;
  return html`
    <${Heading}>Estimate<//>
    <p class="muted">What a training would need and how fast it would be, from the model's configuration: no weights, no GPU.</p>
    <form class="card" onSubmit=${work}>
      <div class="grid">
        <${Field} legend="Model" name="model" value=${form.model} onInput=${set("model")} hint="a folder, a config.json, or a hub id" error=${problemOf("model")} required />
        <${Field} legend="Method" name="method" value=${form.method} onInput=${set("method")} options=${METHODS} error=${problemOf("method")} />
        <${Field} legend="Rank" name="rank" type="number" min="1" value=${form.rank} onInput=${set("rank")} error=${problemOf("rank")} />
        <${Field} legend="Targets" name="targets" value=${form.targets} onInput=${set("targets")} options=${["minimal", "balanced", "full"]} error=${problemOf("targets")} />
        <${Field} legend="Quantization" name="quantization" value=${form.quantization} onInput=${set("quantization")} options=${["none", "int8", "nf4", "fp4"]} error=${problemOf("quantization")} />
        <${Field} legend="Precision" name="precision" value=${form.precision} onInput=${set("precision")} options=${["bf16", "fp16", "fp32", "amp-bf16", "amp-fp16"]} error=${problemOf("precision")} />
        <${Field} legend="Rows of a micro-batch" name="batch_size" type="number" min="1" value=${form.batch_size} onInput=${set("batch_size")} error=${problemOf("batch_size")} />
        <${Field} legend="Tokens a row" name="seq_len" type="number" min="1" value=${form.seq_len} onInput=${set("seq_len")} placeholder="1024, or what it reads" error=${problemOf("seq_len")} />
        <${Field} legend="GPU" name="gpu" value=${form.gpu} onInput=${set("gpu")} list=${GPUS} hint="of the catalogue" error=${problemOf("gpu")} />
        <${Field} legend="Gradient checkpointing" name="gradient_checkpointing" value=${form.gradient_checkpointing} onInput=${set("gradient_checkpointing")} options=${["yes", "no"]} />
        <${Field} legend="Loss" name="loss" value=${form.loss} onInput=${set("loss")} options=${["plain", "chunked", "liger"]} error=${problemOf("loss")} />
        <${Field} legend="Optimizer" name="optimizer" value=${form.optimizer} onInput=${set("optimizer")} options=${["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"]} error=${problemOf("optimizer")} />
      </div>
      <p><button type="submit" class="primary" disabled=${isBusy}>Estimate</button></p>
    </form>
    ${isBusy && html`<p class="loading" role="status"><span class="spinner" aria-hidden="true"></span>${isReady ? "Running a step dry …" : "Importing what dry runs need: some seconds, once …"}</p>`} ${general && html`<${Failure} error=${general} />`}
    ${found && html`<${Found} found=${found} largest=${found.gpu && !error ? largest : NONE} />
      <section class="card" aria-labelledby="catalogue"><h2 id="catalogue">On the GPUs of the catalogue</h2><${Catalogue} gpus=${found.every_gpu} /></section>`}
  `;
}

/** @param {{low: number, mid: number, high: number} | null} range @param {(value: number) => string} form */
const between = (range, form) => (range ? `${form(range.low)} … ${form(range.high)}` : UNKNOWN);

/** What is small shares the last colour. @param {number} index */
const colourOf = (index) => `c${Math.min(index, 5) + 1}`;
const NONE = { max_micro_batch: null, max_seq_len: null };

/** `largest` is null while it is worked out. @param {{found: any, largest: any}} props */
function Found({ found, largest }) {
  const verdict = found.fits || "";
  const entries = Object.entries(found.breakdown);
  const total = found.device_bytes;
  const most = Math.max(total, found.capacity_bytes || 0);
  return html`<section class="card" aria-labelledby="verdict">
    <h2 id="verdict">${found.description}</h2>
    ${verdict && html`<p class="verdict ${verdict}" role="status"><span aria-hidden="true">${{ yes: "✓", no: "✕", "too-close": "≈" }[/** @type {"yes"} */ (verdict)]}</span> ${FITS[/** @type {"yes"} */ (verdict)]}${found.gpu ? ` on ${found.gpu}` : ""}</p>`}
    <dl class="figures">
      <div><dt>memory on the device</dt><dd>${bytes(total)}<small>${bytes(found.device_bytes_low)} … ${bytes(found.device_bytes_high)}${found.capacity_bytes ? ` of ${bytes(found.capacity_bytes)}` : ""}</small></dd></div>
      <div><dt>largest micro-batch</dt><dd>${!largest ? "…" : largest.max_micro_batch == null ? UNKNOWN : `${whole(largest.max_micro_batch)} rows`}</dd></div>
      <div><dt>longest rows</dt><dd>${!largest ? "…" : largest.max_seq_len == null ? UNKNOWN : `${whole(largest.max_seq_len)} tokens`}</dd></div>
      <div><dt>speed</dt><dd>${found.tokens_per_second ? speed(found.tokens_per_second.mid, "tokens/s") : UNKNOWN}<small>${between(found.tokens_per_second, speed)}</small></dd></div>
      <div><dt>trained parameters</dt><dd>${whole(found.trainable_params)}</dd></div>
    </dl>
    <h3>What the memory is for</h3>
    <div class="stack" role="img" aria-label="What the memory is for; the list below says it">
      ${entries.map(([, size], index) => html`<span class=${colourOf(index)} style=${{ width: `${(100 * /** @type {any} */ (size)) / most}%` }}></span>`)}</div>
    <ul class="key">${entries.map(([name, size], index) => html`<li><i class=${colourOf(index)}></i>${name.replaceAll("_", " ")}: ${bytes(/** @type {any} */ (size))}</li>`)}</ul>
    <details><summary>Peak of each phase</summary><${Table} caption="Peak of each phase" columns=${[{ name: "phase" }, { name: "allocated", number: true }]} rows=${Object.entries(found.phases).map(([name, size]) => [name.replaceAll("_", " "), bytes(/** @type {any} */ (size))])} /></details>
    ${found.notes.length > 0 && html`<ul class="reasons">${found.notes.map((/** @type {string} */ note) => html`<li>${note}</li>`)}</ul>`}
    <p class="muted">Worked out in ${seconds(found.seconds_spent)}.</p>
  </section>`;
}

const ORDER = { yes: 0, "too-close": 1, no: 2 };
const CATALOGUE = [
  { name: "GPU", of: (/** @type {any} */ each) => each.gpu },
  { name: "memory", of: (/** @type {any} */ each) => each.capacity_bytes, number: true },
  { name: "fits", of: (/** @type {any} */ each) => ORDER[/** @type {"yes"} */ (each.fits)] },
  { name: "needs", of: (/** @type {any} */ each) => each.device_bytes, number: true },
  { name: "tokens/s", of: (/** @type {any} */ each) => each.tokens_per_second?.mid ?? -1, number: true },
];

/** @param {{gpus: any[]}} props */
function Catalogue({ gpus }) {
  const [order, setOrder] = useState({ column: 1, isUp: true });
  const { of } = CATALOGUE[order.column];
  const sign = order.isUp ? 1 : -1;
  const rows = [...gpus].sort((a, b) => (of(a) === of(b) ? a.capacity_bytes - b.capacity_bytes : of(a) < of(b) ? -sign : sign));
  const fitting = gpus.filter((each) => each.fits === "yes").length;
  const columns = CATALOGUE.map(({ name, number }, column) => ({
    name,
    number,
    sort: order.column !== column ? "none" : order.isUp ? "ascending" : "descending",
    onSort: () => setOrder((old) => ({ column, isUp: old.column === column ? !old.isUp : true })),
  }));
  return html`<p>It is sure to fit on ${fitting} of ${gpus.length}.</p>
    <div class="catalogue"><${Table} caption="GPUs of the catalogue" columns=${columns}
      rows=${rows.map((each) => [each.gpu, bytes(each.capacity_bytes), html`<${Verdict} fits=${each.fits} />`, `${bytes(each.device_bytes_low)} … ${bytes(each.device_bytes_high)}`, between(each.tokens_per_second, speed)])} /></div>`;
}

/** @param {{fits: "yes" | "no" | "too-close"}} props */
export const Verdict = ({ fits }) => html`<span class="fits ${fits}"><span aria-hidden="true">${{ yes: "✓", no: "✕", "too-close": "≈" }[fits]}</span> ${{ yes: "yes", no: "no", "too-close": "too close to call" }[fits]}</span>`;
