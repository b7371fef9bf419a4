// What trials run on: GPUs with memory by process, their health, the host, and which studies wait.

import { html, useEffect } from "./vendor/htm-preact.js";
import { ask } from "./api.js";
import { UNKNOWN, bytes, sentence, short, whole } from "./format.js";
import { Timeline } from "./plots.js";
import { Failure, Heading, Loading, Moment, State, Table, useAnswer } from "./ui.js";

const LOOK_MS = 3000;

async function load() {
  const [hardware, health, running, queued] = await Promise.all([
    ask("/v1/hardware"),
    ask("/healthz"),
    ask("/v1/studies?state=running"),
    ask("/v1/studies?state=queued"),
  ]);
  return { hardware, health, studies: [...running.studies, ...queued.studies.reverse()] };
}

export function Devices() {
  const { data, error, again } = useAnswer(load, []);
  useEffect(() => {
    const timer = setInterval(again, LOOK_MS);
    return () => clearInterval(timer);
  }, [again]);
  if (!data) return html`<${Heading}>Devices<//>${error ? html`<${Failure} error=${error} again=${again} />` : html`<${Loading} what="devices" />`}`;
  const { gpus, gpu_note, host, quarantines } = data.hardware;
  return html`
    <div class="title"><${Heading}>Devices<//><span class="live ${error ? "waiting" : ""}" role="status">${error ? "connecting …" : "live"}</span></div>
    ${gpus.length === 0 && html`<p class="note">There is no GPU to see here: ${gpu_note}. Trials run on the processor.</p>`}
    <div class="cards">
      ${gpus.map((/** @type {any} */ gpu) => html`<${Card} key=${gpu.uuid} gpu=${gpu} held=${quarantines.find((/** @type {any} */ each) => each.device === gpu.uuid)} />`)}
      <${Host} host=${host} />
      ${gpus.length > 0 && html`<${Timeline} />`}
      <section class="card" aria-labelledby="queue"><h2 id="queue">Queue</h2>
        <p class="muted">The supervisor that runs trials: ${data.health.supervisor || "not told"}.</p>
        ${data.studies.length
          ? html`<${Table} caption="Studies that run or wait" columns=${[{ name: "study" }, { name: "state" }, { name: "since" }]}
              rows=${data.studies.map((/** @type {any} */ study) => [html`<a href="/studies/${study.id}">${short(study.request.model)} on ${short(study.request.dataset)}</a>`, html`<${State} state=${study.state} />`, html`<${Moment} at=${study.created_at} />`])} />`
          : html`<p>No study runs or waits.</p>`}
      </section>
    </div>`;
}

/** @param {{gpu: any, held: any}} props */
function Card({ gpu, held }) {
  const processes = (gpu.processes || []).filter((/** @type {any} */ each) => each.used_bytes).sort((/** @type {any} */ a, /** @type {any} */ b) => b.used_bytes - a.used_bytes);
  const named = processes.reduce((/** @type {number} */ sum, /** @type {any} */ each) => sum + each.used_bytes, 0);
  const other = gpu.used_bytes == null ? null : Math.max(0, gpu.used_bytes - named);
  const parts = [...processes.map((/** @type {any} */ each, /** @type {number} */ index) => [each.name ? `${each.name} (${each.pid})` : `process ${each.pid}`, each.used_bytes, `c${(index % 5) + 1}`]), ["driver and others", other, "c6"]].filter(([, size]) => size);
  return html`<section class="card" aria-label=${`GPU ${gpu.index}`}>
    <h2>GPU ${gpu.index}: ${gpu.name}${gpu.is_mig ? ", MIG" : ""}</h2>
    ${held ? html`<p class="note failure"><strong>In quarantine ${held.released ? "and released by hand" : "since"} <${Moment} at=${held.since} />${held.released ? "" : ": no trial runs here"}.</strong> ${sentence(held.reason)}</p>`
      : gpu.health_problems.length ? gpu.health_problems.map((/** @type {string} */ each) => html`<p class="note warning">${sentence(each)}</p>`)
      : html`<p><${State} state="ok" text="healthy" /></p>`}
    <div class="stack" role="img" aria-label=${`${bytes(gpu.used_bytes)} of ${bytes(gpu.total_bytes)} taken`}>
      ${parts.map(([, size, kind]) => html`<span class=${kind} style=${{ width: `${(100 * /** @type {any} */ (size)) / gpu.total_bytes}%` }}></span>`)}
    </div>
    <ul class="key">${parts.map(([name, size, kind]) => html`<li><i class=${kind}></i>${name}: ${bytes(/** @type {any} */ (size))}</li>`)}
      <li class="muted">${bytes(gpu.free_bytes)} free of ${bytes(gpu.total_bytes)}</li></ul>
    ${gpu.processes === null && html`<p class="muted">This user may not list the processes of others.</p>`}
    <dl class="figures">
      <div><dt>in use</dt><dd>${gpu.utilisation_percent == null ? UNKNOWN : `${gpu.utilisation_percent} %`}</dd></div>
      <div><dt>temperature</dt><dd>${gpu.temperature_c == null ? UNKNOWN : `${gpu.temperature_c} °C`}</dd></div>
      <div><dt>power</dt><dd>${gpu.power_w == null ? UNKNOWN : `${whole(gpu.power_w)} W`}<small>${gpu.power_limit_w == null ? "" : `of ${whole(gpu.power_limit_w)} W`}</small></dd></div>
    </dl>
    ${gpu.throttle_reasons?.length > 0 && html`<p class="note warning">Its clocks are held down: ${gpu.throttle_reasons.join(", ")}.</p>`}
    <p class="muted"><code>${gpu.uuid}</code>, driver ${gpu.driver_version || UNKNOWN}</p>
  </section>`;
}

/** @param {{host: any}} props */
function Host({ host }) {
  const taken = host.ram_total_bytes - host.ram_available_bytes;
  return html`<section class="card" aria-labelledby="host"><h2 id="host">${host.cpu_model || "Processor"}</h2>
    <div class="stack" role="img" aria-label=${`${bytes(taken)} of ${bytes(host.ram_total_bytes)} of memory taken`}>
      <span class="c1" style=${{ width: `${(100 * taken) / host.ram_total_bytes}%` }}></span></div>
    <ul class="key"><li><i class="c1"></i>taken: ${bytes(taken)}</li><li class="muted">${bytes(host.ram_available_bytes)} free of ${bytes(host.ram_total_bytes)}</li></ul>
    <dl class="figures">
      <div><dt>cores</dt><dd>${host.physical_cores ?? UNKNOWN}<small>${host.logical_cores} threads</small></dd></div>
      <div><dt>free disk</dt><dd>${bytes(host.disk_free_bytes)}</dd></div>
      <div><dt>bfloat16 in hardware</dt><dd>${host.native_bf16 == null ? UNKNOWN : host.native_bf16 ? "yes" : "no"}</dd></div>
    </dl></section>`;
}
