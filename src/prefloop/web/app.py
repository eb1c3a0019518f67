"""The server: what holds for every request, the API, the pages."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware import Middleware

from prefloop import __version__
from prefloop.feedback.store import Store

from . import batches, data, errors, pages, people, session, tasks
from .security import Bodies, OwnHost, OwnOrigin, SecurityHeaders
from .settings import Settings
from .state import State

ABOUT = (
    "Everything that prefloop's pages do. People's browsers send a session's cookie, scripts an "
    '`Authorization: Bearer TOKEN`. Every error is `{"error": {"what": …, "remedy": …}}`.'
)
TAGS = {
    "Signing in": "How a browser comes in. Scripts need none of it: an administrator makes them a token.",
    "Labelling": "For everybody who is signed in; each sees their own tasks only.",
    "People": "For administrators.",
    "Batches": "For administrators: what is asked, and by which guidelines.",
    "Data": "For administrators.",
}


def make_app(store: Store, settings: Settings) -> FastAPI:
    """The application of one project's store. The caller closes the store when the server has stopped."""
    app = FastAPI(
        title="prefloop",
        version=__version__,
        description=ABOUT,
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
        middleware=[
            Middleware(SecurityHeaders, settings),
            Middleware(errors.Failures),
            Middleware(OwnHost, settings),
            Middleware(OwnOrigin, settings),
            Middleware(Bodies, settings),
        ],
    )
    app.state.prefloop = State.of(store, settings)
    errors.install(app)
    for part in (session, tasks, people, batches, data, pages):
        app.include_router(part.router)
    return app
