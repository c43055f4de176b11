"""The table of families and verbs as a page of the docs."""

from __future__ import annotations


def page(found: dict) -> str:
    return ""
