"""Fixtures of the tests of exports."""

from tests.browser import browser

__all__ = ["browser"]
