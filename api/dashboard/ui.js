// Small parts that every page is made of.

import { html, useCallback, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Problem } from "./api.js";
import { exact, moment, sentence } from "./format.js";

/** Go to another page of this dashboard without loading it anew. @param {string} path */
export function go(path) {
  history.pushState(null, "", path);
  dispatchEvent(new PopStateEvent("popstate"));
}

/** What a request answers, or why it does not. @param {() => Promise<any>} load @param {any[]} inputs */
export function useAnswer(load, inputs) {
  const [answer, setAnswer] = useState(/** @type {any} */ ({ data: null, error: null, isLoading: true }));
  const turn = useRef(0);
  const again = useCallback(async () => {
    const mine = ++turn.current;
    try {
      const data = await load();
      if (mine === turn.current) setAnswer({ data, error: null, isLoading: false });
    } catch (error) {
      if (mine === turn.current) setAnswer((/** @type {any} */ old) => ({ ...old, error, isLoading: false }));
    }
  }, inputs);
  useEffect(() => {
    setAnswer({ data: null, error: null, isLoading: true });
    again();
    return () => void ++turn.current;
  }, [again]);
  return { ...answer, again };
}

/** A value once it rests. @template T @param {T} value @param {number} restMs
 * @param {number} [longestMs] after which it is taken all the same @returns {T} */
export function useSettled(value, restMs, longestMs = Infinity) {
  const [settled, setSettled] = useState(value);
  const since = useRef(0);
  useEffect(() => {
    const wait = Math.max(0, Math.min(restMs, since.current + longestMs - performance.now()));
    const timer = setTimeout(() => {
      since.current = performance.now();
      setSettled(value);
    }, wait);
    return () => clearTimeout(timer);
  }, [value]);
  return settled;
}

/** @param {{error: any, again?: () => void}} props */
export function Failure({ error, again }) {
  const step = error instanceof Problem ? error.nextStep : "";
  return html`<div class="note failure" role="alert">
    <strong>${sentence(error.message || String(error))}</strong>
    ${step && html`<p>${sentence(step)}</p>`} ${again && html`<button onClick=${again}>Try again</button>`}
  </div>`;
}

/** @param {{what: string}} props */
export function Loading({ what }) {
  return html`<p class="loading" role="status"><span class="spinner" aria-hidden="true"></span>Loading ${what} …</p>`;
}

/** @param {{title: string, children?: any}} props */
export function Empty({ title, children }) {
  return html`<div class="empty"><h2>${title}</h2>${children}</div>`;
}

/** A moment in the reader's zone. @param {{at: string | null}} props */
export function Moment({ at }) {
  return at ? html`<time datetime=${at} title=${exact(at)}>${moment(at)}</time>` : "–";
}

const SIGNS = { queued: "◌", running: "▶", succeeded: "✓", failed: "✕", cancelled: "■", ok: "✓", finished: "✓" };

/** A state in words, with a sign and a colour. @param {{state: string, text?: string}} props */
export function State({ state, text }) {
  const sign = /** @type {any} */ (SIGNS)[state] || "✕";
  return html`<span class="state ${state in SIGNS ? state : "failed"}"
    ><span aria-hidden="true">${sign}</span> ${text || state}</span
  >`;
}

/** A heading that takes the focus when its page is entered. @param {{children?: any}} props */
export function Heading({ children }) {
  const own = useRef(/** @type {any} */ (null));
  useEffect(() => own.current?.focus({ preventScroll: true }), []);
  return html`<h1 tabindex="-1" ref=${own}>${children}</h1>`;
}

/** A table in a region that scrolls; rows are arrays of cells.
 * Columns that can be sorted by have `onSort`, and say in `sort` how they are.
 * @param {{caption: string, columns: {name: string, number?: boolean, sort?: string, onSort?: () => void}[], rows: any[][],
 *   marked?: (index: number) => string}} props */
export function Table({ caption, columns, rows, marked }) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${caption}>
    <table>
      <thead>
        <tr>${columns.map(({ name, number, sort = "none", onSort }) => html`<th scope="col" class=${number ? "n" : ""} aria-sort=${onSort ? sort : null}>
          ${onSort ? html`<button type="button" class="head" onClick=${onSort}>${name}<span aria-hidden="true">${{ ascending: " ▲", descending: " ▼" }[sort]}</span></button>` : name}</th>`)}</tr>
      </thead>
      <tbody>
        ${rows.map(
          (row, index) =>
            html`<tr class=${marked ? marked(index) : ""}>
              ${row.map((cell, place) => {
                const kind = columns[place].number ? "n" : "";
                return place === 0
                  ? html`<th scope="row" class=${kind}>${cell}</th>`
                  : html`<td class=${kind}>${cell}</td>`;
              })}
            </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** @param {{legend: string, name: string, value: any, onInput: (value: string) => void, error?: string,
 *   hint?: string, options?: (string | [string, string])[], [other: string]: any}} props */
export function Field({ legend, name, value, onInput, error, hint, options, list, ...others }) {
  const described = [error && `${name}-error`, hint && `${name}-hint`].filter(Boolean).join(" ") || null;
  const shared = {
    id: name,
    name,
    value,
    "aria-invalid": error ? "true" : null,
    "aria-describedby": described,
    ...others,
  };
  const change = (/** @type {any} */ event) => onInput(event.currentTarget.value);
  return html`<div class="field">
    <label for=${name}>${legend}</label>
    ${options
      ? html`<select ...${shared} onChange=${change}>
          ${options.map((option) => {
            const [key, text] = Array.isArray(option) ? option : [option, option];
            return html`<option value=${key} selected=${key === value}>${text}</option>`;
          })}
        </select>`
      : html`<input ...${shared} list=${list ? `${name}-list` : null} onInput=${change} autocomplete="off" />`}
    ${list && html`<datalist id="${name}-list">${list.map((/** @type {string} */ each) => html`<option value=${each} />`)}</datalist>`}
    ${hint && html`<small id="${name}-hint">${hint}</small>`}
    ${error && html`<small id="${name}-error" class="error">${error}</small>`}
  </div>`;
}

/** Copies a text, and says that it did. @param {{text: string, what?: string}} props */
export function Copy({ text, what = "" }) {
  const [said, setSaid] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setSaid("Copied");
    } catch {
      setSaid("Not allowed by the browser");
    }
    setTimeout(() => setSaid(""), 2000);
  };
  return html`<button type="button" class="small" onClick=${copy} aria-label=${`Copy ${what}`}>
    <span role="status">${said || "Copy"}</span>
  </button>`;
}

/** Hand a text to the browser as a file. @param {string} name @param {string} text @param {string} [type] */
export function download(name, text, type = "text/plain") {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** A dialog of the browser's own: focus stays in it, Escape closes it.
 * @param {{title: string, onClose: () => void, children?: any}} props */
export function Dialog({ title, onClose, children }) {
  const own = useRef(/** @type {any} */ (null));
  useEffect(() => {
    own.current.showModal();
  }, []);
  return html`<dialog ref=${own} onClose=${onClose} aria-labelledby="dialog-title">
    <header>
      <h2 id="dialog-title">${title}</h2>
      <button type="button" class="small" onClick=${() => own.current.close()}>Close</button>
    </header>
    ${children}
  </dialog>`;
}
