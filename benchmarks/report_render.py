"""Sections to Markdown and to one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report_sections import Cell, Section

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0 }
th, td { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left; white-space: nowrap }
td[data-key] { text-align: right; font-variant-numeric: tabular-nums }
th { background: #f2f2f2 } img { max-width: 100%; height: auto }
p { white-space: pre-line } .bad { border-left: 4px solid #d62728; padding-left: .8rem }
pre { background: #f6f6f6; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere }
"""


def markdown(title: str, parts: Sequence[Section], pictures: Mapping[str, bytes]) -> str:
    """The report as Markdown; pictures are linked by their file names beside it."""
    out = [f"# {_plain(title)}"]
    for part in parts:
        out.append(f"## {part.title}")
        out += [_plain(p).replace("\n", "  \n") for p in part.paragraphs]
        if part.rows:
            lines = ["| " + " | ".join(part.head) + " |", "|" + " --- |" * len(part.head)]
            lines += ["| " + " | ".join(_in_table(c) for c in row) + " |" for row in part.rows]
            out.append("\n".join(lines))
        if part.picture in pictures:
            out.append(f"![{part.title}]({part.picture})")
        if part.notes:
            out.append("\n".join(f"- {_plain(n)}".replace("\n", "  \n  ") for n in part.notes))
        out += [_fenced(c) for c in part.code]
    return "\n\n".join(out) + "\n"


def _plain(text: str) -> str:
    # Answers quoted in a verdict may hold anything; mark-up in them must not become the page's.
    return text.replace("<", "&lt;").replace("[", "\\[").replace("`", "\\`").replace("*", "\\*")


def _in_table(cell: Cell) -> str:
    return _plain(cell.text).replace("|", "\\|").replace("\n", " ")


def _fenced(code: str) -> str:
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}\n{code}\n{fence}"


def page(
    title: str, parts: Sequence[Section], pictures: Mapping[str, bytes], summary: dict[str, Any]
) -> str:
    """The report as one HTML file; `summary` is embedded, and numbers carry their path in it."""
    body = []
    for part in parts:
        body.append(f"<h2>{html.escape(part.title)}</h2>")
        body += [f"<p{_class(p)}>{html.escape(p)}</p>" for p in part.paragraphs]
        if part.rows:
            head = "".join(f"<th>{html.escape(h)}</th>" for h in part.head)
            rows = "\n".join(
                "<tr>" + "".join(_td(cell) for cell in row) + "</tr>" for row in part.rows
            )
            body.append(f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>")
        if part.picture in pictures:
            data = base64.b64encode(pictures[part.picture]).decode()
            body.append(f'<img alt="{html.escape(part.title)}" src="data:image/png;base64,{data}">')
        if part.notes:
            items = "\n".join(f"<li{_class(n)}>{html.escape(n)}</li>" for n in part.notes)
            body.append(f"<ul>\n{items}\n</ul>")
        body += [f"<pre>{html.escape(c)}</pre>" for c in part.code]
    embedded = json.dumps(summary, ensure_ascii=False).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is loaded from anywhere, whatever text an answer holds.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
        + "\n".join(body)
        + f'\n<script type="application/json" id="summary">{embedded}</script>\n</body></html>\n'
    )


def _class(text: str) -> str:
    bad = (
        "REFUSED",
        "RAW ENDPOINT",
        "SUSPECT",
        "DIFFER",
        "NOT explained",
        "NOT COMPARED",
        "NOT THE SAME",
    )
    return " class=bad" if any(word in text for word in bad) else ""


def _td(cell: Cell) -> str:
    key = f' data-key="{html.escape(cell.key)}"' if cell.key else ""
    return f"<td{key}>{html.escape(cell.text)}</td>"
