"""`deepsweep train`: from prepared face tracks to a model folder, with figures on sources that it never saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models.registry import DEFAULT_MODEL, load_spec
from models.spec import BACKBONES, DEFAULT_BACKBONE, INPUT_SIZES, Architecture, ModelError, ModelSpec
from scanner.errors import EXIT_USAGE, UserError

if TYPE_CHECKING:
    from models.network import ClipNet
    from models.training.fit import Progress

JUDGED_AFTER = 600  # steps: the first few hundred look like guessing even where the network learns
GUESSING = 0.53  # of the frames right: what a dead network reaches by chance over a hundred small batches


@click.command()
@click.argument("prep", nargs=-1, required=True, metavar="PREP...")
@click.option("--out", required=True, metavar="RUN", help="Folder for the state, the curves and the model.")
@click.option("--name", default="mine", show_default=True, help="Name of the model: what results will call it.")
@click.option(
    "--epochs", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Passes over genuine stills."
)
@click.option(
    "--video-epochs",
    type=click.FloatRange(min=0.01),
    default=0.5,
    show_default=True,
    help="Passes over stills and videos together, with labelled fakes.",
)
@click.option(
    "--video-runs",
    type=click.IntRange(1, 20),
    default=3,
    show_default=True,
    help="Networks fitted so from other draws; the mean of their weights goes on.",
)
@click.option(
    "--folds",
    type=click.IntRange(0, 20),
    default=3,
    show_default=True,
    help="Parts of the sources held out in turn, for figures and calibration; 0: one part, held out throughout.",
)
@click.option(
    "--batch-size", type=click.IntRange(2, 4096), default=32, show_default=True, help="Frames, half of them genuine."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 1, min_open=True),
    default=2e-4,
    show_default=True,
    help="Of the convolutions, at its peak.",
)
@click.option("--clips", type=click.IntRange(2), default=600, show_default=True, help="Clips for the temporal head.")
@click.option(
    "--init",
    metavar="NAME|DIR|FILE",
    help="First weights: a model, or a .safetensors of the backbone's features [default: the built-in model, "
    "or random where it has another backbone].",
)
@click.option(
    "--backbone",
    type=click.Choice(tuple(BACKBONES)),
    help="Convolutions: MobileNetV2 with instance norms, without, or MesoNet-4 to compare with [default: those of "
    f"--init, where it is a model; else {DEFAULT_BACKBONE}].",
)
@click.option(
    "--input-size",
    type=click.IntRange(*INPUT_SIZES),
    metavar="PX",
    help="Side of the face crops that the network sees [default: that of --init, where it is a model; else "
    f"{BACKBONES[DEFAULT_BACKBONE]}].",
)
@click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True, help="Device.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Decides every draw.")
@click.option("--resume", is_flag=True, help="Go on with the training that RUN holds.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def train(prep: tuple[str, ...], out: str, init: str | None, backbone, input_size, device: str, **options) -> None:
    """Train a detector on prepared face tracks.

    PREP is what `deepsweep prepare` wrote. The network learns from pseudo-fakes that are made of the genuine faces
    while it trains, then from labelled fakes too. Each fold leaves some sources out; their scores calibrate the
    model and are its honest figures. The last model is trained on everything, and lies in RUN/model.

    \b
    On two cores (4,000 stills and 270 clips take 15 to 30 minutes where they multiply bfloat16):
      deepsweep prepare /data/faces /data/videos --out prep
      deepsweep train prep --out run --init mobilenet_v2_imagenet.safetensors
    It was interrupted:
      deepsweep train prep --out run --init mobilenet_v2_imagenet.safetensors --resume
    Then:
      deepsweep scan /archive --out results --model run/model

    \b
    Exit codes: 0 done, 2 usage, 130 interrupted (what is done is kept for --resume).
    """
    folder, quiet, resume, name = Path(out), options.pop("quiet"), options.pop("resume"), options.pop("name")
    try:
        _train(prep, folder, name, init, backbone, input_size, device, resume, quiet, **options)
    except (ModelError, ValueError) as error:  # PrepError is a ValueError
        raise UserError(str(error), EXIT_USAGE) from None
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}.") from None


def _train(prep, folder: Path, name, init, backbone, input_size, device, resume: bool, quiet: bool, **options) -> None:
    import torch

    from models.prepared import read_tracks
    from models.training import recipe as recipes

    recipe = recipes.Recipe(**options)
    first, spec = _first_network(init, backbone, recipe.seed)
    spec = replace(spec, input_size=input_size or spec.input_size)
    settings = {"init": init or DEFAULT_MODEL, "backbone": spec.architecture.backbone, "input_size": spec.input_size}
    _claim(folder, {"recipe": asdict(recipe)} | settings, resume)
    tracks = [track for one in prep for track in read_tracks(one)]
    on = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    if on.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; leave --device out.")
    log = _Screen(folder, quiet)
    try:
        log.say(_described(tracks))
        network, held_out = recipes.train(tracks, first, spec, recipe, folder, on, log)
    finally:
        log.close()
    from scanner.calibration import finish

    finish(network, held_out, replace(spec, name=name, trained=True), folder, log.say)


def _claim(folder: Path, settings: dict, resume: bool) -> None:
    """Make RUN this training's own. Raises UserError where it holds another."""
    path = folder / "run.json"
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if not resume:
            raise UserError(f"{folder} holds a training already: --resume goes on with it; or give another --out.")
        changed = [key for key in settings if known.get(key) != settings[key]]
        if changed:
            was = {key: known.get(key) for key in changed}
            raise UserError(
                f"{folder} was begun with other settings ({json.dumps(was)}): give the same, or another RUN."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _first_network(init: str | None, backbone: str | None, seed: int) -> tuple[ClipNet, ModelSpec]:
    """The network to start from, and what is known of the model that it becomes.

    Raises UserError where `init` is a model of another backbone.
    """
    from models.registry import load_features, load_network

    def new(backbone: str) -> ModelSpec:
        architecture = Architecture(backbone=backbone)
        return ModelSpec("new", trained=False, architecture=architecture, input_size=BACKBONES[backbone], seed=seed)

    if init is not None and Path(init).is_file():
        spec = new(backbone or DEFAULT_BACKBONE)
        return load_features(spec, Path(init)), spec
    start = load_spec(init or DEFAULT_MODEL)
    if backbone not in (None, start.architecture.backbone):
        if init is None:
            spec = new(backbone)
            return load_network(spec), spec
        raise UserError(f"--init {init}: it is a {start.architecture.backbone}, not a {backbone}.")
    return load_network(start), replace(start, trained=False, weights=None, seed=seed, digest="", directory=None)


def _described(tracks: Sequence) -> str:
    def count(kind: str, fake: bool) -> int:
        return len({track.uri for track in tracks if track.kind == kind and track.fake == fake})

    sources = len({track.source for track in tracks})
    return (
        f"{count('image', False):,} genuine and {count('image', True):,} manipulated stills, "
        f"{count('video', False):,} genuine and {count('video', True):,} manipulated videos of {sources} sources"
    )


# --- the screen ------------------------------------------------------------------------------------------------------


class _Screen:
    """Shows a training as it goes, and writes its curves."""

    def __init__(self, folder: Path, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        from models.training.curves import Curves

        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self.curves = Curves(folder)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not sys.stderr.isatty(),
        )
        self.bar.start()

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    def stage(self, name: str, steps: int) -> None:
        """A stage begins."""
        for task in list(self.bar.tasks):
            self.bar.update(task.id, completed=task.total)
        self.task = self.bar.add_task(name, total=steps, note="")
        self.steps, self.loss, self.right = 0, 0.0, 0.0
        if self.bar.disable:
            self.say(f"{name}: {steps} steps")

    def progress(self, stage: str, progress: Progress) -> None:
        """A step is done."""
        if progress.loss == progress.loss:  # the clip head's drawing has no loss
            self.steps += 1  # not the training's own: one that is resumed begins amid a stage
            share = max(0.02, 1 / self.steps)
            self.loss += share * (progress.loss - self.loss)
            self.right += share * (progress.accuracy - self.right)
            self.curves.step(stage, progress.step, progress.loss, progress.accuracy, progress.learning_rate)
            if self.steps == JUDGED_AFTER and self.right < GUESSING:
                self.say(
                    f"{stage}: after {progress.step} steps {self.right:.0%} of the frames are right: it guesses. "
                    "If it stays so, begin anew with a lower --learning-rate, and check the labels."
                )
        self.bar.update(self.task, completed=progress.step, note=f"loss {self.loss:.3f}" if self.loss else "")

    def figure(self, stage: str, name: str, value: float) -> None:
        """Something was measured."""
        self.curves.figure(stage, name, value)
        self.say(f"{stage}: {name} {value:.3f}")

    def close(self) -> None:
        """Ends the bar and the files."""
        self.bar.stop()
        self.curves.close()
