"""Tables as plain text."""

from __future__ import annotations


def table_lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table as plain text: the first column on the left, the others on the right."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    aligned = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (heads, *rows)
    ]
    return [aligned[0].rstrip(), "  ".join("-" * width for width in widths), *(line.rstrip() for line in aligned[1:])]


def count_in_words(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"
