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
    # One run compares nothing, and its page is no comparison's.
    compares = len(sections) > 1 or any(section.get("tiles") or section.get("pairs") for section in sections)
    heading = "Few-step students, compared" if compares else "A few-step student"
    words = {"heading": heading, "compares": compares, "version": amd_plugin.__version__}
    return template.render(sections=sections, script=script, policy=policy, **words)
