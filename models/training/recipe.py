"""The whole training, stage by stage: stills, then videos with each fold of sources held out, then everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from models.clips import cut
from models.metrics import auc
from models.network import ClipNet
from models.prepared import FaceTrack
from models.spec import ModelSpec
from models.training.degrade import encode
from models.training.fit import Fit, Progress, batches, fit_frames
from models.training.folds import assign
from models.training.sampling import Geometry, Sampler, sampled_track, whole_track
from models.training.temporal import Eyes, embed, fit_clip_head

LABELLED = 0.5  # of the pairs in the second stage hold a labelled fake; the others keep alive what stills taught
LABELLED_STILLS = 0.06  # edited photographs are few and of one source
VIDEO_SHARE = 0.5  # of the genuine faces in the second stage that come from videos
REENCODED_CRF = 35  # a messenger's worst: what is genuine must not become a fake by it
VALIDATION_PARTS = 5  # without folds, one part of the sources in so many chooses the best checkpoint
VALIDATION_CROPS = 8  # of each track that is looked at then
MAIN, STILLS = "all", "stills"


@dataclass(frozen=True)
class Recipe:
    """What decides the outcome of a training, apart from the data and the first weights."""

    #: Passes over the genuine stills, next to no labelled fakes; 0: without that stage. Ten find blends better, and the
    #: labelled fakes of tools that nobody trained on worse.
    epochs: float = 3.0
    video_epochs: float = 0.5  # passes over stills and videos together, with labelled fakes: more learns them by heart
    #: Networks that are fitted so from other draws, and averaged: sources that nobody trained on are ranked by one of
    #: them with an AUC that moves by 0.05 to 0.2 from draw to draw.
    video_runs: int = 3
    #: Sources held out in turn, for honest figures and calibration; the last network sees all of them. Below 2: one
    #: part is held out throughout, and chooses the checkpoint besides, which flatters its figures a little.
    folds: int = 3
    batch_size: int = 32  # frames, half of them genuine
    learning_rate: float = Fit.learning_rate  # of the convolutions, at its peak
    clips: int = 600  # sequences that the clip head learns from
    seed: int = 0


@dataclass(frozen=True)
class TrackScores:
    """What a network that never saw the track's source says of it."""

    track: FaceTrack
    fold: int
    clips: np.ndarray  # (clips,) float32 probabilities
    reencoded: np.ndarray  # (clips,) float32, of the same crops after H.264 at REENCODED_CRF


class Log(Protocol):
    """Where a training tells how it goes."""

    def stage(self, name: str, steps: int) -> None:
        """A stage begins that will take so many steps."""

    def progress(self, stage: str, progress: Progress) -> None:
        """A step is done."""

    def figure(self, stage: str, name: str, value: float) -> None:
        """Something was measured at the end of a stage."""


def train(
    tracks: Sequence[FaceTrack],
    first: ClipNet,
    spec: ModelSpec,
    recipe: Recipe,
    out: Path,
    device: torch.device,
    log: Log,
) -> tuple[ClipNet, list[TrackScores]]:
    """Train on all tracks; returns the network, and the scores of each video track while its source was held out.

    first: the network to start from. out: keeps the state of every stage; called again with the same arguments,
    a training that was killed goes on where it was. Raises ValueError where the tracks can't carry the recipe.
    """
    geometry = Geometry(spec.input_size, spec.crop_margin)
    stills = [track for track in tracks if track.kind == "image"]
    videos = [track for track in tracks if track.kind == "video"]
    stage = _Stages(geometry, spec, recipe, out, device, log)
    if stills and recipe.epochs:
        first = stage.frames(STILLS, first, stills, LABELLED_STILLS, recipe.epochs)
    if not videos:
        return first, []
    fold_of = assign(videos, max(recipe.folds, VALIDATION_PARTS if recipe.folds < 2 else 0))

    def scored(network: ClipNet, fold: int) -> list[TrackScores]:
        unseen = [track for track in videos if fold_of[track.group] == fold]
        scores = [TrackScores(track, fold, *_score_track(network, track, spec, device)) for track in unseen]
        log.figure(f"fold{fold}", "auc", track_auc(scores))
        return scores

    def others(fold: int) -> list[FaceTrack]:
        return stills + [track for track in videos if fold_of[track.group] != fold]

    if recipe.folds < 2:
        unseen = [track for track in videos if fold_of[track.group] == 0]
        network = stage.both(MAIN, first, others(0), validation=unseen)
        return network, scored(network, 0)
    held_out = []
    for fold in range(recipe.folds):
        held_out += scored(stage.both(f"fold{fold}", first, others(fold)), fold)
    return stage.both(MAIN, first, tracks), held_out


