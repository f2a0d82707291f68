"""Pages of ours in MLflow's server: MLflow's own way of extending it, an app that `mlflow server --app-name`
finds by an entry point of the group `mlflow.app`.

Being under the same address, a page of ours can leave in the browser what MLflow's pages look for there.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from importlib import metadata
from typing import Any

APP_NAME = "pcl_ray"  # of the entry point in pyproject.toml
PATH = "/pcl"  # of our pages


@dataclass(frozen=True)
class Page:
    """What is answered to a request."""

    content: bytes
    kind: str = "text/html; charset=utf-8"


def installed() -> bool:
    """Whether MLflow finds the app: what was installed before there was one has no entry point for it."""
    return bool(metadata.entry_points(group="mlflow.app", name=APP_NAME))


def served(address: str, timeout_s: float = 5.0) -> bool:
    """Whether the MLflow server at this address has our pages. One of another machine may not."""
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}{PATH}", timeout=timeout_s) as answer:
            return answer.status == 200 and b"pcl_ray" in answer.read(2000)
    except (OSError, ValueError, HTTPException):
        return False


def with_pages(page_of: Callable[[str], Page | None]) -> Any:
    """MLflow's app with our pages.

    page_of: gives the page for what follows PATH in an address ("" for the first), None where there is none.
    """
    from mlflow.server.fastapi_app import create_fastapi_app
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        page = await run_in_threadpool(page_of, request.path_params["rest"].strip("/"))
        if page is None:
            return Response("there is no such page", status_code=404, media_type="text/plain")
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(page.content, media_type=page.kind, headers=headers)

    app = create_fastapi_app()
    # before the routes of MLflow, the last of which takes every address
    app.router.routes.insert(0, Route(f"{PATH}{{rest:path}}", answer, methods=["GET"]))
    return app
