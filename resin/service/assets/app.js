"use strict";
// The page of resin: findings, fleet, one process. Text only ever goes in as text nodes.

const main = document.getElementById("main");
const state = document.getElementById("state");
const REFRESH_MS = 10000;
let view = 0;

function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

async function ask(path, content) {
  const options = content === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  };
  const answer = await fetch(path, options);
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error || `HTTP ${answer.status}`);
  return data;
}

function badge(finding) {
  const label = finding.status === "open" ? finding.verdict : `${finding.verdict} (${finding.status})`;
  return el("span", { class: `badge ${finding.verdict}` }, label);
}

function hoursText(hours) {
  if (hours === null || hours === undefined) return "–";
  if (hours < 1) return `${Math.max(1, Math.round(hours * 60))} min`;
  return hours < 72 ? `${hours.toFixed(1)} h` : `${(hours / 24).toFixed(1)} days`;
}

function table(titles, rows) {
  const head = el("tr", {}, ...titles.map(([text, kind]) => el("th", { class: kind, scope: "col" }, text)));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
}

function linkRow(target, cells) {
  const row = el("tr", { class: "link", tabindex: "0", onclick: () => { location.hash = target; } }, ...cells);
  row.addEventListener("keydown", (event) => { if (event.key === "Enter") location.hash = target; });
  return row;
}

async function showFindings() {
  const data = await ask("/api/v1/findings");
  const open = data.findings.filter((f) => f.status === "open");
  const past = data.findings.filter((f) => f.status !== "open");
  const count = (verdict) => open.filter((f) => f.verdict === verdict).length;
  const summary = el("p", {}, `${count("leak")} leaking, ${count("retention")} retained by the allocator, ` +
    `${count("unclear")} unclear, ${count("bounded")} bounded.`);
  const parts = [el("div", { class: "card" }, el("h1", {}, "Findings"), summary, findingsTable(open))];
  if (!open.length) {
    parts[0].append(el("p", { class: "quiet" }, data.last_run_s === null ? "Detection has not run yet." : "Nothing grows."));
  }
  if (past.length) parts.push(el("div", { class: "card" }, el("h2", {}, "Cleared or ended"), findingsTable(past)));
  if (data.elided) parts.push(el("p", { class: "quiet" }, `${data.elided} less severe findings are not kept.`));
  say(data.last_error ? `Last detection failed: ${data.last_error}` :
    data.last_run_s === null ? "" : `Last detection ${timeText(data.last_run_s)}`, Boolean(data.last_error));
  return parts;
}

function findingsTable(findings) {
  if (!findings.length) return null;
  const titles = [["Verdict", ""], ["Process", ""], ["Metric", ""], ["Class", ""], ["Since", ""],
    ["Per hour", "number"], ["To limit", "number"], ["Severity", "number"]];
  return table(titles, findings.map((f) => linkRow(`#/finding/${encodeURIComponent(f.id)}`, [
    el("td", {}, badge(f)), el("td", {}, el("code", {}, f.entity.key)), el("td", {}, f.metric),
    el("td", {}, f.growth_class), el("td", {}, timeText(f.start_s)),
    el("td", { class: "number" }, amountText(f.metric, f.slope_bytes_per_hour)),
    el("td", { class: "number" }, hoursText(f.hours_to_limit)), el("td", { class: "number" }, f.severity.toFixed(2)),
  ])));
}

