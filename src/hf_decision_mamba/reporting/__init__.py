"""Reporting: how everything is told: lines, tables, figures, the files of a run, versions."""
