"""A page that stands alone, from a room's template and plain values: the one place where HTML is made.

Everything that reaches a page goes through `visible` (by Jinja's `finalize`) and is then escaped (autoescape): a
template cannot forget it.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from alignkeep.charts.text import interval, p_value, percent, points, visible

if TYPE_CHECKING:
    from jinja2 import Environment


def render(module: str, template: str, page: object, script: str | None = None, **names: object) -> str:
    """One HTML document that loads nothing: `page`, and what else is named, in the template that lies beside the module
    of this name. Of scripts it runs at most the one that lies there too. Equal pages give equal bytes."""
    style, code = _packaged(__name__, "style.css"), None if script is None else _packaged(module, script)
    runs = "" if code is None else f" script-src '{_hashed(code)}';"
    policy = f"default-src 'none'; style-src '{_hashed(style)}';{runs} base-uri 'none'; form-action 'none'"
    given = {**names, "script": None if code is None else Markup(code), "style": Markup(style), "policy": policy}
    return _environment(module).get_template(template).render(page=page, **given)


def _hashed(text: str) -> str:
    """As a content security policy names an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _environment(module: str) -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def load(name: str) -> str:
        return _packaged(__name__ if name == "macros.html" else module, name)

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "interval": interval, "points": points, "p_value": p_value}
    return environment


def _shown(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _packaged(module: str, name: str) -> str:
    return resources.files(module.rpartition(".")[0]).joinpath(name).read_text(encoding="utf-8")
