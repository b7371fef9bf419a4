// The scorer's ranking (optimizer/scorer.py) of compared candidates by other weights. A test holds both against
// each other: a change there is a change here.

/** @typedef {{speed: number, memory: number, quality: number}} Weights */
/** @typedef {{trial_id: string, number: number, candidate_id: string, parts: Record<string, number>,
 *   as_good: boolean[], trainable_params: number | null, memory_bytes: number | null,
 *   judged_loss: number | null, rank: number, score: number}} Place */

/** 100·Σ(w·part)/Σw over the parts that there are; a plain mean where none of those has weight.
 * @param {Record<string, number>} parts @param {Weights} weights */
export function weightedScore(parts, weights) {
  const names = Object.keys(parts);
  if (!names.length) return 0;
  const weightOf = (/** @type {string} */ name) => /** @type {any} */ (weights)[name];
  let total = 0;
  for (const name of names) total += weightOf(name);
  let sum = 0;
  for (const name of names) sum += (total ? weightOf(name) : 1) * parts[name];
  return (100 * sum) / (total || names.length);
}

/** Best first, each with its new rank and score.
 * @param {Place[]} places @param {Weights} weights
 * @param {number} within which of the standings' `lets_pass` holds
 * @param {{lets_pass: (number | null)[], tie_points: number}} rules
 * @returns {(Place & {is_as_good: boolean, tied_with_best: boolean})[]} */
export function rerank(places, weights, within, rules) {
  const countsAlike = rules.lets_pass[within] !== null;
  const scored = places.map((place) => {
    const good = place.as_good[within];
    const parts = countsAlike && good && "quality" in place.parts ? { ...place.parts, quality: 1 } : place.parts;
    return { place, good, score: weightedScore(parts, weights), tied: false };
  });
  let best = 0;
  let anyGood = false;
  for (const each of scored) {
    if (each.good && (!anyGood || each.score > best)) [best, anyGood] = [each.score, true];
  }
  let ties = 0;
  for (const each of scored) {
    each.tied = each.good && best - each.score <= rules.tie_points;
    ties += Number(each.tied);
  }
  const byId = (/** @type {string} */ a, /** @type {string} */ b) => (a < b ? -1 : a > b ? 1 : 0);
  scored.sort(
    (a, b) =>
      Number(!a.good) - Number(!b.good) ||
      (b.tied ? best : b.score) - (a.tied ? best : a.score) ||
      difference(a.place.trainable_params ?? Infinity, b.place.trainable_params ?? Infinity) ||
      (a.place.memory_bytes ?? 0) - (b.place.memory_bytes ?? 0) ||
      difference(a.place.judged_loss ?? Infinity, b.place.judged_loss ?? Infinity) ||
      byId(a.place.candidate_id, b.place.candidate_id),
  );
  return scored.map((each, index) => ({
    ...each.place,
    rank: index + 1,
    score: each.score,
    is_as_good: each.good,
    tied_with_best: each.tied && ties > 1,
  }));
}

/** Which of these points nothing beats in both; `x` to be small, `y` large.
 * @param {{x: number, y: number}[]} points */
export function front(points) {
  const found = /** @type {{x: number, y: number}[]} */ ([]);
  for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (!found.length || point.y > found[found.length - 1].y) found.push(point);
  }
  return found;
}

const difference = (/** @type {number} */ a, /** @type {number} */ b) => (a === b ? 0 : a - b);
