"""A report as one HTML file that needs nothing else: pictures inside, no scripts, no network."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Section", "write_report"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #63686f; --paper: #fbfbf9; --line: #dcdcd6; --box: #f1f1ec; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e5e7; --soft: #9aa0a8; --paper: #17191c; --line: #35393f; --box: #22252a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 58rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { max-width: 44rem; overflow-wrap: anywhere; }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .2em; }
figure { margin: 1.2rem 0; padding: .6rem; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.wide { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; }
td { min-width: 4rem; }
th, .number { white-space: nowrap; }
.number { text-align: right; }
pre { overflow-x: auto; padding: .9rem 1rem; background: var(--box); border-radius: 8px; font-size: .85rem; }
@media print { body { max-width: none; padding: 0; } figure, pre, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of a report; what is empty is left out, the rest stands in this order.

    Attributes:
        heading: One line.
        text: Paragraphs, parted by empty lines.
        table: A table; its index is shown unless it only counts the rows.
        figure: A picture.
        code: Code that the section shows.
    """

    heading: str
    text: str = ""
    table: pd.DataFrame | None = None
    figure: Figure | None = None
    code: str = ""


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write a report to one file, all or nothing; folders on the way are made, an older file is replaced.

    Args:
        path: The file to write, ending in ".html".
        title: One line.
        sections: What the report says, in order.

    Returns:
        The path.

    Raises:
        ValueError: The file's name does not end in ".html" or ".htm".

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(f"{folder}/report.html", "Two fits", [Section("Result", "Both agree.")]).name
        'report.html'
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"write_report: expected a name that ends in .html; got '{path.name}'.")
    document = _document(title, sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fresh.write_text(document, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _document(title: str, sections: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#part-{i}">{escape(s.heading)}</a></li>' for i, s in enumerate(sections, start=1))
    contents = f"<nav><ul>{links}</ul></nav>\n" if len(sections) > 2 else ""
    body = "\n".join(_section(section, i) for i, section in enumerate(sections, start=1))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{contents}{body}\n</body>\n</html>\n"
    )


def _section(section: Section, number: int) -> str:
    parts = [f'<section id="part-{number}">', f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(p.strip())}</p>" for p in re.split(r"\n\s*\n", section.text) if p.strip()]
    if section.table is not None:
        parts.append(_table(section.table))
    if section.figure is not None:
        parts.append(_picture(section.figure, section.heading))
    if section.code:
        parts.append(f"<pre><code>{escape(section.code.strip(chr(10)))}</code></pre>")
    return "\n".join([*parts, "</section>"])


def _picture(figure: Any, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></figure>'


def _table(table: Any) -> str:
    """A DataFrame as HTML, numbers right-aligned, each column with as many decimals as its largest entry needs."""
    named = table.index.name is not None or list(table.index) != list(range(len(table)))
    columns = [_column(table.iloc[:, i]) for i in range(table.shape[1])]
    heads = ["<th></th>" if table.index.name is None else _cell("th", table.index.name)] if named else []
    heads += [_cell("th", name, number) for name, (_, number) in zip(table.columns, columns, strict=True)]
    lines = []
    for i, label in enumerate(table.index):
        cells = [_cell("th", label)] if named else []
        cells += [_cell("td", values[i], number) for values, number in columns]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _cell(tag: str, value: Any, number: bool = False) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"<{tag}{' class=number' if number else ''}>{escape(text)}</{tag}>"


def _column(series: Any) -> tuple[list[str], bool]:
    """The column's texts, and whether they are numbers."""
    if series.dtype.kind not in "iuf":
        return ["–" if value is None or value != value else str(value) for value in series], False
    values = [float(value) for value in series]
    finite = [abs(value) for value in values if math.isfinite(value)]
    largest = max(finite, default=0.0)
    if largest and not 1e-3 <= largest < 1e9:
        return [_number(value, ".3g") for value in values], True
    whole = all(value == round(value) for value in finite)
    decimals = 0 if whole else min(max(3 - math.floor(math.log10(largest)), 1), 6)
    return [_number(value, f",.{decimals}f") for value in values], True


def _number(value: float, form: str) -> str:
    if math.isnan(value):
        return "–"
    text = format(value, form)
    return text.removeprefix("-") if not text.strip("-0.,") else text  # no "-0.0"
