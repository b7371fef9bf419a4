// Weights by hand: the compared candidates are ranked anew at once, without any trial.

import { html, useEffect, useMemo, useState } from "./vendor/htm-preact.js";
import { holdPlots } from "./charts.js";
import { asTold, prepared, rerank } from "./rank.js";

const PARTS = /** @type {const} */ (["speed", "memory", "quality"]);
const OWN = "own weights";

/** The ranking that is shown: the study's, or one by other weights. Until the standings are there, the one that was
 * stored with the recommendation. @param {any} standings @param {any} best */
export function useRanking(standings, best) {
  const [choice, setChoice] = useState(/** @type {any} */ (null));
  const asked = standings && { name: "", weights: standings.weights, within: standings.asked };
  const now = choice || asked;
  const ready = useMemo(() => standings?.scoring === "comparable" && prepared(standings), [standings]);
  const told = useMemo(() => asTold(standings?.places ?? best?.ranking ?? []), [standings, best]);
  const places = useMemo(
    () => (choice && ready ? rerank(ready, choice.weights, choice.within) : told),
    [ready, told, choice],
  );
  return { places, now, isOwn: Boolean(choice), setChoice };
}

/** @param {{standings: any, ranking: any, recommended: string | null}} props */
export function Sliders({ standings, ranking, recommended }) {
  const { places, now, isOwn, setChoice } = ranking;
  const [order, setOrder] = useState("");
  useEffect(() => setOrder(places[0] ? `First now: trial ${places[0].number}.` : ""), [places[0]?.number]);
  if (!standings || !places.length) return null;
  if (standings.scoring !== "comparable") {
    return html`<p class="muted">This study was ranked by the first design's formula, whose weights are fixed.</p>`;
  }
  const measured = places[0].standing.parts;
  const set = (/** @type {string} */ part, /** @type {number} */ value) => {
    holdPlots();
    setChoice({ name: OWN, weights: { ...now.weights, [part]: value }, within: 0 });
  };
  const choose = (/** @type {string} */ name) => {
    const objective = standings.objectives.find((/** @type {any} */ each) => each.name === name);
    setChoice(objective ? { name, weights: objective.weights, within: objective.lets_pass } : null);
  };
  return html`<details open><summary>What counts how much</summary>
    <div class="sliders">
      <div class="field"><label for="objective">As for</label>
        <select id="objective" onChange=${(/** @type {any} */ event) => choose(event.currentTarget.value)}>
          <option value="" selected=${!isOwn}>this study</option>
          ${standings.objectives.map((/** @type {any} */ each) => html`<option value=${each.name} selected=${now.name === each.name}>${each.name}</option>`)}
          ${now.name === OWN && html`<option value=${OWN} selected>${OWN}</option>`}
        </select></div>
      ${PARTS.map((part) => {
        const value = now.weights[part];
        const isThere = part in measured;
        return html`<div class="field"><label for="weight-${part}">${part} <output for="weight-${part}">${isThere ? value.toFixed(2) : "not compared"}</output></label>
          <input id="weight-${part}" type="range" min="0" max="1" step="0.01" value=${value} disabled=${!isThere}
            onInput=${(/** @type {any} */ event) => set(part, Number(event.currentTarget.value))} /></div>`;
      })}
      <button type="button" disabled=${!isOwn} onClick=${() => setChoice(null)}>As the study has it</button>
    </div>
    <p class="muted" role="status">${order}${isOwn && recommended && places[0].trial_id !== recommended ? " The study recommends another." : ""}</p>
  </details>`;
}
