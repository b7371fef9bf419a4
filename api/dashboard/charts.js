// ECharts on this page: loaded when the first plot is, in the page's colours, with a table beside each plot.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Table } from "./ui.js";

const PATIENCE_MS = 1000;
const HOLD_MS = 300;
let heldUntil = 0;

/** No plot is drawn for a moment: called while a slider moves. */
export const holdPlots = () => void (heldUntil = performance.now() + HOLD_MS);

/** Plots are drawn one after another when nothing else is to be done: tables and sliders go first.
 * @param {() => void} work @returns {() => void} takes it back */
function whenIdle(work) {
  let takeBack = () => {};
  const look = () => {
    const left = heldUntil - performance.now();
    if (left > 0) wait(left);
    else work();
  };
  const wait = (/** @type {number} */ ms) => {
    if (ms || !("requestIdleCallback" in window)) {
      const timer = setTimeout(look, ms || 50);
      takeBack = () => clearTimeout(timer);
    } else {
      const turn = requestIdleCallback(look, { timeout: PATIENCE_MS });
      takeBack = () => cancelIdleCallback(turn);
    }
  };
  wait(0);
  return () => takeBack();
}

/** @type {Promise<any> | null} */
let loading = null;

/** The library, which puts itself on the window. */
function library() {
  loading ??= new Promise((found, failed) => {
    const script = document.createElement("script");
    script.src = new URL("./vendor/echarts.js", import.meta.url).href;
    script.onload = () => found(/** @type {any} */ (window).echarts);
    script.onerror = () => failed(new Error("the plots could not be loaded"));
    document.head.append(script);
  });
  return loading;
}

const NAMES = ["bg", "card", "ink", "muted", "line", "edge", "accent", "good", "warn", "bad", "s1", "s2", "s3", "s4", "s5", "s6"];

/** The page's colours as they are now. @returns {Record<string, string>} */
export function palette() {
  const probe = document.createElement("span");
  probe.className = "hidden";
  document.body.append(probe);
  const style = getComputedStyle(probe);
  const found = /** @type {Record<string, string>} */ ({});
  for (const name of NAMES) {
    probe.style.color = `var(--${name})`;
    found[name] = style.color;
  }
  probe.remove();
  return found;
}

/** From little to much, told apart by lightness too (the map cividis, made for colour-blind readers). */
const SCALE = [[0, 32, 77], [65, 77, 107], [124, 123, 120], [188, 175, 111], [255, 234, 70]];

/** @param {number} share */
export function shade(share) {
  const place = Math.min(1, Math.max(0, share)) * (SCALE.length - 1);
  const below = Math.min(SCALE.length - 2, Math.floor(place));
  const mix = SCALE[below].map((value, index) => Math.round(value + (SCALE[below + 1][index] - value) * (place - below)));
  return `rgb(${mix.join(",")})`;
}

/** Ends of an axis with some room around its points, also where there is only one. */
export const ROOMY = {
  min: (/** @type {{min: number, max: number}} */ { min, max }) => rounded(Math.max(0, min - room(min, max)), Math.floor),
  max: (/** @type {{min: number, max: number}} */ { min, max }) => rounded(max + room(min, max), Math.ceil),
  isRoomy: true,
};
const room = (/** @type {number} */ min, /** @type {number} */ max) => Math.max(0.08 * (max - min), 0.03 * Math.abs(max));
/** To two digits, away from the points. @param {number} value @param {(value: number) => number} away */
function rounded(value, away) {
  if (!value) return 0;
  const unit = 10 ** (Math.floor(Math.log10(Math.abs(value))) - 1);
  return Number((away(value / unit) * unit).toPrecision(4));
}

/** What all axes share. @param {Record<string, string>} colour @param {string} name @param {any} [more] */
export const axis = (colour, name, more) => ({
  type: "value",
  name,
  nameLocation: "middle",
  nameGap: 30,
  scale: true,
  nameTextStyle: { color: colour.muted },
  // Ends with room around the points are no round numbers, and crowd their neighbours.
  axisLabel: { color: colour.muted, hideOverlap: true, showMinLabel: !more?.isRoomy, showMaxLabel: !more?.isRoomy },
  axisLine: { show: true, lineStyle: { color: colour.edge } },
  splitLine: { lineStyle: { color: colour.line } },
  ...more,
});

/** A tooltip made of nodes, so that names stay text. @param {string[]} lines */
export function tip(lines) {
  const box = document.createElement("div");
  for (const [index, line] of lines.entries()) {
    const part = document.createElement(index ? "div" : "strong");
    part.textContent = line;
    part.style.whiteSpace = "normal";
    box.append(part);
  }
  box.style.maxWidth = "22rem";
  return box;
}

/** A plot with its caption and the same as a table.
 * @param {{title: string, caption?: any, option: (colour: Record<string, string>) => any, inputs: any[], onPick?: (event: any) => void,
 *   columns: {name: string, number?: boolean}[], table: () => any[][], low?: boolean, children?: any}} props */
export function Plot({ title, caption, option, inputs, onPick, columns, table, low, children }) {
  const box = useRef(/** @type {any} */ (null));
  const chart = useRef(/** @type {any} */ (null));
  const [error, setError] = useState("");
  const [isOpen, setOpen] = useState(false);
  const pick = useRef(onPick);
  pick.current = onPick;
  const draw = useRef(() => {});
  draw.current = () => {
    if (!chart.current) return;
    const colour = palette();
    chart.current.setOption(
      {
        animation: false,
        textStyle: { fontFamily: "system-ui, sans-serif" },
        ...option(colour),
      },
      { notMerge: true },
    );
  };
  useEffect(() => {
    let isGone = false;
    const redraw = () => draw.current();
    const resize = new ResizeObserver(([{ contentRect: now }]) => {
      const { width, height } = now;
      if (width !== chart.current.getWidth() || height !== chart.current.getHeight()) chart.current.resize();
    });
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const leave = whenIdle(() =>
      library().then(
        (echarts) => {
          if (isGone) return;
          chart.current = echarts.init(box.current, null, { renderer: "canvas" });
          chart.current.on("click", (/** @type {any} */ event) => pick.current?.(event));
          resize.observe(box.current);
          redraw();
        },
        (failure) => setError(failure.message),
      ),
    );
    addEventListener("themechange", redraw);
    dark.addEventListener("change", redraw);
    return () => {
      isGone = true;
      leave();
      resize.disconnect();
      removeEventListener("themechange", redraw);
      dark.removeEventListener("change", redraw);
      chart.current?.dispose();
    };
  }, []);
  useEffect(() => whenIdle(() => draw.current()), inputs);
  return html`<figure>
    ${children}
    <div class="plot ${low ? "low" : ""}" ref=${box} role="img" aria-label="${title}. The same as a table stands below."></div>
    ${error && html`<p class="error">${error}</p>`}
    <figcaption>${caption}</figcaption>
    <details onToggle=${(/** @type {any} */ event) => setOpen(event.currentTarget.open)}>
      <summary>The same as a table</summary>
      ${isOpen && html`<${Table} caption=${title} columns=${columns} rows=${table()} />`}
    </details>
  </figure>`;
}

/** What a tooltip looks like. @param {Record<string, string>} colour @param {(params: any) => any} formatter */
export const tooltip = (colour, formatter) => ({
  trigger: "item",
  backgroundColor: colour.card,
  borderColor: colour.edge,
  textStyle: { color: colour.ink, fontSize: 13 },
  confine: true,
  enterable: false,
  formatter,
});
