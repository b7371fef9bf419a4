// Trials as the board tells them: rows by the names of their columns, and what is read off them.

/** A trial in figures, by the names of a trial's document; null where something is not known.
 * @typedef {Record<string, any>} Row */

/** @param {{columns: Record<string, any[]>}} board @returns {Row[]} */
export function rowsOf({ columns }) {
  const names = Object.keys(columns);
  const values = Object.values(columns);
  return columns.id.map((_, index) => {
    const row = /** @type {Row} */ ({});
    for (let place = 0; place < names.length; place += 1) row[names[place]] = values[place][index];
    return row;
  });
}

/** Of a row or a measurement. @param {any} figures */
export const speedOf = (figures) => figures.tokens_per_s ?? figures.samples_per_s ?? null;

/** @param {any} figures */
export const unitOf = (figures) =>
  figures.tokens_per_s == null && figures.samples_per_s != null ? "samples/s" : "tokens/s";

/** The peak that a limit is held against. @param {any} figures */
export const memoryOf = (figures) =>
  figures.peak_device_bytes ?? figures.peak_reserved_bytes ?? figures.peak_process_bytes ?? null;

/** A trial's candidate in words. @param {Row} row */
export const describe = (row) => `${row.adapter}, ${row.settings}, lr ${Number(row.learning_rate.toPrecision(3))}`;

/** @type {WeakMap<Row, string>} */
const texts = new WeakMap();

/** What a row is searched by, in small letters. @param {Row} row */
export function textOf(row) {
  let text = texts.get(row);
  if (text === undefined) {
    text = `#${row.number} ${describe(row)} ${row.reason || ""}`.toLowerCase();
    texts.set(row, text);
  }
  return text;
}
