// The plots of a study: which figures, and what they say in words. How they are drawn is ECharts' affair.

import { html, useEffect, useMemo, useState } from "./vendor/htm-preact.js";
import { ask, studyPath } from "./api.js";
import { axis, Plot, ROOMY, shade, tip, tooltip } from "./charts.js";
import { bytes, loss, percent, speed, whole } from "./format.js";
import { describe, memoryOf, speedOf, unitOf } from "./board.js";
import { front } from "./rank.js";

const NORMAL_95 = 1.96;
const MOST_CURVES = 6;
const MOST_BARS = 8;
const MOST_SINGLE = 500;
const HOLLOW = "measured only";
const SAMPLES = 1200;
const SAMPLE_MS = 3000;
const STAR = "path://M0,-10 L2.9,-3.1 L10,-3.1 L4.3,1.5 L6.2,9 L0,4.6 L-6.2,9 L-4.3,1.5 L-10,-3.1 L-2.9,-3.1 Z";

/** @param {number} largest */
const scaleOf = (largest) => (largest >= 1.5 * 2 ** 30 ? { unit: "GiB", by: 2 ** 30 } : { unit: "MiB", by: 2 ** 20 });
/** @param {any} row */
const nameOf = (row) => `#${row.number} ${row.adapter}`;

/** @typedef {{rows: any[], places: any[], recommended: string | null, standings: any, onOpen: (id: string) => void}} Shared */

const VIEWS = /** @type {Record<string, [string, string, string]>} */ ({
  "speed against memory": ["memory", "speed", "loss"],
  "held-out loss against memory": ["memory", "loss", "speed"],
  "held-out loss against speed": ["speed", "loss", "memory"],
});

