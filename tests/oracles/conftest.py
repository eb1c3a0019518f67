"""Published trainers agree with every layout of a pass."""

from tests.layouts import layout  # noqa: F401
