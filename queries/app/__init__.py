"""`deepsweep app`: a page in the browser to look at one video, and to review what a scan flagged."""

from __future__ import annotations

import getpass
from typing import Any

import click

from scanner.config import ScanConfig, load_config_file
from scanner.errors import UserError


@click.command("app")
@click.option(
    "--results",
    envvar="DEEPSWEEP_RESULTS",
    show_envvar=True,
    help="Review what is flagged in these results: a folder or s3://bucket/prefix.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port to listen at  [default: the first free one from 7860]"
)
@click.option("--reviewer", help="Name that reviews are kept under  [default: the login name]")
@click.option("--model", metavar="NAME|DIR", help="Model that inspects  [default: as for scan]")
@click.option("--no-browser", is_flag=True, help="Do not open the page in a browser.")
def app(
    results: str | None, host: str, port: int | None, reviewer: str | None, model: str | None, no_browser: bool
) -> None:
    """Look at one video, or review what a scan flagged, in the browser.

    Inspect: upload or name a video; verdict, blinks, micro-expressions, heatmaps and plots are those of a scan
    with the settings of deepsweep.toml. Review, with --results: the flagged clips by score, played, with faces
    and heatmaps beside; what you say of each is appended to the results, as the view `reviews`.

    The page loads nothing from elsewhere, and is reached from this machine only. It asks for no password, so
    with another --host put a proxy before it that does. Needs pip install deepsweep[app]. Ctrl-C ends it.

    \b
    One video:
      deepsweep app
    The morning after:
      deepsweep app --results results --reviewer anna
      deepsweep query reviewed --results results
    """
    from queries.app.server import serve

    given: dict[str, Any] = load_config_file(None) | ({"model": model} if model else {})
    try:
        serve(ScanConfig(**given), results, host, port, reviewer or _login_name(), open_browser=not no_browser)
    except ImportError as error:
        raise UserError(f"The app needs Gradio ({error}): pip install 'deepsweep[app]'.") from None


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user, as in many containers
        raise UserError("This login has no name: give --reviewer one.") from None
