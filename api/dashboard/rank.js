// The scorer's ranking (optimizer/scorer.py) of compared candidates by other weights. A test holds both against
// each other: a change there is a change here.

/** @typedef {{speed: number, memory: number, quality: number}} Weights */
/** What the standings tell of a compared candidate.
 * @typedef {{trial_id: string, number: number, candidate_id: string, parts: Record<string, number>,
 *   as_good: boolean[], trainable_params: number | null, memory_bytes: number | null,
 *   judged_loss: number | null, rank: number, score: number, [other: string]: any}} Standing */
/** Its place in a ranking.
 * @typedef {{trial_id: string, number: number, rank: number, score: number, is_as_good: boolean,
 *   tied_with_best: boolean, standing: any}} Place */

/** The places that the server has told, in their order. @param {any[]} ranking @returns {Place[]} */
export const asTold = (ranking) =>
  ranking.map((standing) => ({
    trial_id: standing.trial_id,
    number: standing.number,
    rank: standing.rank,
    score: standing.score,
    is_as_good: standing.is_as_good,
    tied_with_best: standing.tied_with_best,
    standing,
  }));

/** What every ranking of these standings needs, worked out once: figures as columns, and the order of ties.
 * @param {{places: Standing[], lets_pass: (number | null)[], tie_points: number}} standings */
export function prepared({ places, lets_pass: letsPass, tie_points: tiePoints }) {
  const names = Object.keys(places[0]?.parts ?? {});
  const parts = names.map((name) => Float64Array.from(places, (place) => place.parts[name]));
  const good = letsPass.map((_, within) => Uint8Array.from(places, (place) => Number(place.as_good[within])));
  const larger = (/** @type {number} */ a, /** @type {number} */ b) => (a === b ? 0 : a - b);
  const known = (/** @type {number | null} */ value) => value ?? Infinity;
  const inOrder = Array.from(places, (_, index) => index).sort((one, other) => {
    const [a, b] = [places[one], places[other]];
    return (
      larger(known(a.trainable_params), known(b.trainable_params)) ||
      (a.memory_bytes ?? 0) - (b.memory_bytes ?? 0) ||
      larger(known(a.judged_loss), known(b.judged_loss)) ||
      (a.candidate_id < b.candidate_id ? -1 : 1)
    );
  });
  const tieOrder = new Uint32Array(places.length);
  inOrder.forEach((index, turn) => (tieOrder[index] = turn));
  return { places, names, parts, good, letsPass, tiePoints, tieOrder };
}

/** Best first, each with its new rank and score. A score is 100·Σ(w·part)/Σw over the parts that there are; a plain
 * mean where none of those has weight.
 * @param {ReturnType<typeof prepared>} standings @param {Weights} weights
 * @param {number} within which of the standings' `lets_pass` holds
 * @returns {Place[]} */
export function rerank({ places, names, parts, good: allGood, letsPass, tiePoints, tieOrder }, weights, within) {
  const good = allGood[within];
  const total = names.reduce((sum, name) => sum + weights[/** @type {"speed"} */ (name)], 0);
  const scores = new Float64Array(places.length);
  names.forEach((name, column) => {
    const weight = total ? weights[/** @type {"speed"} */ (name)] : 1;
    const countsAlike = name === "quality" && letsPass[within] !== null;
    const own = parts[column];
    for (let index = 0; index < own.length; index += 1) {
      scores[index] += weight * (countsAlike && good[index] ? 1 : own[index]);
    }
  });
  let best = -Infinity;
  for (let index = 0; index < scores.length; index += 1) {
    scores[index] = (100 * scores[index]) / (total || names.length || 1);
    if (good[index] && scores[index] > best) best = scores[index];
  }
  let ties = 0;
  const heights = Float64Array.from(scores, (score, index) => {
    if (!good[index]) return score;
    const isTied = best - score <= tiePoints;
    ties += Number(isTied);
    return isTied ? Infinity : score;
  });
  const order = Array.from(scores, (_, index) => index).sort(
    (a, b) =>
      good[b] - good[a] ||
      (heights[a] === heights[b] ? tieOrder[a] - tieOrder[b] : heights[b] - heights[a]),
  );
  return order.map((index, turn) => ({
    trial_id: places[index].trial_id,
    number: places[index].number,
    rank: turn + 1,
    score: scores[index],
    is_as_good: Boolean(good[index]),
    tied_with_best: heights[index] === Infinity && ties > 1,
    standing: places[index],
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
