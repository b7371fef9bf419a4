// All trials as a table that stays fluid with thousands: only rows in sight are in the page.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { UNKNOWN, bytes, count, csv, loss, percent, seconds, speed } from "./format.js";
import { memoryOf, speedOf, textOf, unitOf } from "./board.js";
import { State, download } from "./ui.js";

const ROW_PX = 40;
const AROUND = 8;

/** Of each column what is sorted by, and what is shown in its place. `place` is undefined of what is not compared.
 * @type {{key: string, name: string, of: (row: any, place?: any) => any, show?: (row: any, place?: any) => any,
 *   number?: boolean, up?: boolean, usual?: boolean, isRanked?: boolean}[]} */
export const COLUMNS = [
  { key: "rank", name: "rank", of: (_, place) => place?.rank, isRanked: true, number: true, usual: true, up: true },
  { key: "number", name: "trial", of: (row) => row.number, number: true, usual: true },
  { key: "adapter", name: "adapter", of: (row) => row.adapter, usual: true, up: true },
  { key: "settings", name: "settings", of: (row) => row.settings, usual: true, up: true },
  { key: "rate", name: "learning rate", of: (row) => row.learning_rate, show: (row) => row.learning_rate.toPrecision(2), number: true },
  { key: "rung", name: "rung", of: (row) => row.train_steps, show: (row) => (row.train_steps ? `${row.train_steps} steps` : "probe"), usual: true },
  { key: "speed", name: "speed", of: speedOf, show: (row) => speed(speedOf(row)), number: true, usual: true },
  { key: "width", name: "± speed", of: (row) => row.tokens_per_s_rel_halfwidth, show: (row) => percent(row.tokens_per_s_rel_halfwidth), number: true, up: true },
  { key: "memory", name: "memory", of: memoryOf, show: (row) => bytes(memoryOf(row)), number: true, usual: true, up: true },
  { key: "loss", name: "held-out loss", of: (row) => row.heldout_loss, show: (row) => loss(row.heldout_loss, row.heldout_loss_se), number: true, usual: true, up: true },
  { key: "metric", name: "metric", of: (row) => row.metric_value, show: (row) => (row.metric_name ? `${row.metric_value.toFixed(3)} ${row.metric_name}` : UNKNOWN), number: true },
  { key: "score", name: "score", of: (_, place) => place?.score, show: (_, place) => place?.score.toFixed(1) ?? UNKNOWN, isRanked: true, number: true, usual: true },
  { key: "beside", name: "beside the first", of: (_, place) => place?.standing.beside, isRanked: true },
  { key: "finish", name: "your run", of: (_, place) => place?.standing.finish_s, show: (_, place) => seconds(place?.standing.finish_s), isRanked: true, number: true, up: true },
  { key: "params", name: "trained", of: (row) => row.trainable_params, show: (row) => (row.trainable_params == null ? UNKNOWN : `${(row.trainable_params / 1e6).toPrecision(3)} M`), number: true, up: true },
  { key: "wall", name: "took", of: (row) => row.wall_s, show: (row) => seconds(row.wall_s), number: true },
  { key: "outcome", name: "outcome", of: (row) => row.outcome || row.state, show: (row) => html`<${State} state=${row.outcome || row.state} />`, usual: true, up: true },
  { key: "reason", name: "reason", of: (row) => row.reason, up: true },
];

/** Rows in this order; what is not known comes last either way.
 * @param {any[]} rows @param {Map<string, any>} placeOf @param {string} key @param {boolean} isUp */
export function sorted(rows, placeOf, key, isUp) {
  const { of } = /** @type {any} */ (COLUMNS.find((column) => column.key === key));
  const known = [];
  const unknown = [];
  for (const row of rows) {
    const value = of(row, placeOf.get(row.id));
    if (value == null) unknown.push(row);
    else known.push({ row, value });
  }
  const sign = isUp ? 1 : -1;
  known.sort((a, b) => (a.value === b.value ? a.row.number - b.row.number : a.value < b.value ? -sign : sign));
  unknown.sort((a, b) => b.number - a.number);
  return [...known.map((each) => each.row), ...unknown];
}

/** @param {{rows: any[], places: any[], recommended: string | null, study: any, chosen: string[],
 *   onChoose: (id: string) => void, onOpen: (id: string) => void}} props */