class _Stages:
    """Fits one network after the other, and remembers in `out` which are done."""

    def __init__(self, geometry: Geometry, spec: ModelSpec, recipe: Recipe, out: Path, device, log: Log) -> None:
        self.geometry, self.spec, self.recipe, self.out = geometry, spec, recipe, out
        self.device, self.log = device, log

    def both(
        self, name: str, first: ClipNet, tracks: Sequence[FaceTrack], validation: Sequence[FaceTrack] = ()
    ) -> ClipNet:
        """Frames, then the clip head on what they give. validation: tracks that choose the best checkpoint."""
        epochs = self.recipe.video_epochs
        runs = [
            self.frames(f"{name}-frames{run}", first, tracks, LABELLED, epochs, validation, run)
            for run in range(1, self.recipe.video_runs + 1)
        ]
        network = averaged(runs)
        return self._kept(f"{name}-clips", network, lambda: self._clip_head(f"{name}-clips", network, tracks))

    def frames(
        self,
        name: str,
        first: ClipNet,
        tracks: Sequence[FaceTrack],
        labelled: float,
        epochs: float,
        validation: Sequence[FaceTrack] = (),
        run: int = 0,
    ) -> ClipNet:
        """Convolutions and frame head. run: tells the draws of stages with the same work apart."""
        seed = self.recipe.seed * 1000 + sum(name.encode()) + 100_000 * run
        sampler = Sampler(tracks, self.geometry, 1, labelled, VIDEO_SHARE, seed)
        pairs = self.recipe.batch_size // 2
        genuine = sum(not track.fake for track in tracks)
        steps = max(1, round(epochs * genuine / pairs))
        fit = Fit(steps, pairs, self.recipe.learning_rate, seed=seed)

        def make() -> ClipNet:
            self.log.stage(name, fit.steps)
            checkpoint = self.out / "checkpoints" / f"{name}.pt"
            both = len({track.fake for track in validation}) == 2
            judge = Validation(validation, self.geometry, self.device) if both else None
            network = fit_frames(
                first, sampler, fit, self.device, lambda p: self.log.progress(name, p), checkpoint, judge
            )
            checkpoint.unlink(missing_ok=True)
            return network

        return self._kept(name, first, make)

    def _clip_head(self, name: str, network: ClipNet, tracks: Sequence[FaceTrack]) -> ClipNet:
        seed = self.recipe.seed * 1000 + sum(name.encode())
        videos = [track for track in tracks if track.kind == "video"]
        try:
            sampler = Sampler(videos, self.geometry, self.spec.clip_frames, LABELLED, 1.0, seed)
        except ValueError:
            raise ValueError(f"No genuine video has the {self.spec.clip_frames} crops that a clip needs.") from None
        pairs = self.recipe.clips // 2
        self.log.stage(name, pairs)
        drawn = []
        for clip in batches(sampler, 1, 0, pairs):
            drawn.append(embed(network, [clip], self.device))
            self.log.progress(name, Progress(len(drawn), float("nan"), float("nan"), 0.0))
        return fit_clip_head(network, _joined(drawn), seed)

    def _kept(self, name: str, like: ClipNet, make: Callable[[], ClipNet]) -> ClipNet:
        """What `make` gives, or gave in a training that was killed later."""
        path = self.out / "stages" / f"{name}.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["recipe"] == asdict(self.recipe):
                network = ClipNet(like.architecture).eval()
                network.load_state_dict(state["network"])
                return network
        network = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        torch.save({"recipe": asdict(self.recipe), "network": network.state_dict()}, temporary)
        temporary.replace(path)
        return network


def averaged(networks: Sequence[ClipNet]) -> ClipNet:
    """The mean of the weights of networks that began as one (Wortsman et al., ICML 2022).

    Their batch norms must only add biases, as those of fit_frames do: then it is the mean of what they compute with.
    """
    states = [network.state_dict() for network in networks]
    mean = ClipNet(networks[0].architecture).eval()
    mean.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return mean


class Validation:
    """Judges a network by the AUC of single crops of tracks that it is not trained on."""

    def __init__(self, tracks: Sequence[FaceTrack], geometry: Geometry, device: torch.device) -> None:
        pictures, fake = [], []
        for track in tracks:
            pictures.append(sampled_track(track, geometry, VALIDATION_CROPS))
            fake += [track.fake] * len(pictures[-1])
        self.crops, self.fake, self.device = torch.from_numpy(np.concatenate(pictures)), np.array(fake), device

    def __call__(self, network: ClipNet) -> float:
        with torch.no_grad():
            pooled = Eyes(network, self.device)(self.crops)
            logits = network.frame_head(pooled.to(self.device)).squeeze(-1).float().cpu().numpy()
        return _auc(logits, self.fake)


def _joined(parts):
    return replace(
        parts[0],
        features=torch.cat([part.features for part in parts]),
        touched=torch.cat([part.touched for part in parts]),
    )


def _score_track(
    network: ClipNet, track: FaceTrack, spec: ModelSpec, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a track's clips, cut as a scan cuts them, and of the same re-encoded: (clips,) float32 each."""
    crops = whole_track(track, Geometry(spec.input_size, spec.crop_margin))
    bounds = cut(len(crops), spec.clip_frames, spec.min_clip_frames)
    if not bounds:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    eyes = Eyes(network, device)

    def clips(pictures: np.ndarray) -> np.ndarray:
        pooled = eyes(torch.from_numpy(pictures))
        with torch.no_grad():
            logits = [network.heads(pooled[None, a:b], torch.tensor([b - a]))[1] for a, b in bounds]
        return torch.cat(logits).sigmoid().numpy()

    return clips(crops), clips(encode(crops, "h264", REENCODED_CRF))


def track_auc(scores: Sequence[TrackScores]) -> float:
    """AUC of the tracks' mean clip scores; NaN with one class only. Tracks without a clip are left out."""
    judged = [score for score in scores if len(score.clips)]
    values = np.array([score.clips.mean() for score in judged])
    fake = np.array([score.track.fake for score in judged], bool)
    return _auc(values, fake)


def _auc(values: np.ndarray, fake: np.ndarray) -> float:
    if fake.all() or not fake.any():
        return float("nan")
    return float(auc(fake, values))
