"use strict";
// A time series as SVG: data, fitted line, forecast to the limit, change point.

const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function bytesText(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let size = Math.abs(value), unit = 0;
  while (size >= 1024 && unit < units.length - 1) { size /= 1024; unit += 1; }
  return (value < 0 ? "-" : "") + size.toFixed(unit === 0 || size >= 100 ? 0 : 1) + " " + units[unit];
}

function amountText(metric, value) {
  if (value === null || value === undefined) return "–";
  if (metric.endsWith("_bytes")) return bytesText(value);
  return Math.abs(value) >= 10 ? Math.round(value).toLocaleString("en") : String(Math.round(value * 100) / 100);
}

function timeText(seconds, long) {
  if (seconds === null || seconds === undefined) return "–";
  const date = new Date(seconds * 1000);
  const clock = date.toLocaleTimeString("en-GB");
  return long ? date.toLocaleDateString("en-CA") + " " + clock : clock;
}

// Round steps for an axis: 1, 2 or 5 times a power of the base.
function stepFor(span, base, count) {
  const rough = span / count;
  const power = Math.pow(base, Math.floor(Math.log(rough) / Math.log(base)));
  const choices = base === 2 ? [1, 2] : [1, 2, 5, 10];
  return power * choices.find((factor) => power * factor >= rough || factor === choices[choices.length - 1]);
}

function plotSeries(series, fit, metric) {
  const width = 1100, height = 360, left = 84, right = 16, top = 14, bottom = 30;
  const times = series.times_s, values = series.values;
  const start = times[0];
  let end = times[times.length - 1];
  let low = Math.min(...values), high = Math.max(...values);
  const forecast = fit && fit.per_hour > 0 ? end + 0.15 * Math.max(end - start, 1) : null;
  const line = (at) => fit.start_value + (fit.per_hour / 3600) * (at - fit.start_s);
  if (forecast) { end = forecast; high = Math.max(high, line(forecast)); }
  if (series.limit_bytes && series.limit_bytes < 2 * high) high = Math.max(high, series.limit_bytes);
  if (low > 0 && low < 0.5 * high) low = 0;
  if (high === low) { high = low + Math.max(Math.abs(low) * 0.01, 1); }
  const x = (at) => left + (width - left - right) * (at - start) / Math.max(end - start, 1e-9);
  const y = (value) => top + (height - top - bottom) * (high - value) / (high - low);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${metric} over time` });

  const step = stepFor(high - low, metric.endsWith("_bytes") ? 2 : 10, 5);
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, amountText(metric, value)));
  }
  const long = end - start > 86400;
  for (let i = 0; i <= 6; i += 1) {
    const at = start + (end - start) * i / 6;
    const anchor = i === 0 ? "start" : i === 6 ? "end" : "middle";
    svg.append(shape("text", { x: x(at), y: height - 8, "text-anchor": anchor }, timeText(at, long)));
  }
  const points = times.map((at, i) => `${x(at).toFixed(1)},${y(values[i]).toFixed(1)}`).join(" ");
  svg.append(shape("polyline", { class: "data", points }));
  if (series.limit_bytes && series.limit_bytes <= high) {
    const at = y(series.limit_bytes);
    svg.append(shape("line", { class: "limit", x1: left, x2: width - right, y1: at, y2: at }));
    svg.append(shape("text", { x: width - right, y: at - 5, "text-anchor": "end" }, "limit"));
  }
  if (fit) {
    svg.append(shape("line", { class: "fit", x1: x(fit.start_s), y1: y(fit.start_value), x2: x(fit.end_s), y2: y(fit.end_value) }));
    if (forecast) {
      svg.append(shape("line", { class: "forecast", x1: x(fit.end_s), y1: y(fit.end_value), x2: x(forecast), y2: y(line(forecast)) }));
    }
    svg.append(shape("line", { class: "change", x1: x(fit.start_s), x2: x(fit.start_s), y1: top, y2: height - bottom }));
    svg.append(shape("text", { x: x(fit.start_s) + 5, y: top + 10 }, `growth starts ${timeText(fit.start_s, long)}`));
  }
  return svg;
}
