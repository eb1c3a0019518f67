"""Other people's feedback in their formats, and prefloop's own: read into a store (`import_file`), written from one
(`export_file`). docs/data.md has every format with examples.

A row's way in: `containers` (lines, arrays, CSV, Parquet, folders) → a format's reader (`table`) → items (`items`:
compared, labelled, demonstrated, asked) → records (`recorder`) → the store (`imports`). `reading` goes as far as
records, with a large file in a process of its own (`apart`). The way out is the same backwards (`exports`, a format's
writer, `writing`).
"""

from ..format_names import ExportFormat, Format
from .exports import ExportReport, export_file
from .imports import import_file
from .reading import ImportReport, read_file
from .sheet import write_sheet

__all__ = [
    "ExportFormat",
    "ExportReport",
    "Format",
    "ImportReport",
    "export_file",
    "import_file",
    "read_file",
    "write_sheet",
]
