"""Serve the site's page: plain files that read and change everything through the REST API, as any other client does."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "web"
ADDRESS = "/web"
POLICY = "; ".join(
    (
        "default-src 'self'", "img-src 'self' blob:", "object-src 'none'", "base-uri 'none'", "form-action 'self'",
        "frame-ancestors 'none'",
    )
)  # fmt: skip
"""The Content-Security-Policy of every answer: nothing comes from another host, and no script stands in a page."""


class _Files(StaticFiles):
    """Serves the page's files, which a browser keeps and asks about at each visit: a new version shows at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


def serve_page(app: FastAPI) -> None:
    """Serve the page at `/`, and its files below `ADDRESS`."""

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount(ADDRESS, _Files(directory=FOLDER), name="web")
