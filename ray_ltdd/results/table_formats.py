"""A table as text, Markdown, LaTeX or HTML. A missing number is an empty cell in all of them."""

import html
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from string import ascii_lowercase
from typing import Literal

from ray_ltdd.results.tables import Cell, PaperTable, TableRow

Format = Literal["text", "markdown", "latex", "html"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": "$-$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def render(table: PaperTable, style: Format) -> str:
    """Return the table in the wanted format, ending with a newline.

    Args:
        table: of `paper_table`.
        style: `text` for a terminal; `markdown` as GitHub reads it; `latex`, a table environment that needs the package booktabs; `html`, a
            `<table>` with a caption, styled by the classes `ours`, `difference` and `notes`.
    """
    formats: dict[Format, Callable[[PaperTable], str]] = {"text": _text, "markdown": _markdown, "latex": _latex, "html": _html}
    return formats[style](table)


def letter(index: int) -> str:
    """Return the letter of a footnote: a, b, ..., z, aa, ab, ..."""
    return (letter(index // 26 - 1) if index >= 26 else "") + ascii_lowercase[index % 26]


def _letters(cell: Cell) -> str:
    return ",".join(letter(mark) for mark in cell.marks)


def _number(cell: Cell, row: TableRow) -> str:
    if cell.percent is None:
        return ""
    if row.kind == "difference":
        return f"{cell.percent:+.1f}".replace("-", "−")
    return f"{cell.percent:.1f}" + (f" ± {cell.deviation:.1f}" if cell.deviation is not None else "")


def _marked(cell: Cell, row: TableRow, pattern: str) -> str:
    number = _number(cell, row)
    return number + pattern.format(_letters(cell)) if number and cell.marks else number


def _blocks(rows: Sequence[TableRow]) -> Iterator[list[TableRow]]:
    for _, block in groupby(rows, key=lambda row: row.kind):
        yield list(block)


def _spans(level: Sequence[str], above: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Equal neighbours of a level, with how many they are; a change in a level above separates them."""
    keys = [(*(other[i] for other in above), text) for i, text in enumerate(level)]
    return [(str(key[-1]), len(list(group))) for key, group in groupby(keys)]


def _text(table: PaperTable) -> str:
    lines = [[row.label, *(_marked(cell, row, " [{}]") for cell in row.cells)] for row in table.rows]
    headings = [["", *level] for level in table.headings]
    widths = [max(len(line[i]) for line in [*headings, *lines]) for i in range(len(headings[0]))]
    shown = [_aligned(line, widths) for line in headings]
    start = 0
    for block in _blocks(table.rows):
        shown += ["-" * (sum(widths) + 2 * len(widths) - 2), *(_aligned(line, widths) for line in lines[start : start + len(block)])]
        start += len(block)
    foot = [f"[{letter(i)}] {sentence}" for i, sentence in enumerate(table.footnotes)]
    return "\n".join([table.title, "", *shown, "", *foot, *table.notes]) + "\n"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]).rstrip()


def _markdown(table: PaperTable) -> str:
    headings = ["<br>".join(level[i] for level in table.headings) for i in range(len(table.headings[0]))]
    lines = [f"| | {' | '.join(headings)} |", "|---|" + "---:|" * len(headings)]
    for row in table.rows:
        label = f"**{row.label}**" if row.kind == "ours" else f"*{row.label}*" if row.kind == "difference" else row.label
        lines.append(f"| {label} | {' | '.join(_marked(cell, row, '<sup>{}</sup>') for cell in row.cells)} |")
    foot = [f"<sup>{letter(i)}</sup> {sentence}  " for i, sentence in enumerate(table.footnotes)]
    return "\n".join([f"**{table.title}**", "", *lines, "", *foot, *(f"{note}  " for note in table.notes)]) + "\n"


def _latex(table: PaperTable) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}}}",
        r"\begin{tabular}{l" + "r" * len(table.headings[0]) + "}",
        r"\toprule",
    ]
    for i, level in enumerate(table.headings):
        spans = _spans(level, table.headings[:i])
        lines.append(" & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{_tex(text)}}}" for text, n in spans)]).strip() + r" \\")
    for block in _blocks(table.rows):
        lines.append(r"\midrule")
        for row in block:
            cells = [_tex(_number(cell, row)) + (f"$^{{{_letters(cell)}}}$" if cell.marks and cell.percent is not None else "") for cell in row.cells]
            lines.append(" & ".join([_tex(row.label), *cells]) + r" \\")
    foot = [rf"$^{{{letter(i)}}}$ {_tex(sentence)}." for i, sentence in enumerate(table.footnotes)]
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\footnotesize " + " ".join([*foot, *(_tex(note) for note in table.notes)]), r"\end{table}"]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _html(table: PaperTable) -> str:
    lines = ['<table class="paper-table">', f"<caption>{html.escape(table.title)}</caption>", "<thead>"]
    for i, level in enumerate(table.headings):
        spans = _spans(level, table.headings[:i])
        cells = "".join(f'<th scope="{"col" if n == 1 else "colgroup"}" colspan="{n}">{html.escape(text)}</th>' for text, n in spans)
        lines.append(f"<tr><td></td>{cells}</tr>")
    lines.append("</thead>")
    for block in _blocks(table.rows):
        lines.append("<tbody>")
        for row in block:
            numbers = "".join(f"<td>{_marked(cell, row, '<sup>{}</sup>')}</td>" for cell in row.cells)
            lines.append(f'<tr class="{row.kind}"><th scope="row">{html.escape(row.label)}</th>{numbers}</tr>')
        lines.append("</tbody>")
    foot = [f"<sup>{letter(i)}</sup> {html.escape(sentence)}" for i, sentence in enumerate(table.footnotes)]
    lines += ["</table>", f'<p class="notes">{"<br>".join([*foot, *map(html.escape, table.notes)])}</p>']
    return "\n".join(lines) + "\n"
