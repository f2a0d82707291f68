"""Parts of the HTML pages: markup that escapes by itself, numbers in words, data for scripts, the frame."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, TypeAlias

_VOID = {"br", "hr", "img", "input", "link", "meta"}
_FRAGILE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
# Nothing may be fetched, whatever a name or an error message contains.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri"
    " 'none'; form-action 'none'"
)


class Html(str):
    """Markup: not escaped again."""

    __slots__ = ()


Child: TypeAlias = "str | None | Iterable[Child]"


def tag(name: str, /, *children: Child, **attributes: Any) -> Html:
    """An element. Children are escaped unless they are Html; None is left out.

    Attributes: `class_` is class, `data_level` is data-level, True has no value, None and False are left out.
    """
    written = "".join(
        _attribute(key, value)
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{joined(children)}</{name}>")


def _attribute(key: str, value: Any) -> str:
    key = key.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'


def joined(children: Child) -> Html:
    if children is None:
        return Html("")
    if isinstance(children, str):
        return children if isinstance(children, Html) else Html(html.escape(children))
    return Html("".join(joined(child) for child in children))


def data_script(identifier: str, data: Any) -> Html:
    """JSON for a script, which nothing in it can end early. NaN and infinity become null."""
    text = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, code in _FRAGILE.items():
        text = text.replace(character, code)
    return tag("script", Html(text), type="application/json", id=identifier)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def asset(name: str) -> str:
    return (resources.files("pcl_ray.report.drawing") / "assets" / name).read_text(encoding="utf-8")


def document(title: str, *body: Child, policy: str = _POLICY, script: str = "report.js") -> str:
    """A whole page with its style and script. policy: what it may fetch, where it may fetch anything."""
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),  # else browsers ask the server for one
        tag("style", Html(asset("report.css"))),
    )
    code = tag("script", Html(asset(script)))
    return (
        "<!doctype"
        f" html>\n{tag('html', tag('head', head), tag('body', tag('main', *body), code), lang='en')}\n"
    )


def section(identifier: str, title: str, *children: Child, lead: str = "") -> Html:
    return tag(
        "section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, *children, id=identifier
    )


def table(header: Sequence[Child], rows: Iterable[Sequence[Child]], class_: str = "") -> Html:
    """A table in a frame that scrolls by itself where it is too wide. A cell that is markup of a td already
    stays as it is; the first of each row is its heading.
    """
    top = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in header])) if header else None
    body = tag(
        "tbody",
        [tag("tr", tag("th", row[0], scope="row"), [_cell(cell) for cell in row[1:]]) for row in rows],
    )
    return tag("div", tag("table", top, body, class_=class_ or None), class_="scroll", tabindex="0")


def _cell(cell: Child) -> Html:
    return cell if isinstance(cell, Html) and cell.startswith("<td") else tag("td", cell)
