// All studies: search, filters, how far each has come.

import { html, useCallback, useEffect, useMemo, useState } from "./vendor/htm-preact.js";
import { ask } from "./api.js";
import { UNKNOWN, count, seconds, short, whole } from "./format.js";
import { followStudies } from "./live.js";
import { Empty, Failure, Heading, Loading, Moment, State, useAnswer, useSettled } from "./ui.js";

const PAGE = 100;
const TYPING_MS = 250;
const STATES = ["queued", "running", "succeeded", "failed", "cancelled"];

export function Studies() {
  const [query, setQuery] = useState(new URLSearchParams(location.search).get("q") || "");
  const [state, setState] = useState("");
  const [older, setOlder] = useState(/** @type {{studies: any[], next: string | null} | null} */ (null));
  const [failure, setFailure] = useState(/** @type {any} */ (null));
  const wanted = useSettled(query.trim(), TYPING_MS);
  const load = useCallback(() => {
    const asked = new URLSearchParams({ limit: String(PAGE), ...(wanted && { q: wanted }), ...(state && { state }) });
    return ask(`/v1/studies?${asked}`);
  }, [wanted, state]);
  const { data, error, isLoading, again } = useAnswer(load, [wanted, state]);

  useEffect(() => {
    let waiting = 0;
    const soon = () => {
      if (!waiting) waiting = setTimeout(() => ((waiting = 0), again()), 300);
    };
    const stop = followStudies(soon, () => {}, soon);
    return () => (clearTimeout(waiting), stop());
  }, [again]);
  useEffect(() => {
    setOlder(null);
    history.replaceState(null, "", wanted ? `/?q=${encodeURIComponent(wanted)}` : "/");
  }, [wanted, state]);

  const all = useMemo(() => {
    const first = data?.studies || [];
    const known = new Set(first.map((/** @type {any} */ study) => study.id));
    return [...first, ...(older?.studies || []).filter((study) => !known.has(study.id))];
  }, [data, older]);
  const next = older ? older.next : data?.next;
  const readOn = async () => {
    setFailure(null);
    try {
      const page = await ask(next);
      setOlder({ studies: [...(older?.studies || []), ...page.studies], next: page.next });
    } catch (problem) {
      setFailure(problem);
    }
  };

  return html`
    <div class="title">
      <${Heading}>Studies<//>
      <a class="button primary" href="/new">New study</a>
    </div>
    <div class="filters" role="search">
      <div class="field wide">
        <label for="q">Search</label>
        <input id="q" type="search" value=${query} placeholder="model, dataset, beginning of an id …" maxlength="200"
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
    ${!isLoading && !error && !all.length && html`<${None} isFiltered=${Boolean(state || wanted)} />`}
    ${all.length > 0 &&
    html`<p class="muted" role="status">${count(all.length, "study").replace("studys", "studies")}${next ? ", and older ones" : ""}</p>
      <ul class="studies">
        ${all.map((study) => html`<${Card} key=${study.id} study=${study} />`)}
      </ul>`}
    ${failure && html`<${Failure} error=${failure} />`}
    ${next && html`<p class="actions"><button type="button" onClick=${readOn}>Show older ones</button></p>`}
  `;
}

/** @param {{isFiltered: boolean}} props */
function None({ isFiltered }) {
  if (isFiltered) return html`<${Empty} title="No study is like that" />`;
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
