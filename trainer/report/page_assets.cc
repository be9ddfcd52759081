#include "trainer/report/page_assets.h"

namespace filigree::report {

// The palette is told apart with the common colour deficiencies too (after Okabe and Ito).
const char kPageStyle[] = R"css(
:root {
  color-scheme: light dark;
  --ground: #f7f7f5; --card: #ffffff; --ink: #1d2126; --faint: #68707a; --line: #e3e4e0;
  --c0: #0a6ebd; --c1: #d1570a; --c2: #0b8a68; --c3: #a8488f; --c4: #97700a; --c5: #3d8fc4;
  --c6: #b3261e; --c7: #5b616b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --card: #1c2026; --ink: #e8eaed; --faint: #9aa3ad; --line: #31373f;
    --c0: #5ab0f2; --c1: #f49355; --c2: #45c7a0; --c3: #db8cc6; --c4: #d9b04a; --c5: #8fcbee;
    --c6: #f1837b; --c7: #b4bac3;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; font-weight: 650; letter-spacing: -0.015em; margin: 0; }
h2 { font-size: 17px; font-weight: 600; margin: 36px 0 12px; }
.lead, .fine { color: var(--faint); margin: 4px 0 24px; }
.fine { font-size: 13px; margin: 8px 2px 24px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 13.5px; }
caption { text-align: left; font-weight: 600; padding: 14px 16px 6px; }
th, td { padding: 8px 9px; text-align: right; white-space: nowrap; }
th:first-child { padding-left: 16px; }
td:last-child, th:last-child { padding-right: 16px; }
thead th { color: var(--faint); font-weight: 500; font-size: 13px; white-space: normal;
  vertical-align: bottom; line-height: 1.3; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; }
th.text, td.text, tbody th { text-align: left; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 0;
  margin: 0 0 14px; font-size: 14px; }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px;
  background: var(--c); vertical-align: -1px; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.chart { position: relative; margin: 0; padding: 14px 16px 8px; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
.wide { grid-column: 1 / -1; }
figcaption { font-weight: 600; margin-bottom: 4px; }
figcaption .unit { color: var(--faint); font-weight: 400; font-size: 13px; margin-left: 6px; }
figcaption .unit i { display: inline-block; width: 20px; border-top: 1px solid currentColor;
  margin: 0 5px 0 10px; vertical-align: 4px; }
figcaption .unit i.strong { border-top-width: 3px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 11.5px; fill: var(--faint); font-variant-numeric: tabular-nums; }
svg .label { font-size: 12px; }
svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .note { fill: var(--faint); font-style: italic; paint-order: stroke; stroke: var(--card);
  stroke-width: 3px; }
svg .cell { fill: var(--ink); }
.grid { stroke: var(--line); }
.axis { stroke: var(--faint); }
.mark { stroke: var(--faint); stroke-dasharray: 2 3; }
.reference { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 6 4; opacity: 0.6; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
.series path { fill: none; stroke: var(--c); stroke-linejoin: round; stroke-width: 1.6; }
.series circle { fill: var(--card); stroke: var(--c); stroke-width: 1.6; }
#loss .thin path { stroke-width: 1; opacity: 0.5; }
.strong path { stroke-width: 2.2; }
.cells rect { fill: var(--c); }
.cursor { stroke: var(--faint); pointer-events: none; }
.tip { position: absolute; top: 44px; pointer-events: none; z-index: 1; padding: 8px 12px;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; font-size: 13px;
  box-shadow: 0 4px 16px rgb(0 0 0 / 0.14); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tip div { display: flex; justify-content: space-between; gap: 18px; }
.tip b { font-weight: 600; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  margin-bottom: 8px; }
summary { cursor: pointer; padding: 10px 16px; font-weight: 500; }
summary code { color: var(--faint); font-weight: 400; margin-left: 8px; }
pre { margin: 0; padding: 4px 16px 16px; overflow-x: auto; font-size: 13px; line-height: 1.45; }
@media (max-width: 760px) { .charts { grid-template-columns: minmax(0, 1fr); } }
@media print { .scroll, .chart, details { break-inside: avoid; } }
)css";

const char kPageScript[] = R"js(
"use strict";
(() => {
  const prefixed = (value, prefixes) => {
    let i = 0;
    while (Math.abs(value) >= 999.5 && i + 1 < prefixes.length) { value /= 1000; i++; }
    return (i ? value.toPrecision(3) : Math.round(value * 100) / 100) + prefixes[i];
  };
  const units = {
    count: v => prefixed(v, ["", "k", "M", "B", "T"]),
    bytes: v => prefixed(v, [" B", " kB", " MB", " GB", " TB"]),
    percent: v => (100 * v).toFixed(2) + " %",
    loss: v => v.toFixed(4),
    rate: v => v.toExponential(3),
  };
  const valueAt = ([low, high, begin, end], pixel) =>
      low + (pixel - begin) / (end - begin) * (high - low);
  const pixelAt = ([low, high, begin, end], value) =>
      begin + (value - low) / (high - low) * (end - begin);
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) < Math.abs(xs[high] - x) ? low : high;
  };
  const row = (left, right, color) => {
    const line = document.createElement("div");
    const name = document.createElement("span"), value = document.createElement("b");
    if (color !== undefined) {
      const key = document.createElement("span");
      key.className = "key c" + color;
      name.append(key);
    }
    name.append(left);
    value.append(right);
    line.append(name, value);
    return line;
  };

  for (const chart of JSON.parse(document.getElementById("data").textContent)) {
    const figure = document.getElementById(chart.id), svg = figure.querySelector("svg");
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", chart.y[2]);
    cursor.setAttribute("y2", chart.y[3]);
    const hide = () => { tip.hidden = true; cursor.remove(); };

    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", event => {
      const box = svg.getBoundingClientRect();
      const pixel = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      if (pixel < chart.x[2] || pixel > chart.x[3]) return hide();
      const x = valueAt(chart.x, pixel);
      tip.replaceChildren(row("tokens", units.count(x)));
      for (const series of chart.series) {
        if (!series.x.length || x > series.x[series.x.length - 1] + (chart.x[1] - chart.x[0]) / 50)
          continue;
        const y = series.y[nearest(series.x, x)];
        tip.append(row(series.name, y === null ? "not finite" : units[chart.unit](y), series.color));
      }
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, pixelAt(chart.x, x));
      svg.append(cursor);
      tip.hidden = false;
      const left = event.clientX - figure.getBoundingClientRect().left;
      const flipped = left + tip.offsetWidth + 32 > figure.clientWidth;
      tip.style.left = Math.max(8, flipped ? left - tip.offsetWidth - 16 : left + 16) + "px";
    });
  }
})();
)js";

}  // namespace filigree::report
