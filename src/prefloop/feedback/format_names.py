"""The names of the formats that are read and written: alone here, so that the command line starts quickly."""

from __future__ import annotations

from typing import Literal

Format = Literal[
    "dialogue",
    "comparison",
    "unpaired",
    "demonstration",
    "prompt",
    "chat",
    "sharegpt",
    "alpaca",
    "alpacaeval",
    "oasst",
    "sheet",
    "prefloop",
]
"""What is read."""

ExportFormat = Literal[
    "prefloop",
    "comparison",
    "unpaired",
    "demonstration",
    "prompt",
    "dialogue",
    "sharegpt-comparison",
    "sharegpt-unpaired",
    "sharegpt-demonstration",
    "alpaca-comparison",
    "alpaca-unpaired",
    "alpaca-demonstration",
    "alpacaeval",
    "oasst",
]
"""What is written."""
