"""The overlay video: every picture at its own time, upright, with its sound, drawn on only where faces are."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.registry import load_spec
from scanner.decode import probe
from scanner.guard import Guard
from scanner.inspect_heat import Explainer
from scanner.inspect_overlay import (
    BOX_HOLD_S,
    GAP_S,
    HEAT_HOLD_S,
    HEAT_SIDE,
    Caption,
    DrawnFace,
    box_at,
    draw_overlay,
    painted,
    scored_at,
    write_overlay,
)
from tests.scanner.signals import zoo_path
from tests.zoo import ZOO

BANDS = {"real": 0.3, "fake": 0.8}
CAPTION = Caption("test-model", 0.9, "fake", BANDS)
MARGIN = 1.4


def drawn(end: float = 20.0, score: float = 0.9, box: tuple[float, ...] = (0.4, 0.3, 0.2, 0.3)) -> DrawnFace:
    """A face that stands still, hot all over."""
    t = np.arange(0, end, 1 / 15)
    scored = np.arange(0, end, 0.2)
    heat = np.full((len(scored), HEAT_SIDE, HEAT_SIDE), 255, np.uint8)
    boxes = np.tile(np.array(box, np.float32), (len(t), 1))
    return DrawnFace("0-0", t, boxes, scored, np.full(len(scored), score, np.float32), heat)


def overlay(path: Path, target: Path, *faces: DrawnFace) -> list[float]:
    """Draw, and return the shares that were told."""
    shares: list[float] = []
    draw_overlay(str(path), str(target), probe(path), faces, CAPTION, MARGIN, shares.append)
    return shares


def pictures(path: Path) -> list[tuple[float, np.ndarray]]:
    """(seconds, (height, width, 3) RGB) of every picture, as it is stored."""
    with av.open(str(path)) as container:
        return [(frame.time or 0.0, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def sound(path: Path) -> tuple[str, list[tuple[float, bytes]]]:
    """Codec, and (seconds, bytes) of every packet of the first audio track."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        packets = [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]
        return stream.codec_context.name, packets


# --- the file -------------------------------------------------------------------------------------------------


def test_variable_rate_stays_and_what_is_not_drawn_on_stays(tmp_path: Path):
    source, target = zoo_path("variable_fps.mp4"), tmp_path / "overlay.mp4"
    shares = overlay(source, target, drawn())
    with av.open(str(target)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    before, after = pictures(source), pictures(target)
    assert [t for t, _ in after] == pytest.approx([t for t, _ in before], abs=1e-4)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1, abs=0.05)
    for (_, was), (_, now) in list(zip(before, after, strict=True))[::40]:
        changed = np.abs(now.astype(int) - was).max(axis=2)
        assert np.median(changed[150:210, 270:370]) > 40  # the heatmap
        assert np.median(changed[20:300, 20:200]) < 12 and np.median(changed[20:300, 440:620]) < 12