/** @param {Shared} props */
export function ParetoFigure({ rows, places, recommended, onOpen }) {
  const [view, setView] = useState("speed against memory");
  const points = useMemo(() => {
    const placeOf = new Map(places.map((place) => [place.trial_id, place]));
    const largest = Math.max(0, ...rows.map((row) => memoryOf(row) || 0));
    return rows
      .filter((row) => row.outcome === "ok" && memoryOf(row) && speedOf(row))
      .map((row) => {
        const place = placeOf.get(row.id);
        return {
          row, place,
          memory: (place?.standing.memory_bytes ?? memoryOf(row)) / scaleOf(largest).by,
          speed: place?.standing.speed ?? speedOf(row),
          loss: place?.standing.heldout_loss ?? row.heldout_loss,
          unit: scaleOf(largest).unit,
        };
      });
  }, [rows, places]);
  const [x, y, third] = VIEWS[view];
  const drawn = useMemo(
    () => points.filter((point) => point[/** @type {"loss"} */ (x)] != null && point[/** @type {"loss"} */ (y)] != null),
    [points, view],
  );
  if (!points.length) return html`<p class="muted">Nothing was measured yet.</p>`;
  const unit = unitOf(points[0].row);
  const names = { memory: `peak memory, ${points[0].unit}`, speed: unit, loss: "held-out loss" };
  const texts = { memory: (/** @type {any} */ p) => bytes(p.place?.standing.memory_bytes ?? memoryOf(p.row)), speed: (/** @type {any} */ p) => speed(p.speed, unit), loss: (/** @type {any} */ p) => loss(p.loss, p.row.heldout_loss_se) };
  const best = front(
    drawn.map((point) => ({
      x: x === "speed" ? -point.speed : /** @type {any} */ (point)[x],
      y: y === "loss" ? -point.loss : /** @type {any} */ (point)[y],
    })),
  ).map((point) => [x === "speed" ? -point.x : point.x, y === "loss" ? -point.y : point.y]);
  const known = drawn.map((point) => /** @type {any} */ (point)[third]).filter((value) => value != null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const isBetterLow = third !== "speed";
  const colourOf = (/** @type {number} */ value) => {
    const share = high > low ? (value - low) / (high - low) : 1;
    return shade(isBetterLow ? 1 - share : share);
  };
  const lines = (/** @type {any} */ point) => [
    `${point.row.id === recommended ? "Recommended: " : ""}#${point.row.number} ${describe(point.row)}`,
    texts.speed(point), `${texts.memory(point)} at its peak`,
    point.loss == null ? "not trained" : `held-out loss ${texts.loss(point)}`,
    point.place ? `rank ${point.place.rank}, score ${point.place.score.toFixed(1)}` : "not compared",
  ];
  const hollow = drawn.filter((point) => /** @type {any} */ (point)[third] == null && point.row.id !== recommended);
  /** What an event on the plot is about: thousands of hollow points are bare numbers there. */
  const pointOf = (/** @type {any} */ { seriesName, dataIndex, data }) => (seriesName === HOLLOW ? hollow[dataIndex] : data?.point);
  const option = (/** @type {Record<string, string>} */ colour) => {
    const place = (/** @type {any} */ point) => [point[x], point[y]];
    const data = (/** @type {any[]} */ points, /** @type {(point: any) => any} */ styleOf) =>
      points.map((point) => ({ value: place(point), point, itemStyle: styleOf(point) }));
    const coloured = drawn.filter((point) => /** @type {any} */ (point)[third] != null && point.row.id !== recommended);
    const star = drawn.filter((point) => point.row.id === recommended);
    return {
      grid: { left: 64, right: 16, top: 16, bottom: 52 },
      tooltip: tooltip(colour, (params) => (pointOf(params) ? tip(lines(pointOf(params))) : "")),
      xAxis: axis(colour, /** @type {any} */ (names)[x], ROOMY),
      yAxis: axis(colour, /** @type {any} */ (names)[y], { ...ROOMY, nameGap: 46 }),
      series: [
        { name: "front", type: "line", data: best, showSymbol: false, silent: true, step: false, lineStyle: { color: colour.muted, type: "dashed", width: 1.5 }, z: 2 },
        { name: HOLLOW, type: "scatter", large: true, largeThreshold: MOST_SINGLE, data: hollow.map(place), symbolSize: 6, itemStyle: { color: "transparent", borderColor: colour.edge, borderWidth: 1 }, z: 1 },
        { name: "compared", type: "scatter", data: data(coloured, (point) => ({ color: colourOf(point[third]) })), symbolSize: 11, itemStyle: { borderColor: colour.edge, borderWidth: 1 }, z: 3 },
        { name: "recommended", type: "scatter", data: data(star, () => ({ color: colour.accent, borderColor: colour.bg, borderWidth: 1 })), symbol: STAR, symbolSize: 24, z: 4, label: { show: true, formatter: "recommended", position: "top", color: colour.ink, fontWeight: "bold", textBorderColor: colour.bg, textBorderWidth: 3 } },
      ],
    };
  };
  const colourNames = { loss: "held-out loss", speed: unit, memory: "peak memory" };
  const ends = { loss: (/** @type {number} */ v) => loss(v), speed: (/** @type {number} */ v) => speed(v), memory: (/** @type {number} */ v) => `${v.toFixed(1)} ${points[0].unit}` };
  const caption = html`${x === "memory" && y === "speed" ? "Up and left is better." : y === "loss" && x === "memory" ? "Down and left is better." : "Down and right is better."}
    ${" "}The dashed line joins what nothing beats in both; ★ is recommended; hollow: ${third === "loss" ? "measured, not trained" : "not known"}. Axes do not begin at zero.`;
  return html`<${Plot} title=${`${drawn.length} configurations, ${view}`} caption=${caption} option=${option} inputs=${[drawn, view, recommended]}
    onPick=${(/** @type {any} */ event) => pointOf(event) && onOpen(pointOf(event).row.id)}
    columns=${[{ name: "configuration" }, { name: unit, number: true }, { name: "memory", number: true }, { name: "held-out loss", number: true }]}
    table=${() => tabled(drawn).map((point) => [nameOf(point.row) + (point.row.id === recommended ? " (recommended)" : ""), speed(point.speed), texts.memory(point), texts.loss(point)])}>
    <div class="filters">
      <div class="field"><label for="view">Show</label>
        <select id="view" onChange=${(/** @type {any} */ event) => setView(event.currentTarget.value)}>
          ${Object.keys(VIEWS).map((each) => html`<option value=${each} selected=${each === view}>${each}</option>`)}
        </select></div>
      ${known.length > 0 && html`<ul class="key" aria-label=${`Colours: ${colourNames[/** @type {"loss"} */ (third)]}`}>
        ${[isBetterLow ? low : high, (low + high) / 2, isBetterLow ? high : low].map((value) => html`<li><i style=${{ background: colourOf(value), border: "1px solid var(--edge)" }}></i>${ends[/** @type {"loss"} */ (third)](value)}</li>`)}
        <li class="muted">${colourNames[/** @type {"loss"} */ (third)]}</li></ul>`}
    </div>
  <//>`;
}

/** A table of thousands helps nobody: compared ones first. @param {any[]} points */
const tabled = (points) => [...points].sort((a, b) => (a.place?.rank ?? Infinity) - (b.place?.rank ?? Infinity) || a.row.number - b.row.number).slice(0, 200);

/** The rows that are shown where only some can be: the best ranked, else the newest. @param {any[]} rows @param {any[]} places @param {number} most @param {(row: any) => boolean} fits */
function foremost(rows, places, most, fits) {
  const byId = new Map(rows.map((row) => [row.id, row]));
  const ranked = places.map((place) => byId.get(place.trial_id)).filter((row) => row && fits(row));
  const others = ranked.length ? [] : rows.filter(fits).sort((a, b) => b.number - a.number);
  return [...ranked, ...others].slice(0, most);
}

const LAYERS = /** @type {[string, string][]} */ ([
  ["allocated_bytes", "allocated by tensors"],
  ["reserved_bytes", "reserved by the allocator"],
  ["device_bytes", "CUDA's own"],
]);
const HOST_LAYERS = /** @type {[string, string][]} */ ([
  ["tensor_bytes", "held by tensors"],
  ["process_bytes", "the rest of the process"],
]);

/** What each layer adds to those below it. @param {any} row @param {"peak" | "told"} kind @param {[string, string][]} layers */
function stacked(row, kind, layers) {
  let below = 0;
  return layers.map(([name]) => {
    const own = row[`${kind}_${name}`];
    if (own == null) return null;
    const more = Math.max(0, own - below);
    below = Math.max(below, own);
    return more;
  });
}

/** @param {Shared} props */
export function MemoryFigure({ rows, places, recommended, standings, onOpen }) {
  const drawn = useMemo(() => {
    const trials = foremost(rows, places, MOST_BARS, (row) => row.outcome === "ok" && memoryOf(row));
    // A training's own peak stands beside what was told of its shape, wherever that was measured.
    return trials.reverse();
  }, [rows, places]);
  if (!drawn.length) return html`<p class="muted">Nothing was measured yet.</p>`;
  const layers = drawn.some((row) => row.peak_device_bytes != null || row.peak_reserved_bytes != null) ? LAYERS : HOST_LAYERS;
  const limit = standings?.memory_limit_bytes ?? null;
  const deviceBytes = standings?.device_bytes ?? null;
  const { unit, by } = scaleOf(Math.max(...drawn.map((row) => memoryOf(row))));
  const told = drawn.map((row) => stacked(row, "told", layers));
  const measured = drawn.map((row) => stacked(row, "peak", layers));
  const total = (/** @type {(number | null)[]} */ parts) => (parts.some((part) => part != null) ? parts.reduce((sum, part) => /** @type {number} */ (sum) + (part ?? 0), 0) : null);
  const option = (/** @type {Record<string, string>} */ colour) => {
    const fills = [colour.s1, colour.s2, colour.s3];
    const limits = [
      limit && { xAxis: limit / by, name: "limit", label: { position: "end" }, lineStyle: { color: colour.bad, type: "solid", width: 2 } },
      deviceBytes && deviceBytes !== limit && (limit == null || deviceBytes < 4 * (limit || deviceBytes)) && layers === LAYERS && { xAxis: deviceBytes / by, name: "device", label: { position: "insideEndTop" }, lineStyle: { color: colour.muted, type: "dashed", width: 2 } },
    ].filter(Boolean);
    const most = Math.max(...drawn.map((row) => memoryOf(row)), ...limits.map((each) => /** @type {any} */ (each).xAxis * by)) / by;
    const series = ["estimated", "measured"].flatMap((stack, isMeasured) =>
      layers.map(([, name], layer) => ({
        name: `${stack}: ${name}`,
        type: "bar",
        stack,
        barGap: "8%",
        barCategoryGap: "32%",
        data: (isMeasured ? measured : told).map((parts, index) => ({ value: parts[layer] == null ? "-" : /** @type {number} */ (parts[layer]) / by, row: drawn[index], stack })),
        itemStyle: { color: fills[layer], opacity: isMeasured ? 1 : 0.5, borderColor: colour.bg, borderWidth: 1, decal: isMeasured ? undefined : { symbol: "rect", dashArrayX: [1, 0], dashArrayY: [2, 4], rotation: -Math.PI / 4, color: colour.bg } },
        markLine: isMeasured && layer === layers.length - 1 && limits.length ? { symbol: "none", silent: true, data: limits, label: { formatter: "{b}", color: colour.ink } } : undefined,
      })),
    );
    return {
      aria: { enabled: false, decal: { show: false } },
      grid: { left: 8, right: 24, top: 22, bottom: 46, containLabel: true },
      tooltip: tooltip(colour, ({ data }) => (data?.row ? tip(memoryLines(data.row, layers)) : "")),
      xAxis: axis(colour, `memory, ${unit}`, { scale: false, min: 0, max: Math.ceil(most * 1.05) }),
      yAxis: { type: "category", data: drawn.map((row) => `#${row.number}${row.id === recommended ? " ★" : ""}`), axisLabel: { color: colour.ink }, axisLine: { lineStyle: { color: colour.edge } }, axisTick: { show: false } },
      series,
    };
  };
  return html`<${Plot} title="Memory of the foremost trials, estimated and measured" option=${option} inputs=${[drawn, limit, deviceBytes, recommended]}
    onPick=${(/** @type {any} */ { data }) => data?.row && onOpen(data.row.id)}
    caption=${html`Of each trial the upper, striped bar was told before, the lower one measured.${limit ? ` The line is the limit of ${bytes(limit)}.` : ""}${layers === HOST_LAYERS ? " On a processor, what the process took of the host's memory; only tensors can be told before." : ""}`}
    columns=${[{ name: "trial" }, { name: "estimated", number: true }, ...layers.map(([, name]) => ({ name: `measured: ${name}`, number: true })), { name: "measured", number: true }]}
    table=${() => [...drawn].reverse().map((row) => [nameOf(row), bytes(total(stacked(row, "told", layers))), ...stacked(row, "peak", layers).map((part) => bytes(part)), bytes(memoryOf(row))])}>
    <ul class="key">${layers.map(([, name], layer) => html`<li><i class="c${layer + 1}"></i>${name}</li>`)}</ul>
  <//>`;
}

/** @param {any} row @param {[string, string][]} layers */
const memoryLines = (row, layers) => [
  nameOf(row),
  ...layers.map(([name, text]) => `${text}, in all: ${bytes(row[`peak_${name}`])}, estimated ${bytes(row[`told_${name}`])}`),
];

/** @param {Shared & {id: string}} props */
export function LossFigure({ rows, places, recommended, onOpen, id }) {
  const [what, setWhat] = useState("held-out");
  const trained = useMemo(() => foremost(rows, places, MOST_CURVES, (row) => row.train_steps > 0 && row.outcome === "ok"), [rows, places]);
  const curves = useMemo(
    () => trained.map((row) => ({
      row,
      points: rows
        .filter((other) => other.candidate_key === row.candidate_key && other.heldout_loss != null)
        .map((other) => ({ step: other.train_steps, loss: other.heldout_loss, half: other.heldout_loss_se == null ? null : NORMAL_95 * other.heldout_loss_se }))
        .sort((a, b) => a.step - b.step),
    })),
    [trained, rows],
  );
  const training = useTrainingLosses(id, what === "training" ? trained : NONE);
  if (!trained.length) return html`<p class="muted">Nothing was trained yet: losses of held-out rows tell what was learnt.</p>`;
  const isTraining = what === "training";
  const option = (/** @type {Record<string, string>} */ colour) => ({
    grid: { left: 60, right: 16, top: 16, bottom: 52 },
    tooltip: tooltip(colour, ({ data }) => (data?.row ? tip([nameOf(data.row), ...data.lines]) : "")),
    xAxis: axis(colour, "optimizer step", { scale: !isTraining, minInterval: 1 }),
    yAxis: axis(colour, isTraining ? "training loss" : "held-out loss", { nameGap: 44 }),
    series: isTraining ? trainingSeries(training, colour) : heldoutSeries(curves, colour, recommended),
  });
  return html`<${Plot} title=${isTraining ? "Training loss by step" : "Held-out loss by steps trained"} option=${option} inputs=${[curves, training, what, recommended]}
    onPick=${(/** @type {any} */ { data }) => data?.row && onOpen(data.row.id)}
    caption=${isTraining ? "Smoothed over a twentieth of the steps; bands are 95 % intervals of that mean. Training losses score nothing: held-out rows do." : "Lower is better. Lines up and down are 95 % intervals over the rows that are held out. All were measured on the same rows, so differences are known better than these overlap."}
    columns=${[{ name: "candidate" }, { name: "steps", number: true }, { name: "held-out loss", number: true }, { name: "95 % interval", number: true }]}
    table=${() => curves.flatMap(({ row, points }) => points.map((point) => [nameOf(row), whole(point.step), loss(point.loss), point.half == null ? "–" : `${loss(point.loss - point.half)} … ${loss(point.loss + point.half)}`]))}>
    <div class="filters"><div class="field"><label for="losses-of">Show</label>
      <select id="losses-of" onChange=${(/** @type {any} */ event) => setWhat(event.currentTarget.value)}>
        <option value="held-out" selected=${!isTraining}>held-out loss</option><option value="training" selected=${isTraining}>training loss</option>
      </select></div></div>
    <ul class="key">${trained.map((row, index) => html`<li><i class="c${(index % 6) + 1}"></i>${nameOf(row)}${row.id === recommended ? " ★" : ""}</li>`)}</ul>
  <//>`;
}

/** @type {any[]} */
const NONE = [];
const SYMBOLS = ["circle", "rect", "triangle", "diamond", "roundRect", "pin"];

/** @param {any[]} curves @param {Record<string, string>} colour @param {string | null} recommended */
function heldoutSeries(curves, colour, recommended) {
  return curves.flatMap(({ row, points }, index) => {
    const own = colour[`s${(index % 6) + 1}`];
    const lines = (/** @type {any} */ point) => [`after ${whole(point.step)} steps: ${loss(point.loss)}`, point.half == null ? "no interval" : `95 %: ${loss(point.loss - point.half)} … ${loss(point.loss + point.half)}`];
    const whiskers = points.filter((/** @type {any} */ point) => point.half != null).flatMap((/** @type {any} */ point) => [[point.step, point.loss - point.half], [point.step, point.loss + point.half], ["-", "-"]]);
    return [
      { type: "line", data: whiskers, showSymbol: false, silent: true, connectNulls: false, lineStyle: { color: own, width: 3, opacity: 0.45 }, z: 1 },
      { type: "line", data: points.map((/** @type {any} */ point) => ({ value: [point.step, point.loss], row, lines: lines(point) })), symbol: SYMBOLS[index % 6], symbolSize: 9, itemStyle: { color: own }, lineStyle: { color: own, width: row.id === recommended ? 3 : 1.8 }, z: 2 },
    ];
  });
}

/** @param {any[]} training @param {Record<string, string>} colour */
function trainingSeries(training, colour) {
  return training.flatMap(({ row, points }, index) => {
    const own = colour[`s${(index % 6) + 1}`];
    const band = (/** @type {string} */ name) => `band ${row.id} ${name}`;
    return [
      { type: "line", stack: band(""), data: points.map((/** @type {any} */ p) => [p.step, p.mean - p.half]), showSymbol: false, silent: true, lineStyle: { opacity: 0 }, stackStrategy: "all" },
      { type: "line", stack: band(""), data: points.map((/** @type {any} */ p) => [p.step, 2 * p.half]), showSymbol: false, silent: true, lineStyle: { opacity: 0 }, areaStyle: { color: own, opacity: 0.15 }, stackStrategy: "all" },
      { type: "line", data: points.map((/** @type {any} */ p) => ({ value: [p.step, p.mean], row, lines: [`step ${p.step}: ${loss(p.mean)}`] })), showSymbol: false, lineStyle: { color: own, width: 2 }, itemStyle: { color: own } },
    ];
  });
}

/** Training losses are long, so they are asked for when they are looked at. @param {string} id @param {any[]} rows */
function useTrainingLosses(id, rows) {
  const [found, setFound] = useState(/** @type {any[]} */ ([]));
  useEffect(() => {
    let isGone = false;
    Promise.all(rows.map((row) => ask(`${studyPath(id)}/trials/${row.id}`))).then(
      (trials) => isGone || setFound(trials.map((trial, index) => ({ row: rows[index], points: smoothed(trial.measurement?.train_losses || []) }))),
      () => {},
    );
    return () => void (isGone = true);
  }, [rows]);
  return found;
}

/** Means over a twentieth of the steps, each with half its 95 % interval. @param {(number | null)[]} losses */
export function smoothed(losses) {
  const width = Math.max(1, Math.round(losses.length / 20));
  return losses.flatMap((_, step) => {
    const near = /** @type {number[]} */ (losses.slice(Math.max(0, step - width), step + width + 1).filter((value) => value != null));
    if (!near.length) return [];
    const mean = near.reduce((sum, value) => sum + value, 0) / near.length;
    const spread = Math.sqrt(near.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, near.length - 1));
    return [{ step: step + 1, mean, half: (NORMAL_95 * spread) / Math.sqrt(near.length) }];
  });
}

