"""The chat page: one file that loads nothing from elsewhere."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files


@cache
def page(needs_key: bool) -> tuple[str, str]:
    """The page's HTML, and the policy that lets nothing run or load but what is in it.

    Args:
        needs_key: Whether it asks for an API key.
    """
    html = (files("lorafit.serve") / "page.html").read_text(encoding="utf-8")
    html = html.replace('data-needs-key=""', f'data-needs-key="{"yes" if needs_key else "no"}"')
    script, style = (_hash(re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[0]) for tag in ("script", "style"))
    policy = f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:"
    return html, f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