async function showFleet() {
  const [data, found] = await Promise.all([ask("/api/v1/fleet"), ask("/api/v1/findings?status=open")]);
  const verdicts = new Map();
  for (const f of [...found.findings].reverse()) verdicts.set(f.entity.key, f);
  const hosts = table([["Host", ""], ["Processes", "number"], ["Memory available", "number"], ["of", "number"],
    ["/dev/shm", "number"], ["Kernel slab", "number"]], data.hosts.map((h) => el("tr", {},
    el("td", {}, h.host), el("td", { class: "number" }, String(h.processes)),
    ...["memory_available_bytes", "memory_total_bytes", "dev_shm_bytes", "slab_bytes"].map((name) =>
      el("td", { class: "number" }, amountText(name, h[name]))))));
  const isGroup = (e) => e.component.startsWith("cgroup:") || e.component.startsWith("gpu:");
  const rows = data.entities.filter((e) => !isGroup(e)).map((e) => {
    const f = verdicts.get(e.key);
    const cells = [el("td", {}, f ? badge(f) : ""), el("td", {}, el("code", {}, e.key)),
      ...["anon_bytes", "uss_bytes", "file_bytes", "shmem_bytes", "gpu_bytes", "fds", "threads"].map((name) =>
        el("td", { class: "number" }, amountText(name, e[name])))];
    return linkRow(f ? `#/finding/${encodeURIComponent(f.id)}` : `#/entity/${encodeURIComponent(e.key)}`, cells);
  });
  const entities = table([["", ""], ["Process", ""], ["Anon", "number"], ["USS", "number"], ["File", "number"],
    ["Shmem", "number"], ["GPU", "number"], ["FDs", "number"], ["Threads", "number"]], rows);
  const groups = table([["", ""], ["Control group or device", ""], ["In use", "number"], ["Anon", "number"], ["File", "number"],
    ["Kernel", "number"], ["Limit", "number"], ["OOM kills", "number"]], data.entities.filter(isGroup).map((e) => {
    const f = verdicts.get(e.key);
    const limit = e.cgroup_limit_bytes !== undefined ? e.cgroup_limit_bytes : e.gpu_limit_bytes;
    return linkRow(f ? `#/finding/${encodeURIComponent(f.id)}` : `#/entity/${encodeURIComponent(e.key)}`, [
      el("td", {}, f ? badge(f) : ""), el("td", {}, el("code", {}, e.key)),
      ...[e.cgroup_bytes !== undefined ? e.cgroup_bytes : e.gpu_bytes, e.cgroup_anon_bytes, e.cgroup_file_bytes,
        e.cgroup_kernel_bytes, limit].map((value) => el("td", { class: "number" }, amountText("_bytes", value))),
      el("td", { class: "number" }, amountText("", e.cgroup_oom_kills_total))]);
  }));
  say(`${data.hosts.length} ${data.hosts.length === 1 ? "host" : "hosts"}`);
  return [el("div", { class: "card" }, el("h1", {}, "Hosts"), data.hosts.length ? hosts :
    el("p", { class: "quiet" }, "No agent has sent samples in the last minutes: start `resin agent` on a host.")),
  el("div", { class: "card" }, el("h1", {}, "Processes and jobs"), entities,
    data.elided ? el("p", { class: "quiet" }, `${data.elided} smaller ones are not shown.`) : null),
  el("div", { class: "card" }, el("h1", {}, "Control groups and devices"), groups)];
}

async function showFinding(id) {
  const f = await ask(`/api/v1/findings/${encodeURIComponent(id)}`);
  const facts = [["Class", f.growth_class], ["Since", timeText(f.start_s, true)],
    ["Growth per hour", amountText(f.metric, f.slope_bytes_per_hour)],
    ["Growth per step", amountText(f.metric, f.bytes_per_step)], ["Time to limit", hoursText(f.hours_to_limit)],
    ["Severity", f.severity.toFixed(2)], ["Confidence", f.confidence.toFixed(2)], ["First seen", timeText(f.first_seen_s, true)]];
  const head = el("div", { class: "card" }, el("h1", {}, badge(f), " ", f.entity.key), el("div", { class: "quiet" }, f.metric),
    el("dl", {}, ...facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))),
    f.series ? el("div", { id: "plot" }, plotSeries(f.series, f.fit, f.metric)) : el("p", { class: "quiet" }, "No samples are left."));
  const why = el("div", { class: "card" }, el("h2", {}, "Why"), el("ul", {}, ...f.why.map((text) => el("li", {}, text))),
    f.would_settle ? el("p", {}, `What would settle it: ${f.would_settle}`) : null);
  return [head, why, diagnosisCard(f), actionsCard(f)];
}

