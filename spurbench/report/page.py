"""One HTML file with everything in it: data, scripts, styles, pictures. It opens without a network."""

import base64
import hashlib
import json
from importlib.resources import files
from string import Template
from typing import Any

from spurbench.errors import ConfigError, install_line

__all__ = ["page", "plotting_library", "script_json"]


def page(document: dict[str, Any]) -> str:
    """The page of a document that ``page_data`` made, with ``galleries`` and ``notes`` added.

    Nothing from data becomes markup: the page's script sets it as text, and a policy in the page lets no other script
    run and nothing be loaded.

    Raises:
        ConfigError: plotly is not installed.
    """
    ours = files("spurbench.report")
    scripts = {"plotly": plotting_library(), "script": (ours / "page.js").read_text(encoding="utf-8")}
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts.values())
    return Template((ours / "page.html").read_text(encoding="utf-8")).substitute(
        scripts,
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
        style=(ours / "page.css").read_text(encoding="utf-8"),
        data=script_json(document),
    )


def plotting_library() -> str:
    """plotly.js, as the Python package carries it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError(f"the report's plots need plotly; install it with: {install_line('plots')}") from error
    script: str = get_plotlyjs()
    return script.replace("\r\n", "\n")  # as a browser reads it, so that the hash is of the same bytes


def script_json(document: Any) -> str:
    """JSON that no HTML parser takes for markup, whatever the strings in it are."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
