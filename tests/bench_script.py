"""The script that deepsweep is measured against: what one sits down and writes for one video after another.

    python -m tests.bench_script MODEL VIDEO...

OpenCV reads every frame, FaceMesh looks for a face in all of it, the network (the same one, at the same size, as
PyTorch loads it) scores its crop, the LSTM every 16 crops. One process, one frame at a time. Prints figures as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import cv2
import numpy as np
import torch
from mediapipe.python.solutions.face_mesh import FaceMesh

from models.network import ClipNet
from models.registry import load_network, load_spec
from models.spec import ModelSpec

EYES = ((33, 160, 158, 133, 153, 144), (263, 387, 385, 362, 380, 373))


def ear(points: np.ndarray) -> float:
    """Mean eye aspect ratio of (478, 2) px landmarks."""
    ratios = []
    for eye in EYES:
        p1, p2, p3, p4, p5, p6 = points[list(eye)]
        ratios.append((np.linalg.norm(p2 - p6) + np.linalg.norm(p3 - p5)) / (2 * np.linalg.norm(p1 - p4)))
    return float(np.mean(ratios))


def face_crop(rgb: np.ndarray, points: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """The enlarged square around the landmarks, as much of it as the frame holds: (S, S, 3) uint8."""
    low, high = points.min(axis=0), points.max(axis=0)
    x, y = (low + high) / 2
    half = (high - low).max() * spec.crop_margin / 2
    crop = rgb[max(0, int(y - half)) : int(y + half), max(0, int(x - half)) : int(x + half)]
    return cv2.resize(crop, (spec.input_size, spec.input_size))


@torch.no_grad()
def scan(path: str, mesh, network: ClipNet, spec: ModelSpec) -> tuple[float, int, list[dict]]:
    """Scan a video: its seconds, its frames, and one row per frame with a face."""
    video = cv2.VideoCapture(path)
    fps = video.get(cv2.CAP_PROP_FPS)
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    frames, rows, window = 0, [], []
    while True:
        ok, bgr = video.read()
        if not ok:
            break
        frames += 1
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        faces = mesh.process(rgb).multi_face_landmarks
        if not faces:
            continue
        height, width = rgb.shape[:2]
        points = np.array([(p.x * width, p.y * height) for p in faces[0].landmark])
        image = torch.from_numpy(face_crop(rgb, points, spec)).permute(2, 0, 1).float() / 255
        pooled = network.pool(network.features(((image - mean) / std).unsqueeze(0)))
        score = network.frame_head(pooled).sigmoid().item()
        rows.append({"t": frames / fps, "ear": ear(points), "score": score})
        window.append(pooled)
        if len(window) == spec.clip_frames:
            _, clip = network.heads(torch.stack(window, dim=1), torch.tensor([len(window)]))
            rows[-1]["clip_score"] = clip.sigmoid().item()
            window = []
    video.release()
    return frames / fps, frames, rows


def main(model: str, paths: list[str]) -> dict[str, float]:
    spec = load_spec(model)
    network = load_network(spec)
    mesh = FaceMesh(max_num_faces=1, refine_landmarks=True)
    scan(paths[0], mesh, network, spec)  # what loads at the first frame is start-up, too
    began, used = time.perf_counter(), _cpu_s()
    results = [scan(path, mesh, network, spec) for path in paths]
    return {
        "video_s": sum(length for length, _, _ in results),
        "wall_s": time.perf_counter() - began,
        "cpu_s": _cpu_s() - used,
        "frames": sum(frames for _, frames, _ in results),
        "faces": sum(len(rows) for _, _, rows in results),
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
