"""The app's page and its server: Gradio, held to this machine, to its own files, and to one inspection at a time."""

from __future__ import annotations

import importlib
import ipaddress
import os
import signal
import socket
import tempfile
import webbrowser
from contextlib import ExitStack, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import click

from queries.app.desk import Desk
from queries.text import escape_controls
from scanner.config import ScanConfig
from scanner.errors import UserError
from scanner.records import RunFacts

FIRST_PORT, PORTS = 7860, 100  # where a free one is looked for
PICKED = 200  # videos of RESULTS that the list offers
SWEEP_S, MAX_AGE_S = 3600, 86400  # files that were uploaded or shown, until the app ends
GRACE_S = 3  # for open connections, at the end

#: Nothing is loaded from elsewhere, whatever the library or a name in an archive asks for. Gradio's own page is
#: made of inline scripts, and compiles its templates.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


def serve(
    settings: ScanConfig, results: str | None, host: str, port: int | None, reviewer: str, *, open_browser: bool
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Raises UserError where RESULTS, model or port can't be had, and ImportError where Gradio can't.
    """
    RunFacts.of(settings)  # a wrong name is told now, not after the first upload
    with ExitStack() as stack:
        # SIGTERM ends it as Ctrl-C does, from here on: what is temporary is removed.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepsweep-app-")))
        for name in ("shown", "clips"):
            (folder / name).mkdir()
        _settle(folder / "gradio", [folder / "shown", folder / "clips"])
        desk = stack.enter_context(Desk(results, reviewer, folder / "clips")) if results else None
        listening = stack.enter_context(_bound(host, port))
        server = _server(settings, desk, folder, host)
        port = listening.getsockname()[1]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        click.echo(escape_controls(f"The page is at {address}. Ctrl-C ends it."), err=True)
        if not _is_loopback(host):
            click.echo("Whoever reaches this address can use it: it asks for no password.", err=True)
        if open_browser:
            webbrowser.open(address)
        with suppress(KeyboardInterrupt):  # which uvicorn raises anew when it is through; the usual end
            server.run(sockets=[listening])


def _settle(folder: Path, shown: list[Path]) -> None:
    """Load Gradio, which reads these as it is loaded: it keeps its files here, and tells nobody that it runs.

    shown: folders whose files it serves as they are; of any other file it would keep a copy for a day.
    """
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
    importlib.import_module("gradio").set_static_paths(shown)


def _server(settings: ScanConfig, desk: Desk | None, folder: Path, host: str) -> Any:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from gradio.themes import Default

    #: FastAPI's own pages about the interface load scripts from a CDN.
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    server = uvicorn.Server(
        uvicorn.Config(
            _Guarded(site, _names(host)),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    font = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Arial", "sans-serif")
    gr.mount_gradio_app(
        site,
        _page(settings, desk, folder, _is_loopback(host), lambda: server.should_exit),
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=settings.max_video_size,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=Default(font=font, font_mono=("ui-monospace", "Menlo", "Consolas", "monospace")),
        css=_asset("app.css"),
        head=f"<script>{_asset('app.js')}</script>",
    )
    return server


def _page(settings: ScanConfig, desk: Desk | None, folder: Path, any_path: bool, stopping: Any) -> Any:
    import gradio as gr

    from queries.app.inspect_tab import inspect_tab
    from queries.app.review_tab import review_tab

    with gr.Blocks(title="deepsweep", analytics_enabled=False, delete_cache=(SWEEP_S, MAX_AGE_S)) as page:
        page.queue(max_size=20)
        with gr.Tabs(selected="review" if desk else "inspect"):
            with gr.Tab("Inspect", id="inspect"):
                inspect_tab(settings, folder / "shown", lambda: desk.videos(PICKED) if desk else [], any_path, stopping)
            if desk:
                with gr.Tab("Review", id="review"):
                    review_tab(desk, folder / "shown", page)
    return page


def _asset(name: str) -> str:
    return (resources.files("queries.app") / name).read_text("utf-8")


# --- who may ask ------------------------------------------------------------------------------------------


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _names(host: str) -> set[str] | None:
    """The names under which a browser may ask for the page; None for any."""
    return {"127.0.0.1", "localhost", "[::1]", host} if _is_loopback(host) else None


def _bound(host: str, port: int | None) -> socket.socket:
    """A socket that listens; at the first free port where none is asked for. Raises UserError."""
    ports = [port] if port else range(FIRST_PORT, FIRST_PORT + PORTS)
    problem = ""
    for candidate in ports:
        listening = None
        try:
            family, kind, proto, _, where = socket.getaddrinfo(
                host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, kind, proto)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen(128)
            return listening
        except OSError as error:
            problem = error.strerror or str(error)
            if listening is not None:
                listening.close()
            if isinstance(error, socket.gaierror):
                break
    which = f"port {port}" if port else f"any port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise UserError(f"The app can't listen at {host}, {which}: {problem}. Choose another --host or --port.")


class _Guarded:
    """An ASGI application in front of another: sends the policy along, and refuses questions under a foreign name.

    A page of the internet whose name was pointed at this machine asks under that name, and is turned away; so is one
    that sends a form or a file here from its own address.
    """

    def __init__(self, inner: Any, names: set[str] | None) -> None:
        self.inner, self.names = inner, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.inner(scope, receive, send)
            return
        if not self._is_own(scope["headers"]):
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 421, "headers": []})
                await send({"type": "http.response.body", "body": b"This page answers under its own address only."})
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        await self.inner(scope, receive, guarded)

    def _is_own(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a question was asked under one of the names, and by none but a page under one of them."""
        if self.names is None:
            return True
        given = {name: value.decode("latin-1").lower() for name, value in headers}
        asked, page = given.get(b"host", ""), given.get(b"origin")
        under = [asked] if page is None else [asked, page.partition("://")[2]]
        return all(name in self.names or name.rpartition(":")[0] in self.names for name in under)
