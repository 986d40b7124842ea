"""The HTML, CSS and JavaScript files of the pages, and how they are filled.

A page carries its style and its script inside itself and forbids everything else by a content
security policy that names both by hash: nothing is fetched, and text that looks like a script is
text. Must not know what the pages show.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from string import Template
from typing import Any


@cache
def template_file(name: str) -> str:
    """Return the text of a file of `templates/`."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def filled(name: str, script: str, values: Mapping[str, str]) -> str:
    """Fill a page.

    Args:
        name, script: files of `templates/`.
        values: what goes into the page, already escaped.
    """
    style, code = template_file("page.css"), template_file(script)
    return Template(template_file(name)).substitute(
        values, style=style, script=code, policy=_policy(style, code)
    )


def escaped(text: str) -> str:
    """Return text that is safe between tags and inside quoted attributes."""
    # HTML has no place for NUL, and a parser would drop or replace it.
    return html.escape(text, quote=True).replace("\0", "\ufffd")


def embedded_json(content: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    # Inside a JSON string an escaped character is the character.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