export function Leaderboard({ rows, places, recommended, study, chosen, onChoose, onOpen }) {
  const [query, setQuery] = useState("");
  const [rung, setRung] = useState("");
  const [outcome, setOutcome] = useState("");
  const [order, setOrder] = useState({ key: "rank", isUp: true });
  const [keys, setKeys] = useState(COLUMNS.filter((column) => column.usual).map((column) => column.key));
  const columns = COLUMNS.filter((column) => keys.includes(column.key));

  const placeOf = useMemo(() => new Map(places.map((place) => [place.trial_id, place])), [places]);
  const isByRank = Boolean(COLUMNS.find((column) => column.key === order.key)?.isRanked);
  const fitting = useMemo(() => {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length && !rung && !outcome) return rows;
    return rows.filter((row) => {
      if (rung && (rung === "compared" ? !placeOf.has(row.id) : rung !== (row.train_steps ? "train" : "probe"))) return false;
      if (outcome && outcome !== (row.outcome || row.state)) return false;
      return !words.length || words.every((word) => textOf(row).includes(word));
    });
  }, [rows, rung === "compared" && placeOf, query, rung, outcome]);
  const shown = useMemo(() => sorted(fitting, placeOf, order.key, order.isUp), [fitting, isByRank && placeOf, order]);
  const outcomes = useMemo(() => [...new Set(rows.map((row) => row.outcome || row.state))].sort(), [rows]);
  const unit = useMemo(() => unitOf(rows.find((row) => speedOf(row) != null) || {}), [rows]);
  const turn = (/** @type {any} */ column) =>
    setOrder((old) => ({ key: column.key, isUp: old.key === column.key ? !old.isUp : Boolean(column.up) }));
  const save = () => {
    const cells = shown.map((row) => columns.map((column) => column.of(row, placeOf.get(row.id)) ?? null));
    download(`study-${study.id}.csv`, csv([columns.map((column) => column.name), ...cells]), "text/csv");
  };

  if (!rows.length) return html`<p class="muted">No trial was planned yet.</p>`;
  return html`
    <div class="filters">
      <div class="field wide"><label for="trial-query">Filter</label>
        <input id="trial-query" type="search" value=${query} placeholder="nf4 dora r=16 …" onInput=${(/** @type {any} */ event) => setQuery(event.currentTarget.value)} /></div>
      <div class="field"><label for="trial-rung">Rung</label>
        <select id="trial-rung" onChange=${(/** @type {any} */ event) => setRung(event.currentTarget.value)}>
          <option value="">any</option><option value="probe">probed</option><option value="train">trained</option><option value="compared">compared</option>
        </select></div>
      <div class="field"><label for="trial-outcome">Outcome</label>
        <select id="trial-outcome" onChange=${(/** @type {any} */ event) => setOutcome(event.currentTarget.value)}>
          <option value="">any</option>${outcomes.map((each) => html`<option value=${each}>${each}</option>`)}
        </select></div>
      <button type="button" onClick=${save}>Download CSV</button>
    </div>
    <details><summary>Columns</summary>
      <div class="columns" role="group" aria-label="Columns">
        ${COLUMNS.map(
          (column) => html`<label><input type="checkbox" checked=${keys.includes(column.key)}
            onChange=${() => setKeys((old) => (old.includes(column.key) ? old.filter((key) => key !== column.key) : [...old, column.key]))} /> ${column.name}</label>`,
        )}
      </div>
    </details>
    <p class="muted" role="status">${count(shown.length, "trial")}${shown.length < rows.length ? ` of ${rows.length.toLocaleString("en")}` : ""}</p>
    <${Rows} ...${{ shown, placeOf, columns, order, turn, recommended, chosen, onChoose, onOpen, unit }} />
  `;
}

/** @param {any} props */
function Rows({ shown, placeOf, columns, order, turn, recommended, chosen, onChoose, onOpen, unit }) {
  const own = useRef(/** @type {any} */ (null));
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(520);
  useEffect(() => {
    const element = own.current;
    const look = () => setTop(element.scrollTop);
    const measure = new ResizeObserver(() => setHeight(element.clientHeight));
    element.addEventListener("scroll", look, { passive: true });
    measure.observe(element);
    return () => (element.removeEventListener("scroll", look), measure.disconnect());
  }, []);
  const from = Math.max(0, Math.min(Math.floor(top / ROW_PX) - AROUND, shown.length - 1));
  const to = Math.min(shown.length, Math.ceil((top + height) / ROW_PX) + AROUND);
  const space = (/** @type {number} */ rows) =>
    rows > 0 && html`<tr class="space" aria-hidden="true"><td colspan=${columns.length + 1} style=${{ height: `${rows * ROW_PX}px` }}></td></tr>`;
  return html`<div class="board" ref=${own} tabindex="0" role="region" aria-label="Trials">
    <table aria-rowcount=${shown.length + 1}>
      <thead><tr aria-rowindex="1">
        <th scope="col"><span class="hidden">chosen to be compared</span></th>
        ${columns.map((/** @type {any} */ column) => {
          const isOn = order.key === column.key;
          return html`<th scope="col" class=${column.number ? "n" : ""} aria-sort=${isOn ? (order.isUp ? "ascending" : "descending") : "none"}>
            <button type="button" onClick=${() => turn(column)}>${column.key === "speed" ? unit : column.name}<span aria-hidden="true">${isOn ? (order.isUp ? " ▲" : " ▼") : ""}</span></button>
          </th>`;
        })}
      </tr></thead>
      <tbody>
        ${space(from)}
        ${shown.slice(from, to).map(
          (/** @type {any} */ row, /** @type {number} */ index) => html`<tr key=${row.id} aria-rowindex=${from + index + 2} class=${row.id === recommended ? "winner" : ""}>
            <td><input type="checkbox" checked=${chosen.includes(row.id)} aria-label=${`Compare trial ${row.number}`} onChange=${() => onChoose(row.id)} /></td>
            ${columns.map((/** @type {any} */ column) => cell(column, row, placeOf.get(row.id), recommended, onOpen))}
          </tr>`,
        )}
        ${space(shown.length - to)}
      </tbody>
    </table>
  </div>`;
}

/** @param {any} column @param {any} row @param {any} place @param {string | null} recommended @param {(id: string) => void} onOpen */
function cell(column, row, place, recommended, onOpen) {
  const text = column.show ? column.show(row, place) : (column.of(row, place) ?? UNKNOWN);
  if (column.key === "number") {
    const mark = row.id === recommended ? html`<span aria-hidden="true">★ </span><span class="hidden">recommended, </span>` : "";
    return html`<th scope="row" class="n">${mark}<button type="button" class="link" onClick=${() => onOpen(row.id)}>#${text}</button></th>`;
  }
  const isLong = column.key === "settings" || column.key === "adapter" || column.key === "reason";
  return html`<td class=${column.number ? "n" : isLong ? "long" : ""} title=${isLong ? text : null}>${text}</td>`;
}