def test_a_turned_video_comes_out_upright(tmp_path: Path):
    source, target = zoo_path("rotated_90.mp4"), tmp_path / "overlay.mp4"
    overlay(source, target)
    info = probe(target)
    assert (info.width, info.height, info.rotation) == (probe(source).width, probe(source).height, 0)
    upright = np.rot90(pictures(source)[30][1], probe(source).rotation // 90)
    assert np.abs(pictures(target)[30][1][20:300].astype(int) - upright[20:300]).mean() < 4


def test_sound_is_copied_and_a_late_picture_stays_late(tmp_path: Path):
    source, target = zoo_path("late_start.mkv"), tmp_path / "overlay.mp4"
    overlay(source, target, drawn())
    assert [t for t, _ in pictures(target)] == pytest.approx([float(t) for t in ZOO["late_start.mkv"].times], abs=1e-3)
    (codec, before), (same, after) = sound(source), sound(target)
    assert codec == same == "aac"
    assert [data for _, data in after] == [data for t, data in before if t >= 0]
    assert [t for t, _ in after] == pytest.approx([t for t, _ in before if t >= 0], abs=2e-3)


def test_sound_that_mp4_can_t_carry_is_encoded_anew(tmp_path: Path):
    source, target = tmp_path / "pcm.mkv", tmp_path / "overlay.mp4"
    rate, seconds = 48_000, 2
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        audio: Any = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for number in range(25 * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        wave = (8000 * np.sin(2 * np.pi * 440 * np.arange(rate * seconds) / rate)).astype(np.int16)
        for start in range(0, len(wave), 1024):
            heard = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="s16", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = rate, start, Fraction(1, rate)
            container.mux(audio.encode(heard))
        container.mux(video.encode())
        container.mux(audio.encode())
    overlay(source, target)
    codec, packets = sound(target)
    assert codec == "aac" and packets[-1][0] == pytest.approx(seconds, abs=0.1)


def test_what_can_t_be_drawn_is_a_sentence_and_leaves_no_file(tmp_path: Path):
    source = zoo_path("short.mp4")
    guard = Guard()
    try:
        target = tmp_path / "no" / "such" / "folder.mp4"
        problem = write_overlay(guard, source, str(target), probe(source), [], CAPTION, MARGIN, _deaf)
        assert problem == "No such file or directory"
        broken = zoo_path("no_frames.mp4")
        problem = write_overlay(guard, broken, str(tmp_path / "o.mp4"), probe(source), [], CAPTION, MARGIN, _deaf)
        assert problem and list(tmp_path.iterdir()) == []
    finally:
        guard.close()


def _deaf(share: float) -> None:
    pass


# --- the picture ----------------------------------------------------------------------------------------------


@given(
    st.integers(1, 90).map(lambda n: 2 * n),
    st.integers(1, 90).map(lambda n: 2 * n),
    st.tuples(*[st.floats(-2, 3, width=32)] * 2, *[st.floats(0, 3, width=32)] * 2),
    st.one_of(st.just(float("nan")), st.floats(0, 1, width=32)),
)
def test_anything_can_be_drawn_on_a_picture_of_any_size(width, height, box, score):
    picture = av.VideoFrame.from_ndarray(np.full((height, width, 3), 128, np.uint8), format="rgb24")
    result = painted(picture.reformat(format="yuv420p"), 1.0, [drawn(score=score, box=box)], CAPTION, MARGIN)
    assert (result.width, result.height, result.format.name) == (width, height, "yuv420p")


def test_the_heat_fades_with_the_score_and_the_box_has_the_colour_of_the_verdict():
    grey = av.VideoFrame.from_ndarray(np.full((360, 640, 3), 128, np.uint8), format="rgb24").reformat(format="yuv420p")

    def shown(score: float) -> np.ndarray:
        return painted(grey, 1.0, [drawn(score=score)], CAPTION, MARGIN).to_ndarray(format="rgb24").astype(int)

    heat = [np.abs(shown(score)[150:210, 300:340] - 128).mean() for score in (0.0, 0.2, 0.9)]
    assert heat[0] < 3 < heat[1] < heat[2]
    edge = slice(120, 200), slice(255, 257)  # of the box's left side
    red, green, blue = shown(0.85)[edge].reshape(-1, 3).mean(axis=0)
    assert red > green + 40
    red, green, blue = shown(0.1)[edge].reshape(-1, 3).mean(axis=0)
    assert blue > red + 40


# --- moments --------------------------------------------------------------------------------------------------

TIMES = st.lists(st.floats(0, 60, width=32), min_size=1, max_size=30, unique=True).map(sorted)


@given(TIMES, st.floats(-1, 70))
def test_a_box_lies_between_its_neighbours_and_nowhere_else(times, at):
    t = np.array(times, np.float64)
    boxes = np.random.default_rng(0).uniform(0, 1, (len(t), 4)).astype(np.float32)
    face = DrawnFace("0-0", t, boxes, t[:0], np.zeros(0, np.float32), np.zeros((0, HEAT_SIDE, HEAT_SIDE), np.uint8))
    box = box_at(face, at)
    if box is None:
        before = t[t <= at]
        assert not len(before) or at - before[-1] > BOX_HOLD_S
        assert not len(before) or not len(t[t > at]) or t[t > at][0] - before[-1] > GAP_S
    else:
        before, after = boxes[t <= at][-1], boxes[t > at][:1]
        near = np.stack([before, *after])
        assert (box >= near.min(axis=0) - 1e-6).all() and (box <= near.max(axis=0) + 1e-6).all()


@given(TIMES, st.floats(-1, 70))
def test_a_heatmap_is_the_last_one_and_not_stale(times, at):
    t = np.array(times, np.float64)
    face = DrawnFace("0-0", t, np.zeros((len(t), 4)), t, np.zeros(len(t)), np.zeros((len(t), HEAT_SIDE, HEAT_SIDE)))
    moment = scored_at(face, at)
    if moment is None:
        assert not ((t <= at) & (at - t <= HEAT_HOLD_S)).any()
    else:
        assert t[moment] <= at + 1e-6 and not ((t > t[moment]) & (t <= at)).any()


def test_the_heatmap_of_a_clips_most_suspicious_frame_is_the_one_that_a_scan_keeps(tiny_model: Path):
    from tests.tiny_model import synthetic_clip

    explainer = Explainer(load_spec(tiny_model), "cpu")
    clip = synthetic_clip(3).fake
    frame, kept = explainer.explain(clip, len(clip))
    every = explainer.heatmaps(clip)
    assert every.shape == (*clip.shape[:3],) and every.max() <= 1
    assert kept.max() > 0 and np.allclose(every[frame], kept, atol=1e-4)
