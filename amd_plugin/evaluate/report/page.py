"""The page itself: sections become HTML that asks for nothing outside of itself, and runs one script of its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader

import amd_plugin

_TEMPLATES = Environment(loader=PackageLoader("amd_plugin", "templates"), autoescape=True)


def render(sections: Sequence[Mapping[str, Any]]) -> str:
    """The HTML of `sections`, whose keys are those that report.html.j2 reads.

    Its content security policy lets no request out, and of scripts only the slider's run: whatever a prompt or a name contains.
    """
    script = _TEMPLATES.get_template("slider.js").render() if any(len(s.get("over_time") or ()) > 1 for s in sections) else ""
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    template = _TEMPLATES.get_template("report.html.j2")
    return template.render(sections=sections, version=amd_plugin.__version__, script=script, policy=policy)
