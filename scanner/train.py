"""`deepsweep train`: from prepared face tracks to a model folder, with figures on sources that it never saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models.registry import DEFAULT_MODEL, load_spec
from models.spec import BACKBONES, FUSION_TERMS, Architecture, ModelError, ModelSpec
from scanner.errors import EXIT_USAGE, UserError

if TYPE_CHECKING:
    import numpy as np

    from models.network import ClipNet
    from models.training.fit import Progress
    from models.training.recipe import TrackScores

ABLATION = {
    "CNN only": ("cnn_top", "cnn_mean"),
    "blinks only": ("blink",),
    "micro-expressions only": ("micro",),
    "all": FUSION_TERMS[1:],
}


@click.command()
@click.argument("prep", nargs=-1, required=True, metavar="PREP...")
@click.option("--out", required=True, metavar="RUN", help="Folder for the state, the curves and the model.")
@click.option("--name", default="mine", show_default=True, help="Name of the model: what results will call it.")
@click.option(
    "--epochs", type=click.FloatRange(min=0), default=8.0, show_default=True, help="Passes over genuine stills."
)
@click.option(
    "--video-epochs",
    type=click.FloatRange(min=0.01),
    default=2.0,
    show_default=True,
    help="Passes over stills and videos together, with labelled fakes.",
)
@click.option(
    "--folds",
    type=click.IntRange(0, 20),
    default=3,
    show_default=True,
    help="Parts of the sources held out in turn, for figures and calibration; 0: one part, held out throughout.",
)
@click.option(
    "--batch-size", type=click.IntRange(2, 4096), default=16, show_default=True, help="Frames, half of them genuine."
)
@click.option("--clips", type=click.IntRange(2), default=1200, show_default=True, help="Clips for the temporal head.")
@click.option(
    "--init",
    metavar="NAME|DIR|FILE",
    help="First weights: a model, or a .safetensors of torchvision's features [default: the built-in model].",
)
@click.option("--backbone", type=click.Choice(BACKBONES), default=BACKBONES[0], show_default=True, help="Network.")
@click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True, help="Device.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Decides every draw.")
@click.option("--resume", is_flag=True, help="Go on with the training that RUN holds.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def train(prep: tuple[str, ...], out: str, name: str, init: str | None, backbone: str, device: str, **options) -> None:
    """Train a detector on prepared face tracks.

    PREP is what `deepsweep prepare` wrote. The network learns from pseudo-fakes that are made of the genuine faces
    while it trains, then from labelled fakes too. Each fold leaves some sources out; their scores calibrate the
    model and are its honest figures. The last model is trained on everything, and lies in RUN/model.

    \b
    On two cores (about an hour and a half for 4,000 stills and 270 clips):
      deepsweep prepare /data/faces /data/videos --out prep
      deepsweep train prep --out run --init mobilenet_v2_imagenet.safetensors
    It was interrupted:
      deepsweep train prep --out run --init mobilenet_v2_imagenet.safetensors --resume
    Then:
      deepsweep scan /archive --out results --model run/model

    \b
    Exit codes: 0 done, 2 usage, 130 interrupted (what is done is kept for --resume).
    """
    folder, quiet, resume = Path(out), options.pop("quiet"), options.pop("resume")
    try:
        _train(prep, folder, name, init, backbone, device, resume, quiet, **options)
    except ImportError as error:
        raise UserError(f"a library can't be loaded ({error}): `deepsweep doctor` names the fix.") from None
    except (ModelError, ValueError) as error:  # PrepError is a ValueError
        raise UserError(str(error), EXIT_USAGE) from None
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}.") from None


def _train(prep, folder: Path, name, init, backbone, device, resume: bool, quiet: bool, **options) -> None:
    import torch

    from models.prepared import read_tracks
    from models.training import recipe as recipes

    spec = ModelSpec(name=name, trained=False, architecture=Architecture(backbone=backbone), seed=options["seed"])
    recipe = recipes.Recipe(**options)
    _claim(folder, {"recipe": asdict(recipe), "init": init or DEFAULT_MODEL, "backbone": backbone}, resume)
    tracks = [track for one in prep for track in read_tracks(one)]
    first, spec = _first_network(spec, init)
    on = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    if on.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; leave --device out.")
    log = _Screen(folder, quiet)
    try:
        log.say(_described(tracks))
        network, held_out = recipes.train(tracks, first, spec, recipe, folder, on, log)
    finally:
        log.close()
    _finish(network, held_out, replace(spec, name=name, trained=True), folder, log)


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


def _first_network(spec: ModelSpec, init: str | None) -> tuple[ClipNet, ModelSpec]:
    """The network to start from, and the spec with its geometry."""
    from models.registry import load_features, load_network

    if init is not None and Path(init).is_file():
        return load_features(spec, Path(init)), spec
    start = load_spec(init or DEFAULT_MODEL)
    if start.architecture.backbone != spec.architecture.backbone:
        raise UserError(f"--init {init}: it is a {start.architecture.backbone}, not a {spec.architecture.backbone}.")
    keep = {key: getattr(spec, key) for key in ("name", "trained")}
    return load_network(start), replace(start, **keep, weights=None, seed=spec.seed, digest="", directory=None)


def _described(tracks: Sequence) -> str:
    def count(kind: str, fake: bool) -> int:
        return len({track.uri for track in tracks if track.kind == kind and track.fake == fake})

    sources = len({track.source for track in tracks})
    return (
        f"{count('image', False):,} genuine and {count('image', True):,} manipulated stills, "
        f"{count('video', False):,} genuine and {count('video', True):,} manipulated videos of {sources} sources"
    )


# --- what the scores of unseen sources give ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Evidence:
    """Videos of the calibration set: each one's most suspicious face."""

    faces: list[TrackScores]
    terms: dict[str, np.ndarray]  # term → (videos,)
    fake: np.ndarray  # (videos,) bool


