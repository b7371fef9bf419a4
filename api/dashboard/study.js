// One study: followed while it runs, seen as a whole when it has ended.

import { html, useCallback, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { ask, askIfThere, studyPath } from "./api.js";
import { bytes, loss, seconds, sentence, short, speed, whole } from "./format.js";
import { followStudy } from "./live.js";
import { Actions } from "./actions.js";
import { Compare } from "./compare.js";
import { Exports } from "./exports.js";
import { memoryOf, rowsOf, speedOf, unitOf } from "./board.js";
import { Leaderboard } from "./leaderboard.js";
import { LossFigure, MemoryFigure, ParetoFigure, Timeline } from "./plots.js";
import { Sliders, useRanking } from "./sliders.js";
import { Progress } from "./studies.js";
import { TrialDialog } from "./trial.js";
import { Failure, Heading, Loading, Moment, State, useSettled } from "./ui.js";

const GATHER_MS = 120;
const REST_MS = 250;
const LONGEST_MS = 3000;
const RETRY_MS = 1000;
const FINAL = ["succeeded", "failed", "cancelled"];
const MOST_LINES = 200;

/** The study with all that is shown of it, kept up to date. @param {string} id */
function useStudy(id) {
  const [view, setView] = useState(/** @type {any} */ ({ rows: [], events: [] }));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [line, setLine] = useState("waiting");
  const set = (/** @type {any} */ part) => setView((/** @type {any} */ old) => ({ ...old, ...part }));

  useEffect(() => {
    const path = studyPath(id);
    const rows = new Map();
    let [last, isGone] = [0, false];
    let stop = () => {};

    const take = (/** @type {any} */ study, /** @type {any} */ board) => {
      last = board.last_seq;
      for (const row of rowsOf(board)) rows.set(row.id, row);
      if (!isGone) set({ study, rows: [...rows.values()] });
    };
    // Apart from the rows: of a large study they take longer, and nobody is to wait for them to see a trial.
    const results = gathered(0, async () => {
      const study = await ask(path);
      const [standings, best] = await Promise.all([
        ask(`${path}/standings`),
        study.state === "succeeded" ? askIfThere(`${path}/recommendation`) : null,
      ]);
      if (!isGone) set({ standings, best });
    });
    const changes = gathered(GATHER_MS, async () => {
      const [board, study] = await Promise.all([ask(`${path}/board?after=${last}`), ask(path)]);
      take(study, board);
      if (board.columns.id.length || FINAL.includes(study.state)) results.again();
    });
    const onEvents = (/** @type {any[]} */ events) => {
      setView((/** @type {any} */ old) => ({ ...old, events: [...old.events, ...events].slice(-MOST_LINES) }));
      changes.again();
    };
    const begin = async () => {
      try {
        const [study, board] = await Promise.all([ask(path), ask(`${path}/board`)]);
        if (isGone) return;
        take(study, board);
        const history = await ask(`${path}/events?after=${Math.max(0, last - 50)}`);
        if (isGone) return;
        set({ events: history.events });
        if (FINAL.includes(study.state)) setLine("over");
        else stop = followStudy(id, Math.max(last, history.last_seq), onEvents, setLine);
        results.again();
      } catch (failure) {
        if (!isGone) setError(failure);
      }
    };
    begin();
    return () => {
      isGone = true;
      changes.stop();
      results.stop();
      stop();
    };
  }, [id]);
  const { study } = view;
  return { ...view, error, line: study && FINAL.includes(study.state) ? "over" : line };
}

/** What is asked for again and again runs once at a time, and once more where it was asked for meanwhile. Tried again
 * where it fails. @param {number} waitMs @param {() => Promise<void>} work */
function gathered(waitMs, work) {
  let [timer, isWorking, isWanted, isOver] = [0, false, false, false];
  const again = (wait = waitMs) => {
    isWanted = true;
    if (!timer && !isWorking && !isOver) timer = setTimeout(run, wait);
  };
  const run = async () => {
    [timer, isWorking, isWanted] = [0, true, false];
    let wait = waitMs;
    try {
      await work();
    } catch {
      [isWanted, wait] = [true, RETRY_MS];
    }
    isWorking = false;
    if (isWanted) again(wait);
  };
  return { again, stop: () => (clearTimeout(timer), (isOver = true)) };
}

/** @param {{id: string, caller: any}} props */
export function StudyPage({ id, caller }) {
  const { study, rows, standings, best, events, error, line } = useStudy(decodeURIComponent(id));
  const ranking = useRanking(standings, best);
  // Plots wait for a slider to rest, which the table follows at once.
  const settled = { rows: useSettled(rows, REST_MS, LONGEST_MS), places: useSettled(ranking.places, REST_MS) };
  const [opened, setOpened] = useState(/** @type {string | null} */ (null));
  const [chosen, setChosen] = useState(/** @type {string[]} */ ([]));
  const [isComparing, setComparing] = useState(false);
  const byId = useMemo(() => new Map(rows.map((/** @type {any} */ row) => [row.id, row])), [rows]);
  const toggle = useCallback(
    (/** @type {string} */ trial) =>
      setChosen((old) => (old.includes(trial) ? old.filter((each) => each !== trial) : [...old, trial].slice(-2))),
    [],
  );
  useEffect(() => {
    if (study) document.title = `${short(study.request.model)} on ${short(study.request.dataset)} – rankwise`;
  }, [study?.id]);

  const recommended = best?.trial_id || null;
  // Kept, so that a slider's move draws the table and nothing else.
  const answer = useMemo(() => best && html`<${Answer} best=${best} rows=${byId} onOpen=${setOpened} />`, [best, byId]);
  const figures = useMemo(
    () => study && html`<${Figures} ...${{ ...settled, study, standings, recommended, events, onOpen: setOpened }} />`,
    [settled.rows, settled.places, study, standings, recommended, events],
  );
  const rest = useMemo(
    () => study && html`
      ${best && html`<section class="card" aria-labelledby="files"><h2 id="files">Ready files</h2><${Exports} study=${study} best=${best} /></section>`}
      ${study.facts && html`<section class="card" aria-labelledby="facts"><h2 id="facts">Model, data, device</h2><${Facts} study=${study} /></section>`}`,
    [study, best],
  );

  if (error) return html`<${Heading}>Study<//><${Failure} error=${error} again=${() => location.reload()} />`;
  if (!study) return html`<${Heading}>Study<//><${Loading} what="the study" />`;
  const { request } = study;
  return html`
    <div class="title">
      <${Heading}>${short(request.model)} on ${short(request.dataset)}<//>
      <${State} state=${study.state} text=${study.cancel_requested && study.state === "running" ? "being cancelled" : null} />
      <span class="live ${line}" role="status">${{ live: "live", waiting: "connecting …", over: "ended" }[/** @type {string} */ (line)]}</span>
    </div>
    <p class="muted">
      ${request.weights ? "own weights" : request.objective}${study.owner ? `, asked for by ${study.owner}` : ""}, created${" "}
      <${Moment} at=${study.created_at} /> · <code>${study.id}</code>
    </p>
    <${Progress} study=${study} />
    <${Actions} study=${study} caller=${caller} hasReport=${Boolean(best)} />
    ${study.reason && study.state !== "succeeded" &&
    html`<div class="note failure"><strong>${sentence(study.reason)}</strong></div>`}

    ${answer}
    ${!best && ranking.places.length > 0 && html`<p class="note">Leading so far: trial ${ranking.places[0].number},${" "}
      ${byId.get(ranking.places[0].trial_id)?.adapter}. The study has not ended.</p>`}

    <section class="card" aria-labelledby="leaderboard"><h2 id="leaderboard">Leaderboard</h2>
      <${Sliders} standings=${standings} ranking=${ranking} recommended=${recommended} />
      <${Leaderboard} rows=${rows} places=${ranking.places} recommended=${recommended} study=${study}
        chosen=${chosen} onChoose=${toggle} onOpen=${setOpened} />
      <p class="actions">
        <button type="button" disabled=${chosen.length !== 2} onClick=${() => setComparing(true)}>Compare the two chosen</button>
        <span class="muted" role="status">${chosen.length} of 2 chosen</span>
      </p>
    </section>
    ${figures} ${rest}
    ${opened && html`<${TrialDialog} study=${study} id=${opened} row=${byId.get(opened)} onClose=${() => setOpened(null)} />`}
    ${isComparing && html`<${Compare} study=${study} ids=${chosen} onClose=${() => setComparing(false)} />`}
  `;
}

/** The plots, and what is told beside them. @param {any} props */
function Figures({ study, rows, places, standings, recommended, events, onOpen }) {
  const shared = { rows, places, standings, recommended, onOpen };
  return html`<div class="cards">
    <section class="card" aria-labelledby="pareto"><h2 id="pareto">Speed, memory, quality</h2><${ParetoFigure} ...${shared} /></section>
    <section class="card" aria-labelledby="memory"><h2 id="memory">Memory, estimated and measured</h2><${MemoryFigure} ...${shared} /></section>
    <section class="card" aria-labelledby="losses"><h2 id="losses">Learning</h2><${LossFigure} ...${shared} id=${study.id} /></section>
    <section class="card" aria-labelledby="funnel"><h2 id="funnel">How candidates became few</h2><${Funnel} standings=${standings} /></section>
    ${study.state === "running" && html`<${Timeline} />`}
    <section class="card" aria-labelledby="history"><h2 id="history">What happened</h2><${History} events=${events} /></section>
  </div>`;
}

/** What is recommended, in figures and sentences. @param {{best: any, rows: Map<string, any>, onOpen: (id: string) => void}} props */
function Answer({ best, rows, onOpen }) {
  const { evidence, finish } = best;
  const memory = memoryOf(evidence);
  const width = evidence.tokens_per_s_rel_halfwidth;
  return html`<section class="card" aria-labelledby="answer">
    <h2 id="answer">Recommended: ${best.description}</h2>
    <dl class="figures">
      ${speedOf(evidence) != null && html`<div><dt>speed</dt><dd>${speed(speedOf(evidence))}<small>${unitOf(evidence)}${width ? `, ± ${Math.round(width * 100)} %` : ""}</small></dd></div>`}
      ${memory != null && html`<div><dt>memory</dt><dd>${bytes(memory)}<small>at its peak</small></dd></div>`}
      ${evidence.heldout_loss != null && html`<div><dt>held-out loss</dt><dd>${loss(evidence.heldout_loss)}<small>${evidence.heldout_loss_se == null ? "" : `± ${loss(evidence.heldout_loss, evidence.heldout_loss_se).split(" ± ")[1]}, a standard error`}</small></dd></div>`}
      ${evidence.metric_name && html`<div><dt>${evidence.metric_name}</dt><dd>${evidence.metric_value.toFixed(3)}<small>on held-out rows</small></dd></div>`}
      ${finish && html`<div><dt>your whole training</dt><dd>${seconds(finish.seconds)}<small>${seconds(finish.low_s)} … ${seconds(finish.high_s)}${finish.cost == null ? "" : `; costs ${finish.cost.toPrecision(3)}`}</small></dd></div>`}
      <div><dt>score</dt><dd>${best.score.toFixed(1)}<small>of 100</small></dd></div>
    </dl>
    <div class="answer"><div><h3>Why this one</h3>
    <ul class="reasons">${best.reasons.map((/** @type {string} */ reason) => html`<li>${reason}</li>`)}</ul></div>
    ${best.named.length > 0 &&
    html`<div><h3>From the same trials</h3>
      <ul class="reasons">
        ${best.named.map(
          (/** @type {any} */ named) => html`<li>
            <strong>${named.name}</strong>: <button type="button" class="link" onClick=${() => onOpen(named.trial_id)}>trial ${named.number}</button>, ${rows.get(named.trial_id)?.adapter}. ${named.reason}
          </li>`,
        )}
      </ul></div>`}</div>
    ${best.stopped && html`<p class="muted">The search ended: ${sentence(best.stopped)}</p>`}
  </section>`;
}

/** @param {{standings: any}} props */
function Funnel({ standings }) {
  if (!standings) return html`<${Loading} what="the funnel" />`;
  const most = Math.max(1, ...standings.stages.map((/** @type {any} */ stage) => stage.candidates));
  if (!standings.stages.length) return html`<p class="muted">Nothing was tried yet.</p>`;
  return html`<ol class="funnel">
    ${standings.stages.map((/** @type {any} */ stage) => {
      const width = barOf(stage.candidates / most);
      return html`<li>
        <strong>${stage.name}</strong>: ${whole(stage.candidates)} candidate${stage.candidates === 1 ? "" : "s"}${stage.adapters && stage.adapters !== stage.candidates ? ` of ${whole(stage.adapters)} adapters` : ""}
        <span class="bar" aria-hidden="true" style=${width}></span>
        ${Object.keys(stage.left).length > 0 &&
        html`<ul>${Object.entries(stage.left).map(([why, count]) => html`<li>${whole(/** @type {number} */ (count))} ${why}</li>`)}</ul>`}
      </li>`;
    })}
  </ol>`;
}

/** Set through the element's style object, which the content policy allows. @param {number} share */
const barOf = (share) => ({ width: `${100 * share}%` });

/** @param {{events: any[]}} props */
function History({ events }) {
  const clock = useRef(new Intl.DateTimeFormat(undefined, { timeStyle: "medium" }));
  if (!events.length) return html`<p class="muted">Nothing yet.</p>`;
  return html`<ol class="log" tabindex="0" aria-label="What happened, newest first">
    ${[...events].reverse().map(
      (event) => html`<li key=${event.seq}><time datetime=${event.created_at}>${clock.current.format(new Date(event.created_at))}</time>${tell(event)}</li>`,
    )}
  </ol>`;
}

/** An event in words. @param {any} event */
function tell({ kind, payload }) {
  const trial = payload.number ? `trial ${payload.number}` : "";
  const why = payload.reason ? `: ${payload.reason}` : "";
  /** @type {Record<string, () => string>} */
  const words = {
    "study.created": () => "asked for",
    "study.running": () => "taken in hand",
    "study.released": () => "back in the queue: its supervisor is shutting down",
    "study.cancel_requested": () => "to be cancelled",
    "study.facts": () => `${whole(payload.train_rows)} rows to train on, ${whole(payload.heldout_rows)} held out`,
    "study.finished": () => `ended: ${payload.state}${why}`,
    "search.started": () => `the search begins with ${whole(payload.candidates)} candidates`,
    "candidate.ruled_out": () => `ruled out: ${payload.candidate}${why}`,
    "trial.planned": () => `${trial} planned: ${payload.candidate}${why}`,
    "trial.running": () => `${trial} runs on ${(payload.devices || []).join(", ")}`,
    "trial.lost": () => `${trial} lost its process${why}`,
    "trial.disturbed": () => `${trial} was disturbed${why}`,
    "trial.finished": () => `${trial} ended: ${payload.outcome}${why}`,
  };
  return words[kind]?.() ?? `${kind.replaceAll(/[._]/g, " ")}${why}`;
}

/** @param {{study: any}} props */
function Facts({ study }) {
  const { model, dataset, recipe, devices, train_rows, heldout_rows } = study.facts;
  const facts = [
    ["model", study.request.model],
    ["structure", `${model.architecture}, ${(model.parameters / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} M parameters`],
    ["data", study.request.dataset],
    ["task", `${dataset.task.kind}: ${dataset.task.reason}`],
    ["columns", dataset.columns.join(", ")],
    ["rows", `${whole(train_rows)} to train on, ${whole(heldout_rows)} held out`],
    ["length", recipe.max_length ? `${whole(recipe.max_length)} tokens at most${recipe.packing ? ", packed" : ""}` : null],
    ["device", devices.join(", ")],
    ["budget", `${seconds(study.request.budget.seconds)}, ${whole(study.request.budget.max_trials)} trials at most`],
    ["notes", dataset.notes.join(" ")],
  ];
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Facts of the study"><table><tbody>
    ${facts.filter(([, value]) => value).map(([name, value]) => html`<tr><th scope="row">${name}</th><td>${value}</td></tr>`)}
  </tbody></table></div>`;
}
