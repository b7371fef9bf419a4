// Numbers, sizes, durations and times as people read them; unknown is a dash, never 0.

export const UNKNOWN = "–";
const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** @param {number | null | undefined} value */
export const whole = (value) => (value == null ? UNKNOWN : GROUPED.format(value));

/** Three digits and a binary unit: `1.24 GiB`. @param {number | null | undefined} size */
export function bytes(size) {
  if (size == null) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (Math.abs(size) >= 999.5 && power < 4) {
    size /= 1024;
    power += 1;
  }
  return `${Number(size.toPrecision(3))} ${units[power]}`;
}

/** The two leading units: `4.2 s`, `2 m 03 s`, `1 h 05 m`. @param {number | null | undefined} value */
export function seconds(value) {
  if (value == null) return UNKNOWN;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  const full = Math.round(value);
  if (full < 60) return `${full} s`;
  const two = (/** @type {number} */ part) => String(part).padStart(2, "0");
  if (full < 3600) return `${Math.floor(full / 60)} m ${two(full % 60)} s`;
  const minutes = Math.round(value / 60);
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} m`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

/** `0.412 ± 0.011`, the second the standard error. @param {number | null | undefined} value
 * @param {number | null} [error] */
export function loss(value, error) {
  if (value == null) return UNKNOWN;
  const form = (/** @type {number} */ each) =>
    Math.abs(value) >= 0.1 ? each.toFixed(3) : String(Number(each.toPrecision(3)));
  return form(value) + (error == null ? "" : ` ± ${form(error)}`);
}

/** @param {number | null | undefined} value @param {string} [unit] */
export function speed(value, unit = "") {
  if (value == null) return UNKNOWN;
  const text = value < 10 ? value.toPrecision(2) : whole(value);
  return unit ? `${text} ${unit}` : text;
}

/** @param {number | null | undefined} share */
export const percent = (share) => (share == null ? UNKNOWN : `${Math.round(share * 100)} %`);

/** A count with its noun: `1 trial`, `5,000 trials`. @param {number} number @param {string} noun */
export const count = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;

const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const EXACT = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

/** In the reader's time zone. @param {string | null | undefined} iso */
export const moment = (iso) => (iso ? MOMENT.format(new Date(iso)) : UNKNOWN);
/** The same with seconds and the zone. @param {string} iso */
export const exact = (iso) => EXACT.format(new Date(iso));

/** What people call a file or model by: the last part of its path. @param {string} path */
export const short = (path) => path.replace(/\/+$/, "").split("/").pop() || path;

/** @param {string} text */
export const sentence = (text) => text.slice(0, 1).toUpperCase() + text.slice(1).replace(/\.+$/, "") + ".";

/** A table as comma-separated text. Cells that a spreadsheet would take for a formula are quoted away.
 * @param {(string | number | null | undefined)[][]} rows */
export function csv(rows) {
  const cell = (/** @type {any} */ value) => {
    if (value == null) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
