"""The page at `/`, with which people write with the models of the server."""

from __future__ import annotations

from charjax.export.page import Page

_PAGE = Page("write.html", ("parts.js", "write.js", "remote.js"), connect="'self'")
PAGE = _PAGE.html()  # one document, which asks the server that it comes from and nothing else
PAGE_HEADERS = {
    # Also keeps the page out of frames of other pages, which the policy inside the page cannot.
    "Content-Security-Policy": f"{_PAGE.policy}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
