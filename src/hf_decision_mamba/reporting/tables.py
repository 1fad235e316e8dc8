"""Tables as plain text, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a table as plain text: heads, a rule, rows.

    Args:
        heads: of the columns; without any there is no rule either.
        rows: of as many cells each.
        left: how many of the first columns stand on the left; the others stand on the right.
    """
    lines = [heads, *rows] if heads else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows] if heads else rows
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def markdown_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int | None = None) -> list[str]:
    """Return the lines of a table in Markdown: heads, a rule, rows.

    Args:
        heads: of the columns.
        rows: of as many cells each.
        left: how many of the first columns stand on the left, the others on the right; all of them, if not given.
    """
    rule = ["---" if left is None or place < left else "---:" for place in range(len(heads))]
    return [f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in (heads, rule, *rows)]


def count_in_words(count: int, what: str) -> str:
    """Return a number of things, with an s where they are several."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"
