// A new study: what to ask for, and what of it will fit, told while one types.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Problem, ask, studyPath } from "./api.js";
import { bytes, short, whole } from "./format.js";
import { requestOf } from "./actions.js";
import { Verdict, estimate, useReadiness } from "./estimate.js";
import { Upload } from "./upload.js";
import { Failure, Field, Heading, Loading, Table, go, useAnswer } from "./ui.js";

const OBJECTIVES = ["balanced", "speed", "quality", "memory", "cost"];
const TYPING_MS = 500;
/** What is told at once of a model: the usual ways to adapt it, the smallest last. */
const TELLING = /** @type {[string, Record<string, any>][]} */ ([
  ["full fine-tuning", { method: "full" }],
  ["LoRA r=16", { method: "lora", rank: 16 }],
  ["LoRA r=16, nf4", { method: "lora", rank: 16, quantization: "nf4" }],
]);
/** Form field → where its value stands in a body. @type {Record<string, string[]>} */
const PLACES = {
  model: ["model"], dataset: ["dataset"], objective: ["objective"], memory_limit: ["constraints", "memory_limit"],
  finish_limit: ["constraints", "finish_limit"], quality_within: ["constraints", "quality_within"], max_length: ["constraints", "max_length"],
  seconds: ["budget", "seconds"], max_trials: ["budget", "max_trials"], epochs: ["epochs"], effective_batch: ["effective_batch"],
  price_per_hour: ["price_per_hour"], text_column: ["text_column"], label_column: ["label_column"], target_column: ["target_column"], seed: ["seed"],
};
const NUMBERS = ["max_length", "max_trials", "epochs", "effective_batch", "price_per_hour", "seed"];
const EMPTY = Object.fromEntries(Object.keys(PLACES).map((name) => [name, ""]));

/** What the form shows of a body. @param {any} body */
function formOf(body) {
  const form = { ...EMPTY };
  for (const [name, place] of Object.entries(PLACES)) {
    const value = place.reduce((part, key) => part?.[key], body);
    if (value == null) continue;
    const isDuration = name === "seconds" || name === "finish_limit";
    form[name] = isDuration ? `${value}s` : name === "memory_limit" ? bytes(value) : String(value);
  }
  return form;
}

/** A body from the form, over what it began with. @param {any} base @param {any} form */
function bodyOf(base, form) {
  const body = structuredClone(base);
  for (const [name, place] of Object.entries(PLACES)) {
    const text = form[name].trim();
    const within = place.length > 1 ? (body[place[0]] ??= {}) : body;
    const key = place[place.length - 1];
    if (text === "") delete within[key];
    else if (!(formOf(base)[name] === text && name !== "objective")) within[key] = NUMBERS.includes(name) ? Number(text) : text;
  }
  for (const group of ["constraints", "budget"]) {
    for (const [key, value] of Object.entries(body[group] || {})) if (value === null) delete body[group][key];
  }
  return body;
}

const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function NewStudy() {
  const from = new URLSearchParams(location.search).get("from");
  const { data, error } = useAnswer(async () => (from ? requestOf(await ask(studyPath(from))) : { objective: "balanced", budget: { seconds: "10m", max_trials: 64 } }), [from]);
  return html`<${Heading}>${from ? "Clone a study" : "New study"}<//>
    ${error ? html`<${Failure} error=${error} />` : data ? html`<${Form} base=${data} isClone=${Boolean(from)} />` : html`<${Loading} what="the study" />`}`;
}

