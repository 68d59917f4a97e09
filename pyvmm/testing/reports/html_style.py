"""The style sheet of the HTML report: light and dark as the reader's system prefers; the filter, without a script."""

from __future__ import annotations

from pyvmm.testing.result import STATUSES

_RULES = """\
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --card: #ffffff; --ink: #1c2128; --dim: #616b78; --line: #dde1e7; --code: #f7f8fa;
  --pass: #1a7f45; --fail: #c62f3b; --timeout: #b3590a; --error: #7d47bd; --skip: #6d7682; --mark: #ffe3e3;
  --allowed: #fff3cf; --bar: #3b74c6; --focus: #2563c9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1b2129; --ink: #dfe4ea; --dim: #949fac; --line: #2e3742; --code: #151a21;
    --pass: #45bd76; --fail: #f2727b; --timeout: #e59a4d; --error: #b792ea; --skip: #8d97a5; --mark: #4d2227;
    --allowed: #423717; --bar: #5b92de; --focus: #7fb0f5;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
.page { max-width: 1160px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 10px; }
h3 { font-size: 12px; margin: 22px 0 6px; color: var(--dim); text-transform: uppercase; letter-spacing: .06em; }
a { color: var(--focus); }
pre, code, .mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px; }
.dim { color: var(--dim); }
.verdict { margin: 6px 0 20px; color: var(--dim); }
.pass { --c: var(--pass); } .fail { --c: var(--fail); } .timeout { --c: var(--timeout); } .error { --c: var(--error); }
.skip { --c: var(--skip); } .crashed { --c: var(--fail); } .missing { --c: var(--timeout); } .todo { --c: var(--skip); }
.share { display: flex; gap: 2px; height: 10px; border-radius: 5px; overflow: hidden; margin-bottom: 14px; }
.share i { background: var(--c); min-width: 3px; }
.filters { display: flex; flex-wrap: wrap; gap: 8px; }
input.filter { position: absolute; opacity: 0; pointer-events: none; }
.filters label { --c: var(--ink); cursor: pointer; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 7px 14px; }
.filters label b { font-size: 18px; margin-right: 6px; color: var(--c); font-variant-numeric: tabular-nums; }
.filters label.pass { --c: var(--pass); } .filters label.fail { --c: var(--fail); }
.filters label.timeout { --c: var(--timeout); } .filters label.error { --c: var(--error); }
.filters label.skip { --c: var(--skip); }
.filters label.none b { color: var(--dim); font-weight: 400; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th { text-align: left; font-weight: 600; }
.matrix { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 4px 14px 10px; }
.matrix th, .matrix td { padding: 5px 12px 5px 0; vertical-align: bottom; white-space: nowrap; }
.matrix thead th { font-size: 12.5px; color: var(--dim); border-bottom: 1px solid var(--line); }
.matrix td a { display: inline-block; min-width: 92px; text-decoration: none; color: var(--c);
  border: 1px solid var(--c); border-radius: 6px; padding: 1px 9px; font-size: 13px;
  font-variant-numeric: tabular-nums; }
.matrix td a.fail, .matrix td a.timeout, .matrix td a.error { background: var(--c); color: var(--card);
  font-weight: 600; }
.case { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--c); border-radius: 8px;
  margin: 8px 0; scroll-margin-top: 12px; }
.case > summary { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 12px; cursor: pointer;
  padding: 9px 14px; list-style: none; }
summary::-webkit-details-marker { display: none; }
.case > summary::before { content: "\\25B8"; color: var(--dim); }
.case[open] > summary::before { content: "\\25BE"; }
.case > summary .id { font-weight: 600; overflow-wrap: anywhere; }
.case > summary .why { flex: 1 1 320px; color: var(--dim); overflow-wrap: anywhere; }
.case > summary .took { color: var(--dim); font-variant-numeric: tabular-nums; }
.case > .inside { padding: 0 16px 16px; border-top: 1px solid var(--line); }
.badge { display: inline-block; min-width: 62px; text-align: center; font-size: 11.5px; font-weight: 600;
  color: var(--card); background: var(--c); border-radius: 5px; padding: 1px 7px;
  text-transform: uppercase; letter-spacing: .03em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 14px 0 0; font-size: 14px; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 7px; padding: 10px 12px; margin: 6px 0;
  max-height: 520px; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45; }
pre mark { display: block; background: var(--mark); color: inherit; margin: 0 -12px; padding: 0 9px;
  border-left: 3px solid var(--fail); scroll-margin-top: 40px; }
pre mark.allowed { background: var(--allowed); border-color: var(--timeout); }
pre mark:target { outline: 2px solid var(--focus); outline-offset: -2px; }
.inside details > summary { cursor: pointer; color: var(--dim); font-size: 13.5px; margin-top: 6px; }
ul.tests { list-style: none; margin: 0; padding: 0; font-size: 14px; }
ul.tests ul { list-style: none; padding-left: 22px; border-left: 1px solid var(--line); margin-left: 30px; }
ul.tests li { padding: 2px 0; overflow-wrap: anywhere; }
.inside ul.tests details > summary { color: inherit; font-size: inherit; margin: 0; list-style: none; }
ul.tests .lines { font-size: 12px; border: 1px solid var(--line); border-radius: 9px; padding: 0 8px;
  margin-left: 6px; }
ul.tests pre { margin-left: 70px; }
ul.splats { margin: 0; padding-left: 18px; font-size: 14px; overflow-wrap: anywhere; }
.bars td { padding: 1px 14px 1px 0; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.bars td.n { text-align: right; } .bars td.bar { width: 340px; }

.bars i { display: block; height: 9px; border-radius: 3px; background: var(--bar); min-width: 2px; }
svg.timeline { display: block; width: 100%; height: auto; max-width: 900px; font: 12.5px system-ui, sans-serif; }
svg.timeline text { fill: var(--ink); } svg.timeline .dim { fill: var(--dim); }
svg.timeline rect { fill: var(--bar); } svg.timeline line { stroke: var(--line); } svg.timeline .end { fill: var(--c); }
footer { margin-top: 40px; color: var(--dim); font-size: 13px; }
@media print { .filters { display: none; } pre { max-height: none; } }
"""


def style() -> str:
    """The whole style sheet; the filter hides what has another status than the chosen one."""
    rules = [_RULES]
    for status in STATUSES:
        rules.append(f"#only-{status}:checked ~ .cases .case:not(.{status}) {{ display: none; }}\n")
    rules.append("#only-bad:checked ~ .cases .case:is(.pass, .skip) { display: none; }\n")
    for name in ("all", "bad", *STATUSES):
        rules.append(
            f"#only-{name}:checked ~ .filters label[for=only-{name}]"
            " { border-color: var(--c); box-shadow: inset 0 0 0 1px var(--c); }\n"
            f"#only-{name}:focus-visible ~ .filters label[for=only-{name}] {{ outline: 2px solid var(--focus); }}\n"
        )
    return "".join(rules)
