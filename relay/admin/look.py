"""The page's style and its one script, and the policy that allows these two and nothing else (pure)."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --text: #1b1f24; --dim: #667080; --line: #dfe3e8; --accent: #2563c9;
  --good: #1d8348; --warn: #b26a00; --bad: #c62828; --synced: #3a9d5d; --inactive: #a9b1bb; --discovered: #c9d6ea;
  --pending: #8fb3e6; --active: #2563c9; --desynced: #e3b341; --failed: #e07b39; --quarantined: #c62828; }
@media (prefers-color-scheme: dark) { :root { --bg: #11151a; --card: #1a2027; --text: #e4e8ee; --dim: #93a0b0; --line: #2c343e;
  --accent: #6ea8fe; --good: #5cc98a; --warn: #e6a94a; --bad: #ff7b72; --synced: #3f9f63; --inactive: #5d6774; --discovered: #34445c;
  --pending: #41659c; --active: #6ea8fe; --desynced: #d8a93a; --failed: #e07b39; --quarantined: #ff6b62; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--text); font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: .8rem 1rem; }
header { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }
h1 { font-size: 1.2rem; margin: 0; } h1 small, .facts { font-weight: normal; color: var(--dim); font-size: .85rem; }
h2 { font-size: .95rem; margin: 0 0 .5rem; }
a { color: var(--accent); }
.badge { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; border: 1px solid; font-size: .85rem; font-weight: 600; }
.running { color: var(--good); } .waiting, .paused, .draining { color: var(--warn); } .starting, .standby { color: var(--accent); }
.stopped, .bad { color: var(--bad); } .good { color: var(--good); } .warn { color: var(--warn); } .dim { color: var(--dim); }
form { margin-left: auto; display: flex; gap: .4rem; flex: 0 1 26rem; }
input { flex: 1; min-width: 8rem; font: inherit; padding: .3rem .6rem; border: 1px solid var(--line); border-radius: .4rem;
  background: var(--card); color: inherit; }
button { font: inherit; padding: .3rem .9rem; border: 1px solid var(--line); border-radius: .4rem; background: var(--card);
  color: inherit; cursor: pointer; }
main { display: grid; gap: .9rem; padding-top: 0; }
section, .notice { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; min-width: 0; }
section section { margin: .6rem 0; }
.notice { border-left: .3rem solid var(--warn); } .notice.open { border-left-color: var(--bad); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .9rem; }
.numbers section { padding: .6rem .9rem; } .numbers b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.numbers span, .numbers small { color: var(--dim); font-size: .82rem; }
.numbers .whole { grid-column: 1 / -1; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .9rem; }
figure { margin: 0; min-width: 0; } figcaption { display: flex; gap: .5rem; align-items: baseline; font-size: .85rem; }
figcaption span { color: var(--dim); } figcaption b { font-variant-numeric: tabular-nums; } figcaption small { margin-left: auto; color: var(--dim); }
figure svg { display: block; width: 100%; height: 4.2rem; } .bar { display: block; width: 100%; height: .9rem; border-radius: .3rem; }
.ends { display: flex; justify-content: space-between; color: var(--dim); font-size: .75rem; }
.line { fill: none; stroke: var(--accent); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.area { fill: var(--accent); opacity: .16; } .base { stroke: var(--line); vector-effect: non-scaling-stroke; }
.s-synced { fill: var(--synced); color: var(--synced); } .s-inactive { fill: var(--inactive); color: var(--inactive); }
.s-discovered { fill: var(--discovered); color: var(--discovered); } .s-pending { fill: var(--pending); color: var(--pending); }
.s-active { fill: var(--active); color: var(--active); } .s-desynced { fill: var(--desynced); color: var(--desynced); }
.s-failed { fill: var(--failed); color: var(--failed); } .s-quarantined { fill: var(--quarantined); color: var(--quarantined); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .5rem 0 0; padding: 0; list-style: none; font-size: .9rem; }
.legend b { font-variant-numeric: tabular-nums; } .legend i { font-style: normal; margin-right: .35rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .22rem 1rem .22rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } th { color: var(--dim); font-weight: normal; font-size: .82rem; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; min-width: 14rem; } td.time { white-space: nowrap; font-variant-numeric: tabular-nums; }
progress { width: 100%; height: .7rem; accent-color: var(--good); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0 0 .6rem; } dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
details > summary { cursor: pointer; font-size: .95rem; font-weight: 600; } details[open] > summary { margin-bottom: .5rem; }
footer { color: var(--dim); font-size: .85rem; }
@media (max-width: 36rem) { form { flex: 1 1 100%; margin: 0; } .numbers { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .numbers b { font-size: 1.1rem; } .charts { grid-template-columns: 1fr; } td.time { white-space: normal; } td.text { min-width: 11rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
  header, main, footer { padding-left: .6rem; padding-right: .6rem; } }
"""

# Takes the numbers of a fresh page, and leaves alone what somebody types, has opened, or has scrolled to. The answer is our own page,
# in which everything foreign is escaped.
SCRIPT = """
"use strict";
(() => {
  const every = 5000;
  const open = () => [...document.querySelectorAll("#live details[open]")].map((each) => each.id);
  const renew = async () => {
    const note = document.getElementById("stale");
    try {
      const answer = await fetch("/", { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const opened = open();
      for (const id of ["live", "head"]) document.getElementById(id).replaceWith(fresh.getElementById(id));
      for (const id of opened) { const each = document.getElementById(id); if (each) each.open = true; }
      document.title = fresh.title;
      note.hidden = true;
    } catch (error) {
      note.hidden = false;
    }
  };
  const tick = async () => { if (!document.hidden) await renew(); setTimeout(tick, every); };
  setTimeout(tick, every);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) renew(); });
})();
"""


def _source(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(SCRIPT)}; connect-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
