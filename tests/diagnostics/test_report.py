import base64
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from pyro_lvm.diagnostics.report import Section, write_report

VOID = {"meta", "img"}


class Parser(HTMLParser):
    """Checks that tags close, and gathers cells, texts and attributes."""

    def __init__(self, document):
        super().__init__()
        self.open, self.cells, self.texts, self.attributes = [], [], [], []
        self.feed(document)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def picture():
    figure = Figure(figsize=(2, 1), dpi=100)
    figure.subplots().plot([0, 1], [0, 1])
    return figure


def write(tmp_path, *sections, title="Report"):
    path = write_report(tmp_path / "report.html", title, sections)
    return path.read_text(encoding="utf-8")


def test_needs_nothing_else(tmp_path):
    document = write(tmp_path, Section("Picture", "Words.", figure=picture(), code="x = 1"))
    parser = Parser(document)
    assert "http" not in document
    assert "<script" not in document
    assert "prefers-color-scheme: dark" in document
    links = [value for _, name, value in parser.attributes if name in ("src", "href")]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)


def test_pictures_decode(tmp_path):
    document = write(tmp_path, Section("A", figure=picture()), Section("B", figure=picture()))
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', document)
    assert len(found) == 2
    for data in found:
        (tmp_path / "picture.png").write_bytes(base64.b64decode(data, validate=True))
        assert imread(tmp_path / "picture.png").shape[:2] == (100, 200)


def test_text_is_escaped(tmp_path):
    nasty = '<b onclick="x">&amp;</b>'
    table = pd.DataFrame({nasty: [nasty]}, index=[nasty])
    document = write(tmp_path, Section(nasty, nasty, table, picture(), nasty), title=nasty)
    assert "<b" not in document.replace("<body", "")
    parser = Parser(document)
    assert parser.texts.count(nasty) == 8  # the title twice, heading, text, code, three cells
    assert ("img", "alt", nasty) in parser.attributes


def test_paragraphs_and_code(tmp_path):
    document = write(tmp_path, Section("A", "One\nline.\n\nTwo.", code="\nif x:\n    y\n"))
    assert "<p>One\nline.</p>\n<p>Two.</p>" in document
    assert "<pre><code>if x:\n    y</code></pre>" in document


def test_numbers(tmp_path):
    table = pd.DataFrame(
        {
            "elpd": [-1119.1931, -0.04],
            "share": [0.51234, np.nan],
            "count": [3, 12000],
            "whole": [1.0, 0.0],
            "tiny": [1.234e-9, 0.0],
            "kind": ["exact", None],
        },
        index=pd.Index(["a", "b"], name="name"),
    )
    parser = Parser(write(tmp_path, Section("T", table=table)))
    head, first, second = np.reshape(parser.cells, (3, 7)).tolist()
    assert head == ["name", *table.columns]
    assert first == ["a", "-1,119.2", "0.5123", "3", "1", "1.23e-09", "exact"]
    assert second == ["b", "0.0", "–", "12,000", "0", "0", "–"]
    assert sum(value == "number" for _, name, value in parser.attributes if name == "class") == 3 * 5


def test_index_that_only_counts_is_left_out(tmp_path):
    table = pd.DataFrame([[1, 2], [3, 4]], columns=["same", "same"])
    assert Parser(write(tmp_path, Section("T", table=table))).cells == ["same", "same", "1", "2", "3", "4"]


def test_contents_of_long_reports(tmp_path):
    assert "<nav>" not in write(tmp_path, Section("A"))
    document = write(tmp_path, Section("A"), Section("B"), Section("C"))
    assert [document.count(f'{k}="{p}part-2"') for k, p in (("href", "#"), ("id", ""))] == [1, 1]


def test_all_or_nothing(tmp_path):
    write(tmp_path, Section("Old"))

    class Broken(Figure):
        def savefig(self, *args, **kwargs):
            raise RuntimeError("no ink")

    with pytest.raises(RuntimeError, match="no ink"):
        write(tmp_path, Section("New", figure=Broken()))
    assert "Old" in (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_makes_folders(tmp_path):
    path = write_report(str(tmp_path / "a" / "b" / "r.html"), "T", [])
    assert path.exists()


def test_name(tmp_path):
    with pytest.raises(ValueError, match=r"write_report: expected a name that ends in \.html; got 'report\.pdf'"):
        write_report(tmp_path / "report.pdf", "T", [])
