"""Reads a finished run folder and writes one self-contained HTML page. Imports no torch and no other part."""

from prefloop.report.page import write_report

__all__ = ["write_report"]
