"""Scoring: clips of face crops in, probabilities and explanations out, on a GPU where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from models.folding import fold_batch_norms
from models.gradcam import grad_cam, most_suspicious
from models.registry import load_network
from models.spec import ModelError, ModelSpec

#: Frames that pass through the convolutions together. On a CPU, few enough that a layer's output stays in its cache:
#: 192 px on one core take 12.7 ms a frame in passes of 8, 24.6 in passes of 48.
FRAMES_PER_PASS = {"cpu": 8, "cuda": 256}


class ClipScorer:
    """A model that is ready to score. Make it in the process that uses it: it holds threads and GPU memory."""

    def __init__(self, spec: ModelSpec, device: str | None = None, threads: int | None = None) -> None:
        """device: "cpu" or "cuda", by default CUDA where there is one. threads: of this whole process's torch.

        Raises ModelError where the model's weights are missing or don't fit.
        """
        self.spec = spec
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if threads is not None:
            torch.set_num_threads(threads)
        network = fold_batch_norms(load_network(spec)).requires_grad_(False)
        # 29 instead of 44 ms per 192 px frame on one CPU core, 14.7 with batch norms folded; tensor cores want it too
        placement: dict[str, Any] = {"device": self.device, "memory_format": torch.channels_last}
        self.network = network.to(**placement)
        self._mean = torch.tensor(spec.mean, device=self.device).mul_(255.0).view(1, 3, 1, 1)
        self._scale = torch.tensor(spec.std, device=self.device).mul_(255.0).reciprocal_().view(1, 3, 1, 1)

    def score(self, clips: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities that clips, and frames of them, were manipulated.

        clips: (N, T, S, S, 3) uint8 RGB face crops, S the model's input size. lengths: (N,) int, 1..T; frames from
        there on are padding and are not looked at. A clip's scores don't depend on the others it comes with.

        Returns clip probabilities (N,) float32 and frame probabilities (N, T) float32, NaN beyond a clip's length.
        Raises ValueError for other shapes, ModelError where the network answers with something that is not a number.
        """
        return self.score_and_pool(clips, lengths)[:2]

    def score_and_pool(self, clips: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """`score`, and behind it what `explain` would compute again: each frame's features (N, T, C), on the device."""
        size = self.spec.input_size
        if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[2:] != (size, size, 3):
            raise ValueError(f"clips must be uint8 (N, T, {size}, {size}, 3), not {clips.dtype} {clips.shape}")
        lengths = np.asarray(lengths, dtype=np.int64)
        count, steps = clips.shape[:2]
        if lengths.shape != (count,) or (count and not 1 <= lengths.min() <= lengths.max() <= steps):
            raise ValueError(f"lengths must be {count} numbers from 1 to {steps}")
        if count == 0:
            return np.empty(0, np.float32), np.empty((0, steps), np.float32), torch.empty(0, steps, 0)
        real = np.arange(steps) < lengths[:, None]
        pooled = torch.cat([self.network.pool(maps) for maps in self._maps(self.network.features, clips, real)])
        mask = torch.from_numpy(real).to(self.device)
        sequences = pooled.new_zeros(count, steps, pooled.shape[1])
        sequences[mask] = pooled
        with torch.no_grad(), torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
            frame_logits, clip_logits = self.network.heads(sequences, mask.sum(dim=1))
        clip_scores = clip_logits.sigmoid().cpu().numpy()
        frame_scores = frame_logits.sigmoid().cpu().numpy()
        if not (np.isfinite(clip_scores).all() and np.isfinite(frame_scores[real]).all()):
            raise ModelError(f"Model {self.spec.name!r} answered with a score that is not a number.")
        frame_scores[~real] = np.nan
        return clip_scores, frame_scores, sequences

    def explain(self, clip: np.ndarray, length: int, pooled: torch.Tensor | None = None) -> tuple[int, np.ndarray]:
        """Where the most suspicious frame of a clip looks manipulated; see gradcam.grad_cam.

        clip: (T, S, S, 3) uint8 RGB, of which the first `length` frames are real. pooled: (T, C), the clip's part of
        what score_and_pool gave, which spares all frames but one the convolutions (112 to 15 ms on one core).
        Returns that frame's index and a heatmap (S, S) float32 in 0..1, hottest where most speaks for a fake.
        """
        if not 1 <= length <= len(clip):
            raise ValueError(f"length must be from 1 to {len(clip)}, not {length}")
        if pooled is None:
            pooled = self.score_and_pool(clip[None], np.array([length]))[2][0]
        pooled = pooled[:length]
        frame = most_suspicious(self.network, pooled)
        maps = next(self._maps(self.network.early, clip[None, frame : frame + 1], np.ones((1, 1), bool)))
        return frame, grad_cam(self.network, pooled, [frame], maps, self.spec.input_size)[0]

    def works(self) -> bool:
        """Whether the device still computes: a CUDA context in which a kernel failed fails at everything after that."""
        try:
            torch.ones(1, device=self.device).add_(1).item()
        except torch.OutOfMemoryError:
            return True
        except RuntimeError:
            return False
        return True

    def _maps(
        self, layers: Callable[[torch.Tensor], torch.Tensor], clips: np.ndarray, real: np.ndarray
    ) -> Iterator[torch.Tensor]:
        """What `layers` make of the real frames of clips in their order, pass by pass: (n, C, h, w) float32.

        clips: (N, T, S, S, 3) uint8. real: (N, T) bool.
        """
        clip, step = np.nonzero(real)
        size = FRAMES_PER_PASS[self.device.type]
        for start in range(0, len(clip), size):
            frames = clips[clip[start : start + size], step[start : start + size]]
            count = len(frames)
            if self.device.type == "cuda" and count < size:
                # Kernels are chosen by batch size, and in half precision each rounds differently. Passes of one size
                # keep a clip's score from depending on how many others came with it.
                frames = np.concatenate([frames, np.zeros((size - count, *frames.shape[1:]), np.uint8)])
            with torch.no_grad(), self._precision():
                maps = layers(self._normalised(frames))
            yield maps[:count].float()

    def _normalised(self, frames: np.ndarray) -> torch.Tensor:
        """(n, S, S, 3) uint8 on the CPU to (n, 3, S, S) float32 on the device, channels last in memory as they are."""
        pixels = torch.from_numpy(frames)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.permute(0, 3, 1, 2).float().sub_(self._mean).mul_(self._scale)

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        """Half precision for the convolutions on a GPU, by kernels that answer the same every time."""
        on_gpu = self.device.type == "cuda"
        with (
            torch.backends.cudnn.flags(benchmark=False, deterministic=True),
            torch.autocast(self.device.type, dtype=torch.float16, enabled=on_gpu),
        ):
            yield
