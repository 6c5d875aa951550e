"""A small trained model for tests, and the synthetic clips it learns from: real faces and faces with a blended patch.

Trained on one portrait, it knows nothing of deepfakes; it shows that scores, verdicts and heatmaps follow evidence.
`python -m tests.tiny_model FOLDER` makes one for use by hand, with `--model FOLDER`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from models.registry import save_model
from models.spec import Architecture, ModelSpec
from tests.zoo_face import ZOOM, portrait

SPEC = ModelSpec(
    name="tiny-test-model",
    trained=True,
    architecture=Architecture(width_mult=0.35, lstm_hidden=32),
    input_size=96,
    clip_frames=8,
    clip_fps=5.0,
    min_clip_frames=4,
    fusion={"intercept": -5.0, "cnn_top": 5.0, "cnn_mean": 5.0, "blink": 0.0, "micro": 0.0},
    thresholds={"fake": 0.6, "real": 0.4},
)

CROP = 256  # pixels a crop is rendered with: 1.4 times the 114 still pixels between hairline and chin, at ZOOM
FACE_CENTRE = (226.0, 118.0)  # still pixels
FACE_RADII = (0.27, 0.34)  # of the ellipse that holds the face, as fractions of the crop around its middle

TRAIN_CLIPS = 120  # each once as it is and once manipulated
STEPS = 150
PAIRS_PER_STEP = 4
FRAMES_PER_STEP = 4  # consecutive ones of each clip: half a clip gives twice the steps for the same time


@dataclass(frozen=True)
class SyntheticClip:
    """One rendered clip, as it was and as it is after manipulation; (T, S, S, 3) uint8 RGB each."""

    real: np.ndarray
    fake: np.ndarray
    shown: np.ndarray  # (T,) bool: frames of `fake` that differ from `real`


def synthetic_clip(seed: int, patch_x: float | None = None) -> SyntheticClip:
    """A clip that depends on nothing but its arguments.

    The face moves a little, under a light, a camera's noise and a JPEG quality of its own. The manipulation is a patch
    that comes and goes, somewhere in the face; `patch_x` fixes the column of its middle (fraction of the crop).
    """
    rng = np.random.default_rng([20, seed])
    angle, radius = rng.uniform(0, 2 * np.pi), 0.8 * np.sqrt(rng.uniform())
    centre = np.array([0.5, 0.5]) + radius * np.array(FACE_RADII) * [np.cos(angle), np.sin(angle)]
    if patch_x is not None:
        centre[0] = patch_x
    shown = np.ones(SPEC.clip_frames, bool)
    shown[rng.permutation(SPEC.clip_frames)[: rng.integers(0, 4)]] = False
    patch = _Patch.random(rng, centre * CROP)
    camera = _Camera.random(rng)
    pose = rng.uniform(-1, 1, 4) * [6.0, 0.08, 12.0, 12.0]  # roll in degrees, scale, shift in still pixels
    drift = 0.05 * pose * rng.choice([-1, 1], 4)
    real, fake = [], []
    for step in range(SPEC.clip_frames):
        frame = _crop(pose + drift * step)
        noise = rng.normal(0, 1, (SPEC.input_size, SPEC.input_size, 3))
        real.append(camera.shoot(frame, noise))
        fake.append(camera.shoot(patch.blend(frame, rng) if shown[step] else frame, noise))
    return SyntheticClip(np.stack(real), np.stack(fake), shown)


def _crop(pose: np.ndarray) -> np.ndarray:
    """The portrait's face in a (CROP, CROP, 3) uint8 crop."""
    turn = cv2.getRotationMatrix2D(FACE_CENTRE, pose[0], ZOOM * (1 + pose[1]))
    turn[:, 2] += CROP / 2 - np.array(FACE_CENTRE) + ZOOM * pose[2:]
    return cv2.warpAffine(portrait(), turn, (CROP, CROP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


@dataclass(frozen=True)
class _Patch:
    """A self-blended ellipse: recoloured, sharpened, grainy, with a feathered edge."""

    box: tuple[slice, slice]  # rows and columns of the crop that it touches
    mask: np.ndarray  # float32 in 0..1, of that box
    tint: np.ndarray
    grain: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, centre: np.ndarray) -> _Patch:
        mask = np.zeros((CROP, CROP), np.float32)
        radii = rng.uniform(0.12, 0.17, 2) * CROP
        cv2.ellipse(mask, (centre.tolist(), (2 * radii).tolist(), rng.uniform(0, 180)), (1.0,), -1)
        mask = cv2.GaussianBlur(mask, (0, 0), 4.0)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        mask = mask[box]
        tint = 1 + np.array([-0.25, 0.05, 0.3]) * rng.uniform(0.8, 1.2)  # bluish, as no light makes skin
        grain = cv2.resize(rng.normal(0, 9, (CROP // 4, CROP // 4)), mask.shape[::-1])
        return cls(box, mask[..., None], tint.astype(np.float32), grain[..., None].astype(np.float32))

    def blend(self, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flicker = np.float32(rng.uniform(0.8, 1.2))
        under = frame[self.box].astype(np.float32)
        sharp = 2 * under - cv2.GaussianBlur(under, (0, 0), 3.0)
        copy = sharp * (1 + flicker * (self.tint - 1)) + flicker * self.grain
        result = frame.copy()
        result[self.box] = np.clip(under + self.mask * (copy - under), 0, 255)
        return result


@dataclass(frozen=True)
class _Camera:
    """What happens to any picture, real or not: the model's resolution, exposure, white balance, noise, JPEG."""

    gain: np.ndarray
    noise: float
    quality: int

    @classmethod
    def random(cls, rng: np.random.Generator) -> _Camera:
        gain = rng.uniform(0.8, 1.2) * rng.uniform(0.97, 1.03, 3)
        return cls(gain, rng.uniform(0, 3), int(rng.integers(75, 99)))

    def shoot(self, frame: np.ndarray, noise: np.ndarray) -> np.ndarray:
        small = cv2.resize(frame, (SPEC.input_size, SPEC.input_size), interpolation=cv2.INTER_AREA)
        lit = np.clip(small * self.gain + self.noise * noise, 0, 255).astype(np.uint8)
        packed = cv2.imencode(".jpg", lit[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1]
        return cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1]


def train_tiny_model(directory: str | Path, seed: int = 0) -> Path:
    """Train a ClipNet on synthetic clips, in about 50 seconds of a core, and save it to `directory`; returns that."""
    import torch
    import torch.nn.functional as F

    from models.network import ClipNet

    first = 1_000_000 * (seed + 1)  # tests draw their clips from smaller seeds
    clips = [synthetic_clip(first + i) for i in range(TRAIN_CLIPS)]
    rng = np.random.default_rng(seed)
    lengths = torch.full((2 * PAIRS_PER_STEP,), FRAMES_PER_STEP)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums depends on it, and with that what is learnt
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ClipNet(SPEC.architecture).train()
        optimiser = torch.optim.AdamW(network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=STEPS)
        for _ in range(STEPS):
            pixels, shown = _batch(clips, rng)
            frames = torch.from_numpy(pixels).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
            frame_truth = torch.from_numpy(shown)
            clip_truth = frame_truth.amax(dim=1)
            frame_logits, clip_logits = network(frames.unflatten(0, shown.shape), lengths)
            loss = F.binary_cross_entropy_with_logits(frame_logits, frame_truth)
            loss = loss + F.binary_cross_entropy_with_logits(clip_logits, clip_truth)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    torch.set_num_threads(threads)
    save_model(directory, network.eval(), SPEC)
    return Path(directory)


def _batch(clips: list[SyntheticClip], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames (B, T, S, S, 3) uint8, real clips and then the same manipulated; and which frames are, (B, T) float32."""
    chosen = [clips[i] for i in rng.choice(len(clips), PAIRS_PER_STEP, replace=False)]
    start = rng.integers(0, SPEC.clip_frames - FRAMES_PER_STEP + 1)
    part = slice(start, start + FRAMES_PER_STEP)
    pixels = np.stack([clip.real[part] for clip in chosen] + [clip.fake[part] for clip in chosen])
    if rng.uniform() < 0.5:
        pixels = pixels[:, :, :, ::-1]
    manipulated = np.stack([clip.shown[part] for clip in chosen])
    shown = np.concatenate([np.zeros_like(manipulated), manipulated])
    return np.ascontiguousarray(pixels), shown.astype(np.float32)


if __name__ == "__main__":
    print(train_tiny_model(sys.argv[1]))
