"""What the report page looks like and how it answers the keyboard: its style sheet and its one small script.

Both stand in the page itself. Without the script everything is still there; it adds search, sorting and keys.
"""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --bg:#fbfaf8; --card:#fff; --ink:#1f2430; --soft:#667085; --line:#e4e1da;
  --lv0:#c93a4d; --lv1:#b97a0a; --lv2:#3f8560; --lv3:#2378a0; --compute:#5b4b8a; --launch:#6f757b; --accent:#2e86ab;
  --code:#f4f2ee; --onfill:#fff; }
@media (prefers-color-scheme: dark) { :root { --bg:#14161b; --card:#1c1f26; --ink:#e7e9ee; --soft:#98a2b3;
  --line:#2d323c; --lv0:#ef6f80; --lv1:#f2c166; --lv2:#85c6a3; --lv3:#5fb3d6; --compute:#a996e0; --launch:#9aa0a8;
  --accent:#5fb3d6; --code:#12141a; --onfill:#14161b; } }
* { box-sizing: border-box; } html { scroll-padding-top:64px; }
body { margin:0; background:var(--bg); color:var(--ink); font:14px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width:1320px; margin:0 auto; padding:16px 20px 80px; }
header { position:sticky; top:0; z-index:2; background:var(--bg); border-bottom:1px solid var(--line); }
header > div { max-width:1320px; margin:0 auto; padding:9px 20px; display:flex; gap:18px; align-items:center; flex-wrap:wrap; }
h1 { font-size:20px; margin:0; letter-spacing:-.01em; } h2 { font-size:17px; margin:26px 0 10px; }
h3 { font-size:13px; margin:0 0 6px; color:var(--soft); font-weight:600; }
nav { display:flex; gap:14px; } nav a { color:var(--soft); text-decoration:none; } nav a:hover { color:var(--ink); }
#find { flex:1; min-width:180px; max-width:380px; margin-left:auto; padding:5px 10px; border:1px solid var(--line); border-radius:8px;
  background:var(--card); color:var(--ink); font:inherit; }
kbd { border:1px solid var(--line); border-bottom-width:2px; border-radius:4px; padding:0 4px; font:11px ui-monospace, monospace; }
p { margin:5px 0; } .soft { color:var(--soft); } ul { margin:4px 0; padding-left:18px; }
code, pre, .mono { font:12px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.cards { display:flex; flex-wrap:wrap; gap:6px 30px; margin:4px 0 12px; }
.card b { font-size:21px; font-weight:650; letter-spacing:-.01em; margin-right:6px; } .card span { color:var(--soft); }
.strip { display:flex; height:22px; border-radius:6px; overflow:hidden; background:var(--line); margin:0 0 12px; }
.strip a { display:block; color:var(--onfill); text-decoration:none; font-size:12px; line-height:22px; text-align:center; overflow:hidden;
  background:var(--c); border-right:1px solid var(--bg); min-width:1px; }
.panel { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px 14px; overflow-x:auto; }
.top { display:grid; grid-template-columns:minmax(0, 1.18fr) minmax(0, 1fr); gap:16px; align-items:start; }
.two { display:grid; grid-template-columns:repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap:6px 26px; align-items:start; }
@media (max-width: 980px) { .top { grid-template-columns:minmax(0, 1fr); } }
table { border-collapse:collapse; width:100%; } th { text-align:left; font-weight:600; color:var(--soft); font-size:12.5px; }
th[data-sort] { cursor:pointer; } th[aria-sort=descending]::after { content:" ↓"; } th[aria-sort=ascending]::after { content:" ↑"; }
td, th { padding:5px 10px 5px 0; border-bottom:1px solid var(--line); vertical-align:top; } tr:last-child td { border-bottom:0; }
td.num, th.num { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; } td.name { overflow-wrap:anywhere; }
a { color:inherit; text-decoration-color:var(--line); text-underline-offset:3px; }
.meter { background:var(--line); border-radius:4px; height:9px; width:76px; margin-top:5px; overflow:hidden; }
.meter i { display:block; height:100%; border-radius:4px; }
.pill { display:inline-block; border-radius:99px; padding:0 8px; font-size:12px; color:var(--onfill); white-space:nowrap; }
details { background:var(--card); border:1px solid var(--line); border-radius:10px; margin:8px 0; }
details > summary { cursor:pointer; padding:9px 14px; display:flex; gap:12px; align-items:baseline; list-style:none; flex-wrap:wrap; }
details > summary::-webkit-details-marker { display:none; } details > summary::before { content:"▸"; color:var(--soft); }
details[open] > summary::before { content:"▾"; } .inside { padding:0 14px 14px; } .grow { flex:1; min-width:200px; overflow-wrap:anywhere; }
summary:focus-visible, #find:focus-visible, a:focus-visible { outline:2px solid var(--accent); outline-offset:1px; }
details.plain { border:0; background:none; margin:6px 0 0; } details.plain > summary { padding:3px 0; color:var(--soft); }
pre { background:var(--code); border-radius:8px; padding:10px 12px; overflow:auto; margin:4px 0; max-height:430px; }
section { margin:12px 0 0; min-width:0; } svg { width:100%; height:auto; display:block; } svg.wide { min-width:640px; }
svg text { font:12px system-ui, sans-serif; fill:var(--ink); } svg .tick { fill:var(--soft); font-size:11px; }
svg .axis { fill:var(--soft); font-size:11px; font-style:italic; } svg .name { font-size:11.5px; } svg .strong { font-weight:650; }
svg .number { font-size:10px; font-weight:650; fill:var(--onfill); pointer-events:none; }
svg .grid { stroke:var(--line); } svg .roof { stroke-width:1.8; fill:none; } svg .peak { stroke:var(--ink); }
svg .point { fill-opacity:.85; stroke:var(--card); stroke-width:1.2; } svg .cut { stroke:var(--card); stroke-width:1; opacity:.75; }
svg .fine { stroke-dasharray:1.5 1.5; opacity:.6; } svg .tile { fill-opacity:.38; } svg .lit { fill:var(--ink); fill-opacity:.8; }
svg .regs { fill:var(--compute); }
svg .lv0 { fill:var(--lv0); stroke:var(--lv0); } svg .lv1 { fill:var(--lv1); stroke:var(--lv1); }
svg .lv2 { fill:var(--lv2); stroke:var(--lv2); } svg .lv3 { fill:var(--lv3); stroke:var(--lv3); }
svg .compute { fill:var(--compute); stroke:var(--compute); } svg .launch { fill:var(--launch); stroke:var(--launch); }
svg .bar, svg .tile { stroke:none; } svg .point { stroke:var(--card); }
.lv0 { --c:var(--lv0); } .lv1 { --c:var(--lv1); } .lv2 { --c:var(--lv2); } .lv3 { --c:var(--lv3); }
.compute { --c:var(--compute); } .launch { --c:var(--launch); } .pill, .meter i, .dot { background:var(--c); }
.dot { display:inline-block; width:10px; height:10px; border-radius:3px; margin:0 5px 0 14px; } .dot:first-child { margin-left:0; }
.best td { font-weight:650; } [hidden] { display:none !important; }
@media print { header { position:static; } #find, nav { display:none; } }
"""

# `/` finds, j and k walk, Enter opens (the browser's own), e opens or closes all, a click on a heading sorts.
SCRIPT = """
(() => {
  const find = document.getElementById('find'), said = document.getElementById('found');
  const kernels = [...document.querySelectorAll('details[id]')];
  const rows = [...document.querySelectorAll('tr[data-text]')];
  const text = new Map(kernels.map(k => [k, k.textContent.toLowerCase()]));
  const filter = () => {
    const words = find.value.toLowerCase().split(/\\s+/).filter(Boolean);
    const fits = t => words.every(w => t.includes(w));
    let shown = 0;
    for (const k of kernels) { k.hidden = !fits(text.get(k)); shown += !k.hidden; }
    for (const r of rows) {
      const k = document.getElementById(r.dataset.kernel || '');
      r.hidden = k ? k.hidden : !fits(r.dataset.text.toLowerCase());
    }
    said.textContent = words.length ? `${shown} of ${kernels.length} kernels` : '';
  };
  find.addEventListener('input', filter);
  const open = () => { const k = document.getElementById(location.hash.slice(1)); if (k && k.tagName == 'DETAILS') k.open = true; };
  addEventListener('hashchange', open); open();
  document.addEventListener('click', e => { const a = e.target.closest('a[href^="#k"]'); if (a)
    document.getElementById(a.getAttribute('href').slice(1)).open = true; });
  document.addEventListener('keydown', e => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.target == find) { if (e.key == 'Escape') { find.value = ''; filter(); find.blur(); } return; }
    const seen = kernels.filter(k => !k.hidden);
    const at = seen.findIndex(k => k.contains(document.activeElement));
    if (e.key == '/') { e.preventDefault(); find.focus(); }
    else if ((e.key == 'j' || e.key == 'k') && seen.length) {
      const to = seen[Math.max(0, Math.min(seen.length - 1, at + (e.key == 'j' ? 1 : -1)))];
      to.querySelector('summary').focus(); to.scrollIntoView({block: 'start'});
    } else if (e.key == 'e') { const any = seen.some(k => k.open); for (const k of seen) k.open = !any; }
  });
  for (const th of document.querySelectorAll('th[data-sort]')) {
    const sort = () => {
      const table = th.closest('table'), at = [...th.parentNode.children].indexOf(th);
      const down = th.getAttribute('aria-sort') != 'descending';
      for (const o of th.parentNode.children) o.removeAttribute('aria-sort');
      th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const key = r => { const c = r.children[at]; return c ? c.dataset.v ?? c.textContent : ''; };
      const order = (a, b) => { const x = key(a), y = key(b), n = x - y; return isNaN(n) ? x.localeCompare(y) : n; };
      const body = [...table.querySelectorAll('tr')].slice(1).sort((a, b) => down ? order(b, a) : order(a, b));
      for (const r of body) table.querySelector('tbody').append(r);
    };
    th.tabIndex = 0; th.addEventListener('click', sort);
    th.addEventListener('keydown', e => { if (e.key == 'Enter') sort(); });
  }
})();
"""