function diagnosisCard(f) {
  const card = el("div", { class: "card", id: "diagnosis" }, el("h2", {}, "Diagnosis"));
  const d = f.diagnosis;
  if (d) {
    card.append(el("p", {}, `${d.kind}, confidence ${d.confidence.toFixed(2)}; the process was held up for ${Math.round(d.pause_ms)} ms.`));
    if (d.suspects.length) {
      card.append(table([["Place", ""], ["Function", ""], ["Growth", "number"], ["Share", "number"], ["Seen by", ""]],
        d.suspects.map((s) => el("tr", {}, el("td", {}, el("code", {}, `${s.file}:${s.line}`)), el("td", {}, el("code", {}, s.function)),
          el("td", { class: "number" }, amountText("_bytes", s.growth_bytes)),
          el("td", { class: "number" }, s.share === null ? "–" : `${Math.round(100 * s.share)} %`), el("td", {}, s.source)))));
    }
    card.append(el("ul", { class: "quiet" }, ...d.probes.concat(d.notes).map((text) => el("li", {}, text))));
  } else {
    card.append(el("p", { class: "quiet" }, "Not diagnosed yet."));
  }
  if (f.entity.pid !== null && f.status === "open") {
    card.append(actionButton("Diagnose now", `/api/v1/findings/${encodeURIComponent(f.id)}/diagnose`, {}, card));
  }
  return card;
}

function actionsCard(f) {
  const card = el("div", { class: "card", id: "actions" }, el("h2", {}, "Actions"));
  const list = (actions) => el("ul", {}, ...actions.map((a) => el("li", {},
    `${timeText(a.time_s, true)} ${a.name}: ${!a.applied ? "planned" : a.ok ? "done" : a.ok === false ? "failed" : "tried"}. ${a.reason} `,
    a.command.length ? el("code", {}, a.command.join(" ")) : "")));
  card.append(f.actions.length ? list(f.actions) : el("p", { class: "quiet" }, "None taken."));
  const plan = el("button", { onclick: async () => {
    try {
      const data = await ask(`/api/v1/findings/${encodeURIComponent(f.id)}/mitigate`, { apply: false });
      card.append(data.actions.length ? list(data.actions) : el("p", {}, "No rule applies."));
      plan.disabled = true;
    } catch (error) { card.append(el("p", { class: "error" }, error.message)); }
  } }, "Plan (dry run)");
  card.append(plan);
  return card;
}

function actionButton(label, path, content, card) {
  const button = el("button", { onclick: async () => {
    button.disabled = true;
    button.textContent = "Working …";
    try {
      const data = await ask(path, content);
      if (data.state === "asked") card.append(el("p", {}, `The agent of ${data.host} was asked; its answer shows here.`));
      else render();
    } catch (error) {
      card.append(el("p", { class: "error" }, error.message));
      button.textContent = label;
      button.disabled = false;
    }
  } }, label);
  return button;
}

async function showEntity(key) {
  const metrics = ["anon_bytes", "uss_bytes", "shmem_bytes", "gpu_bytes", "cgroup_bytes", "fds"];
  const since = Date.now() / 1000 - 86400;
  const answers = await Promise.all(metrics.map((metric) =>
    ask(`/api/v1/series?metric=${metric}&since=${since}&entity=${encodeURIComponent(key)}`)));
  const cards = answers.flatMap((data) => data.series).filter((s) => s.values.some((v) => v > 0))
    .map((s) => el("div", { class: "card" }, el("h2", {}, s.metric), plotSeries(s, null, s.metric)));
  return [el("h1", {}, key), ...(cards.length ? cards : [el("p", { class: "quiet" }, "No samples of the last day.")])];
}

function say(text, bad) {
  state.textContent = text;
  state.className = bad ? "error" : "";
}

async function render(quiet) {
  const mine = ++view;
  const [, name, argument] = location.hash.split("/");
  document.querySelectorAll("nav a").forEach((link) =>
    link.classList.toggle("here", link.dataset.view === (name === "fleet" || name === "entity" ? "fleet" : "findings")));
  try {
    const key = argument ? decodeURIComponent(argument) : "";
    const parts = name === "fleet" ? await showFleet() : name === "finding" ? await showFinding(key)
      : name === "entity" ? await showEntity(key) : await showFindings();
    if (mine === view) main.replaceChildren(...parts);
  } catch (error) {
    if (mine !== view) return;
    if (quiet) say(error.message, true);
    else main.replaceChildren(el("p", { class: "error" }, error.message));
  }
}

window.addEventListener("hashchange", () => render());
setInterval(() => { if (!document.hidden && !location.hash.startsWith("#/finding/")) render(true); }, REFRESH_MS);
render();
