"""The frame of charjax's pages: one HTML file that holds its style, its scripts and its data.

`page.html` is the frame, `page.css` the style, and `parts.js` what the scripts of all pages use. A
page adds a body, an HTML file, and scripts.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import NamedTuple

from charjax.export.files import template


class Page(NamedTuple):
    """The templates of a page.

    Attributes:
      body: the HTML file of its body.
      scripts: the JavaScript files that it runs, in this order.
      connect: to what the scripts may connect, a source of the Content-Security-Policy.
    """

    body: str
    scripts: tuple[str, ...]
    connect: str = "'none'"

    @property
    def policy(self) -> str:
        """The Content-Security-Policy: only these scripts run, and nothing else is loaded."""
        scripts = " ".join(_hash(_content(name)) for name in self.scripts)
        return (
            f"default-src 'none'; script-src {scripts}; style-src {_hash(_content('page.css'))}; "
            f"img-src data:; connect-src {self.connect}; base-uri 'none'; form-action 'none'"
        )

    def html(self, data: str = "") -> bytes:
        """The page.

        Args:
          data: script elements that hold data, from `json_element` or `bytes_element`.
        """
        scripts = [f"<script>{_content(name)}</script>" for name in self.scripts]
        text = template(
            "page.html",
            policy=self.policy,
            style=_content("page.css"),
            body=template(self.body),
            scripts="\n".join([data, *scripts]),
        )
        return text.encode()


def json_element(name: str, value: object) -> str:
    """A script element with a JSON value, for `JSON.parse` of its text."""
    content = json.dumps(value, allow_nan=False).replace("<", "\\u003c")  # no end tag
    return f'<script type="application/json" id="{name}">{content}</script>'


def bytes_element(name: str, content: bytes) -> str:
    """A script element with bytes in base64, for `embeddedBytes` of `parts.js`."""
    encoded = base64.b64encode(content).decode()
    return f'<script type="application/octet-stream" id="{name}">\n{encoded}\n</script>'


def _content(name: str) -> str:
    """What is between the tags of a style or script element."""
    return f"\n{template(name)}"


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