def _evidence(held_out: Sequence[TrackScores]) -> _Evidence:
    import numpy as np

    from scanner.fusion import evidence

    best: dict[str, TrackScores] = {}
    for face in held_out:
        if len(face.clips):
            other = best.get(face.track.uri)
            if other is None or face.clips.mean() > other.clips.mean():
                best[face.track.uri] = face
    faces = list(best.values())
    rows = [evidence(face.clips, face.track.blink_score, face.track.micro_irregularity) for face in faces]
    terms = {term: np.array([row[term] for row in rows]) for term in FUSION_TERMS[1:]}
    return _Evidence(faces, terms, np.array([face.track.fake for face in faces], bool))


def _finish(network: ClipNet, held_out: Sequence[TrackScores], spec: ModelSpec, folder: Path, log: _Screen) -> None:
    """Calibrate on what was held out, save the model, and report."""
    from models.golden import write_golden
    from models.registry import save_model
    from models.training.calibrate import fit_fusion, score, thresholds

    calibration = _evidence(held_out)
    if min(calibration.fake.sum(), (~calibration.fake).sum()) < 2:
        log.say("Too few videos were held out to calibrate: scores are the network's own, bands at 0.3 and 0.7.")
        plain = {**dict.fromkeys(FUSION_TERMS, 0.0), "cnn_mean": 1.0}
        saved = save_model(
            folder / "model", network, replace(spec, fusion=plain, thresholds={"fake": 0.7, "real": 0.3})
        )
    else:
        fusion = fit_fusion(calibration.terms, calibration.fake, FUSION_TERMS[1:])
        bands = thresholds(score(calibration.terms, fusion), calibration.fake)
        saved = save_model(folder / "model", network, replace(spec, fusion=fusion, thresholds=bands))
        _report(calibration, saved, folder, log)
    write_golden(saved)
    log.say(f"The model lies in {folder / 'model'}: deepsweep scan ARCHIVE --out RESULTS --model {folder / 'model'}")


def _report(calibration: _Evidence, spec: ModelSpec, folder: Path, log: _Screen) -> None:
    # Each fold's videos are scored with coefficients that the other folds gave: fitting and judging on the same
    # videos would flatter.
    import numpy as np

    from models.evaluation import Judged, evaluate, report_json
    from models.evaluation_text import report_markdown
    from models.metrics import auc
    from models.training.calibrate import fit_fusion, score
    from scanner.fusion import fuse, verdict

    fold_of = np.array([face.fold for face in calibration.faces])
    ablation = {}
    crossed = np.full(len(fold_of), np.nan)
    for name, terms in ABLATION.items():
        scores = np.full(len(fold_of), np.nan)
        for fold in sorted(set(fold_of)):
            inside, others = fold_of == fold, fold_of != fold
            if min(calibration.fake[others].sum(), (~calibration.fake[others]).sum()) < 2:
                continue
            seen = {term: values[others] for term, values in calibration.terms.items()}
            unseen = {term: values[inside] for term, values in calibration.terms.items()}
            scores[inside] = score(unseen, fit_fusion(seen, calibration.fake[others], terms))
        judged = ~np.isnan(scores)
        ablation[name] = float(auc(calibration.fake[judged], scores[judged])) if judged.any() else float("nan")
        crossed = scores
    rows = []
    for face, value in zip(calibration.faces, crossed, strict=True):
        if np.isnan(value):
            continue
        track = face.track
        clips = [fuse(clip[None], track.blink_score, track.micro_irregularity, spec.fusion) for clip in face.clips]
        rows.append(
            Judged(
                uri=track.uri,
                label=track.label,
                method=track.method,
                source=track.source,
                group=track.group,
                status="ok",
                score=float(value),
                cnn_score=float(face.clips.mean()),
                verdict=verdict(float(value), spec.thresholds["fake"], spec.thresholds["real"]),
                clips=tuple(clips),
            )
        )
    report = evaluate(rows, model=spec.name, model_digest=spec.digest, thresholds=spec.thresholds)
    (folder / "held-out.json").write_text(report_json(report), encoding="utf-8")
    lines = ["", "## Ablation: AUC of videos", "", "| evidence | AUC |", "| --- | --- |"]
    lines += [f"| {name} | {value:.3f} |" for name, value in ablation.items()]
    (folder / "held-out.md").write_text(report_markdown(report) + "\n".join(lines) + "\n", encoding="utf-8")
    log.say(
        f"Sources that were held out: AUC {ablation['all']:.3f} of {len(rows)} videos; see {folder / 'held-out.md'}"
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
        self.loss = 0.0

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    def stage(self, name: str, steps: int) -> None:
        """A stage begins."""
        for task in list(self.bar.tasks):
            self.bar.update(task.id, completed=task.total)
        self.task = self.bar.add_task(name, total=steps, note="")
        if self.bar.disable:
            self.say(f"{name}: {steps} steps")

    def progress(self, stage: str, progress: Progress) -> None:
        """A step is done."""
        if progress.loss == progress.loss:  # the clip head's drawing has no loss
            self.loss = progress.loss if progress.step == 1 else 0.98 * self.loss + 0.02 * progress.loss
            self.curves.step(stage, progress.step, progress.loss, progress.accuracy, progress.learning_rate)
        self.bar.update(self.task, completed=progress.step, note=f"loss {self.loss:.3f}" if self.loss else "")

    def figure(self, stage: str, name: str, value: float) -> None:
        """Something was measured."""
        self.curves.figure(stage, name, value)
        self.say(f"{stage}: {name} {value:.3f}")

    def close(self) -> None:
        """Ends the bar and the files."""
        self.bar.stop()
        self.curves.close()