/** Memory and use of the GPUs: what the server remembers, and what happens while this page is open. */
export function Timeline() {
  const [samples, setSamples] = useState(/** @type {any[]} */ ([]));
  useEffect(() => {
    let [timer, isGone] = [0, false];
    const look = async () => {
      try {
        const { gpus } = await ask("/v1/hardware");
        if (isGone || !gpus.length) return;
        setSamples((old) => [...old, { at: Date.now(), gpus }].slice(-SAMPLES));
      } catch {
        /* the next look tells */
      }
      if (!isGone) timer = setTimeout(look, SAMPLE_MS);
    };
    ask("/v1/hardware/history").then(
      (found) => {
        setSamples(found.samples.map((/** @type {any} */ sample) => ({ at: Date.parse(sample.at), gpus: sample.gpus })));
        look();
      },
      look,
    );
    return () => {
      isGone = true;
      clearTimeout(timer);
    };
  }, []);
  const gpus = samples[samples.length - 1]?.gpus || [];
  if (!gpus.length) return null;
  const option = (/** @type {Record<string, string>} */ colour) => ({
    grid: { left: 56, right: 16, top: 28, bottom: 30 },
    legend: { textStyle: { color: colour.ink }, top: 0 },
    tooltip: { ...tooltip(colour, (params) => tip([params.seriesName, percent(params.value[1] / 100)])) },
    xAxis: { ...axis(colour, ""), type: "time" },
    yAxis: axis(colour, "%", { min: 0, max: 100 }),
    series: gpus.flatMap((/** @type {any} */ gpu, /** @type {number} */ index) => {
      const of = (/** @type {(gpu: any) => number | null} */ value) => samples.map(({ at, gpus: now }) => { const own = now.find((/** @type {any} */ each) => each.uuid === gpu.uuid); return [at, own ? (value(own) ?? "-") : "-"]; });
      return [
        { name: `GPU ${gpu.index} memory`, type: "line", showSymbol: false, lineStyle: { color: colour[`s${((2 * index) % 6) + 1}`] }, itemStyle: { color: colour[`s${((2 * index) % 6) + 1}`] }, data: of((own) => (own.used_bytes == null ? null : (100 * own.used_bytes) / own.total_bytes)) },
        { name: `GPU ${gpu.index} in use`, type: "line", showSymbol: false, lineStyle: { type: "dashed", color: colour[`s${((2 * index + 1) % 6) + 1}`] }, itemStyle: { color: colour[`s${((2 * index + 1) % 6) + 1}`] }, data: of((own) => own.utilisation_percent) },
      ];
    }),
  });
  const last = samples[samples.length - 1].gpus;
  return html`<section class="card" aria-labelledby="timeline"><h2 id="timeline">GPUs in the last hour</h2>
    <${Plot} low title="Memory and use of the GPUs" option=${option} inputs=${[samples]} caption="Share of the memory that is taken, and of the last moments in which something ran; looked at every few seconds while there are studies to run, or a page like this is open."
      columns=${[{ name: "GPU" }, { name: "memory", number: true }, { name: "in use", number: true }]}
      table=${() => last.map((/** @type {any} */ gpu) => [`${gpu.index}${gpu.name ? `: ${gpu.name}` : ""}`, bytes(gpu.used_bytes), gpu.utilisation_percent == null ? "–" : `${gpu.utilisation_percent} %`])} />
  </section>`;
}
