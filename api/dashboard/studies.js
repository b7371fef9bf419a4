// All studies: search, filters, how far each has come.

import { html, useCallback, useEffect, useMemo, useState } from "./vendor/htm-preact.js";
import { ask } from "./api.js";
import { UNKNOWN, count, seconds, short, whole } from "./format.js";
import { followStudies } from "./live.js";
import { Empty, Failure, Heading, Loading, Moment, State, useAnswer } from "./ui.js";

const STATES = ["queued", "running", "succeeded", "failed", "cancelled"];

export function Studies() {
  const [query, setQuery] = useState(new URLSearchParams(location.search).get("q") || "");
  const [state, setState] = useState("");
  const [more, setMore] = useState(/** @type {any[]} */ ([]));
  const [next, setNext] = useState(/** @type {string | null | undefined} */ (undefined));
  const load = useCallback(() => ask(`/v1/studies?limit=100${state && `&state=${state}`}`), [state]);
  const { data, error, isLoading, again } = useAnswer(load, [state]);

  useEffect(() => {
    let waiting = 0;
    const soon = () => {
      if (!waiting) waiting = setTimeout(() => ((waiting = 0), again()), 300);
    };
    const stop = followStudies(soon, () => {}, soon);
    return () => (clearTimeout(waiting), stop());
  }, [again]);
  useEffect(() => (setMore([]), setNext(undefined)), [state]);

  const all = useMemo(() => {
    const first = data?.studies || [];
    const known = new Set(first.map((/** @type {any} */ study) => study.id));
    return [...first, ...more.filter((study) => !known.has(study.id))];
  }, [data, more]);
  const shown = useMemo(() => {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    return all.filter((study) => {
      const text = textOf(study);
      return words.every((word) => text.includes(word));
    });
  }, [all, query]);
  const older = next === undefined ? data?.next : next;
  const readOn = async () => {
    const page = await ask(older);
    setMore((old) => [...old, ...page.studies]);
    setNext(page.next);
  };

  return html`
    <div class="title">
      <${Heading}>Studies<//>
      <a class="button primary" href="/new">New study</a>
    </div>
    <div class="filters" role="search">
      <div class="field wide">
        <label for="q">Search</label>
        <input id="q" type="search" value=${query} placeholder="model, dataset, owner, device, id …"
          onInput=${(/** @type {any} */ event) => setQuery(event.currentTarget.value)} />
      </div>
      <div class="field">
        <label for="state">State</label>
        <select id="state" onChange=${(/** @type {any} */ event) => setState(event.currentTarget.value)}>
          <option value="">any</option>
          ${STATES.map((each) => html`<option value=${each}>${each}</option>`)}
        </select>
      </div>
    </div>
    ${error && html`<${Failure} error=${error} again=${again} />`}
    ${isLoading && !all.length && html`<${Loading} what="studies" />`}
    ${!isLoading && !error && !all.length && html`<${None} isFiltered=${Boolean(state)} />`}
    ${all.length > 0 &&
    html`<p class="muted" role="status">${count(shown.length, "study").replace("studys", "studies")}${older ? ", and older ones" : ""}</p>
      <ul class="studies">
        ${shown.map((study) => html`<${Card} key=${study.id} study=${study} />`)}
      </ul>`}
    ${older && html`<button type="button" onClick=${readOn}>Show older ones</button>`}
  `;
}

/** @param {any} study */
function textOf(study) {
  const { request, facts } = study;
  const parts = [request.model, request.dataset, study.owner, study.id, study.state, ...(facts?.devices || [])];
  return parts.filter(Boolean).join(" ").toLowerCase();
}

/** @param {{isFiltered: boolean}} props */
function None({ isFiltered }) {
  if (isFiltered) return html`<${Empty} title="No study is in this state" />`;
  return html`<${Empty} title="No studies yet">
    <p>A study answers which fine-tuning configuration to run for a model, a dataset and this machine.</p>
    <p><a class="button primary" href="/new">Start the first one</a></p>
    <p class="muted">Or from a terminal: <code>rankwise recommend --model my-model --data reviews.csv</code></p>
  <//>`;
}

/** @param {{study: any}} props */
function Card({ study }) {
  const { request, facts } = study;
  const device = facts ? facts.devices.join(", ") : "";
  return html`<li>
    <article>
      <h2><a href="/studies/${study.id}">${short(request.model)} on ${short(request.dataset)}</a></h2>
      <${State} state=${study.state} />
      <dl>
        <div><dt>Objective</dt><dd>${request.weights ? "own weights" : request.objective}</dd></div>
        ${study.owner && html`<div><dt>Owner</dt><dd>${study.owner}</dd></div>`}
        <div><dt>Device</dt><dd>${device || UNKNOWN}</dd></div>
        <div><dt>Created</dt><dd><${Moment} at=${study.created_at} /></dd></div>
      </dl>
      <${Progress} study=${study} />
      ${study.state === "failed" && study.reason && html`<p class="reason">${study.reason}</p>`}
    </article>
  </li>`;
}

/** How far a study has come: by its budget of time, or of trials, whichever is nearer to its end.
 * @param {any} study @param {number} [now] */
export function progressOf(study, now = Date.now()) {
  const { finished, planned, running } = study.progress;
  const budget = study.request.budget;
  const begun = new Date(study.started_at || study.created_at).getTime();
  const spent = Math.max(0, (now - begun) / 1000);
  const share = Math.min(1, Math.max(spent / budget.seconds, finished / budget.max_trials));
  const left = Math.max(0, Math.min(budget.seconds - spent, share > 0 ? (spent / share) * (1 - share) : Infinity));
  return { finished, planned, running, share, left };
}

/** @param {{study: any}} props */
export function Progress({ study }) {
  const { finished, planned, running, share, left } = progressOf(study);
  if (study.state === "queued") return html`<p class="muted">Waits for its turn.</p>`;
  const trials = `${whole(finished)} of ${count(planned, "planned trial")} done`;
  if (study.state !== "running") return html`<p class="muted">${trials}</p>`;
  return html`<div class="progress">
    <progress max="1" value=${share} aria-label="Share of the budget that is spent"></progress>
    <span>${trials}${running ? `, ${running} running` : ""}; at most ${seconds(left)} left</span>
  </div>`;
}
