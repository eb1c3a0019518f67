"""The pages in a real browser. A package, so that the browser of its conftest.py is closed after its last test."""