/** @param {{base: any, isClone: boolean}} props */
function Form({ base, isClone }) {
  const [form, setForm] = useState(() => (isClone ? formOf(base) : { ...EMPTY, objective: "balanced", seconds: "10m", max_trials: "64" }));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [isBusy, setBusy] = useState(false);
  const key = useRef(newKey());
  const set = (/** @type {string} */ name) => (/** @type {string} */ value) => setForm((/** @type {any} */ old) => ({ ...old, [name]: value }));
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      // Sent twice, by a second click or a broken connection, it is asked for once.
      const study = await ask("/v1/studies", { method: "POST", json: bodyOf(base, form), headers: { "Idempotency-Key": key.current } });
      go(`/studies/${study.id}`);
    } catch (failure) {
      setError(failure);
      setBusy(false);
      if (/** @type {any} */ (failure).status) key.current = newKey();
    }
  };
  const wrong = (/** @type {string} */ name) => {
    const found = (error instanceof Problem ? error.errors : []).find((each) => each.pointer === `/${PLACES[name].join("/")}`);
    return found && `${found.message}${found.next_step ? `: ${found.next_step}` : ""}`;
  };
  const pointers = Object.values(PLACES).map((place) => `/${place.join("/")}`);
  const isElsewhere = error && !(error.errors || []).some((/** @type {any} */ each) => pointers.includes(each.pointer));
  const field = (/** @type {string} */ name, /** @type {string} */ legend, more = {}) =>
    html`<${Field} legend=${legend} name=${name} value=${form[name]} onInput=${set(name)} error=${wrong(name)} ...${more} />`;
  return html`<form onSubmit=${send}>
    <fieldset><legend>Model and data</legend><div class="grid">
      ${field("model", "Model", { hint: "a folder on the server, or a hub id", required: true })}
      <div>${field("dataset", "Dataset", { hint: "a file or folder on the server, or a hub id", required: true })}
        <${Upload} onDone=${set("dataset")} /></div>
    </div>
    <${Told} model=${form.model.trim()} limit=${form.memory_limit.trim()} length=${form.max_length.trim()} /></fieldset>
    <fieldset><legend>What counts</legend><div class="grid">
      ${field("objective", "Objective", { options: OBJECTIVES, hint: base.weights ? "the cloned study's own weights go before it" : null })}
      ${field("memory_limit", "Memory at most", { placeholder: "24GiB" })}
      ${field("finish_limit", "Whole training done within", { placeholder: "6h" })}
      ${field("quality_within", "Held-out loss above the best, at most", { placeholder: "1%" })}
    </div></fieldset>
    <fieldset><legend>Budget of the study</legend><div class="grid">
      ${field("seconds", "Time", { placeholder: "10m" })}
      ${field("max_trials", "Trials at most", { type: "number", min: "1" })}
      ${field("price_per_hour", "Price of a device an hour", { type: "number", min: "0", step: "any", hint: "in any currency; costs are told in it" })}
    </div></fieldset>
    <details><summary>More</summary><fieldset><legend>Training and columns</legend><div class="grid">
      ${field("epochs", "Epochs", { type: "number", step: "any", placeholder: "3" })}
      ${field("effective_batch", "Rows of an optimizer step", { type: "number", placeholder: "16" })}
      ${field("max_length", "Tokens a row at most", { type: "number", hint: "derived from the data if left out" })}
      ${field("text_column", "Column of the text")} ${field("label_column", "Column of the label")} ${field("target_column", "Column of the text to be written")}
      ${field("seed", "Seed", { type: "number", placeholder: "0" })}
    </div></fieldset></details>
    ${isElsewhere && html`<${Failure} error=${error} />`}
    <p class="actions"><button type="submit" class="primary" disabled=${isBusy}>Start the study</button> <a class="button" href="/">Back</a></p>
  </form>`;
}

/** What will fit, told while one types. @param {{model: string, limit: string, length: string}} props */
function Told({ model, limit, length }) {
  const [told, setTold] = useState(/** @type {any} */ (null));
  const [said, setSaid] = useState("");
  const isReady = useReadiness();
  const ready = useRef(false);
  ready.current = isReady;
  useEffect(() => {
    setTold(null);
    setSaid("");
    if (!model) return;
    const asking = new AbortController();
    const work = async () => {
      setSaid(ready.current ? "working out what will fit …" : "importing what dry runs need: some seconds, once …");
      try {
        const { gpus } = await ask("/v1/hardware");
        const free = gpus[0]?.total_bytes;
        const room = limit || free ? { memory_limit: limit || free } : {};
        const bodies = TELLING.map(([, settings]) => ({ model, ...settings, ...room, ...(Number(length) ? { seq_len: Number(length) } : {}) }));
        const found = /** @type {any[]} */ ([]);
        // First what each needs; the largest micro-batches take longer.
        for (const largest of room.memory_limit ? [false, true] : [false]) {
          for (const [place, body] of bodies.entries()) {
            found[place] = await estimate({ ...body, largest }, asking.signal);
            if (!asking.signal.aborted) setTold([...found]);
          }
        }
        if (!asking.signal.aborted) setSaid("");
      } catch (error) {
        if (!asking.signal.aborted) setSaid(`No estimate: ${/** @type {Error} */ (error).message}`);
      }
    };
    const timer = setTimeout(work, TYPING_MS);
    return () => (clearTimeout(timer), asking.abort());
  }, [model, limit, length]);
  if (!told && !said) return null;
  return html`<div class="note" aria-live="polite"><strong>What ${short(model)} needs on a GPU</strong>
    ${said && html`<p class="muted">${said}</p>`}
    ${told && html`<${Table} caption="What will fit" columns=${[{ name: "method" }, { name: "needs", number: true }, { name: "fits" }, { name: "largest micro-batch", number: true }]}
      rows=${told.map((/** @type {any} */ found, /** @type {number} */ place) => [TELLING[place][0], `${bytes(found.device_bytes_low)} … ${bytes(found.device_bytes_high)}`, found.fits ? html`<${Verdict} fits=${found.fits} />` : "no limit known", found.max_micro_batch ?? (found.asked.largest || !found.fits ? "–" : "…")])} />`}
    <p class="muted">${told && `One row of ${whole(told[0].candidate.recipe.max_length)} tokens, with gradient checkpointing, in bfloat16. `}<a href="/estimate?model=${encodeURIComponent(model)}">More on the page Estimate</a></p>
  </div>`;
}
