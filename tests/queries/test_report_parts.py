"""What a report is put together from: the model's card, markup that can't act, and plots."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.registry import WEIGHTS, built_in, load_spec
from queries.report.cards import ModelCard, figures_rows, find_card, model_digest
from queries.report.elements import code, el, jpeg_uri
from queries.report.plots import Axis, clock, path_of, thin, ticks
from queries.text import escape_controls
from tests.queries.rows import write_part, write_run
from tests.queries.test_report import Parsed, judged, write

# --- the model's card -------------------------------------------------------------------------------------


def test_the_digest_is_the_registrys(tiny_spec):
    folder, digest = tiny_spec
    assert model_digest(folder, json.loads((folder / "model.json").read_bytes())) == digest


@pytest.fixture
def tiny_spec(tmp_path) -> tuple[Path, str]:
    """A folder with a model of another name than the built-in one, and its digest as scans write it."""
    content = json.loads((Path(load_spec.__code__.co_filename).parent / "weights/untrained/model.json").read_bytes())
    folder = tmp_path / "mine"
    folder.mkdir()
    content |= {"name": "mine", "thresholds": {"fake": 0.8, "real": 0.25}}
    (folder / "model.json").write_text(json.dumps(content, indent=3))
    return folder, load_spec(folder).digest


def test_a_card_is_shown_only_for_the_model_that_gave_the_scores(tiny_spec):
    folder, digest = tiny_spec
    (folder / "figures.json").write_text(json.dumps({"videos": {"auc": {"value": 0.91234, "low": 0.87, "high": None}}}))
    card = find_card("mine", digest, [str(folder)])
    assert isinstance(card, ModelCard)
    assert card.thresholds == {"fake": 0.8, "real": 0.25}
    assert card.figures == [("videos, auc", "0.912")]
    assert card.headline == [("AUC", "0.912")]
    assert "another version" in str(find_card("mine", "0" * 64, [str(folder)]))
    assert "not on this machine" in str(find_card("../../mine", digest))


def test_thresholds_and_fusion_are_those_of_the_card(tiny_spec, results):
    folder, _ = tiny_spec
    content = json.loads((folder / "model.json").read_bytes())
    content |= {"trained": True, "weights": {"file": "w.safetensors", "sha256": "0" * 64}, "seed": None}
    content["fusion"]["blink"] = 0.125
    (folder / "model.json").write_text(json.dumps(content))
    (folder / "w.safetensors").write_bytes(b"weights")
    write_run(results, settings={"model": str(folder)})
    of_model = {"model": "mine", "model_digest": model_digest(folder, content), "threshold": 0.8}
    write_part(results, [judged("a.mp4", 0.9, **of_model), judged("b.mp4", 0.1, **of_model)])
    text = Parsed(write(results)).text
    assert "real up to 0.250" in text and "fake from 0.800" in text and "blink +0.125" in text


FIGURES = {
    "videos": {"reals": 40, "fakes": 50}
    | {name: {"value": 0.7123, "low": 0.6, "high": 0.8} for name in ("auc", "ece", "fpr", "tpr")},
    "reliability": [
        {"low": 0.1, "high": 0.2, "count": 30, "mean_score": 0.15, "fakes": 0.2},
        {"low": 0.2, "high": 0.3, "count": 60, "mean_score": 0.25, "fakes": 0.3},
    ],
}


def test_what_decides_trust_is_shown_openly(tiny_spec, results):
    folder, _ = tiny_spec
    content = json.loads((folder / "model.json").read_bytes())
    content |= {"trained": True, "weights": {"file": "w.safetensors", "sha256": "0" * 64}, "seed": None}
    (folder / "model.json").write_text(json.dumps(content))
    (folder / "w.safetensors").write_bytes(b"weights")
    (folder / "figures.json").write_text(json.dumps(FIGURES | {"model_digest": model_digest(folder, content)}))
    write_run(results, settings={"model": str(folder)})
    of_model = {"model": "mine", "model_digest": model_digest(folder, content), "threshold": 0.8}
    write_part(results, [judged("a.mp4", 0.9, **of_model)])
    html = write(results).read_text("utf-8")
    openly = html[html.index('id="trust"') :].partition("<details")[0]
    for words in ("AUC", "calibration error (ECE)", "false-positive rate of ‘fake’", "0.712 [0.600, 0.800]"):
        assert words in openly, words
    assert "on 40 real and 50 fake videos" in openly
    assert "Reliability: share of fakes by score, of 90 labelled videos" in openly
    assert "0.20 to 0.30: 30% of 60 videos are fake" in openly


def test_figures_of_another_model_are_not_shown(tiny_spec):
    folder, digest = tiny_spec
    (folder / "figures.json").write_text(json.dumps(FIGURES | {"model_digest": "0" * 64}))
    card = find_card("mine", digest, [str(folder)])
    assert isinstance(card, ModelCard)
    assert (card.figures, card.headline, card.measured_on, card.reliability) == ([], [], None, [])


BIN = {"low": 0.1, "high": 0.2, "count": 3, "fakes": 0.5}


@pytest.mark.parametrize(
    "content",
    [
        [1, [2]],
        {"videos": [1], "reliability": {"low": 1}},
        {"videos": {"auc": {"value": [0.5] * 1000}, "reals": "many", "fakes": -1}},
        {"videos": {"reals": 10**400, "fakes": 1, "auc": "0.99"}},
        *({"reliability": [BIN, wrong]} for wrong in (None, 1, {}, BIN, BIN | {"low": "x"}, BIN | {"count": 1e400})),
        *({"reliability": [BIN | wrong]} for wrong in ({"fakes": 2}, {"high": 9}, {"count": 0}, {"low": float("nan")})),
        {"reliability": [BIN] * 100_000},
    ],
    ids=lambda content: str(content)[:60],
)
def test_figures_from_strangers_do_not_choke_the_page(tiny_spec, content):
    folder, digest = tiny_spec
    (folder / "figures.json").write_text(json.dumps(content))
    card = find_card("mine", digest, [str(folder)])
    assert isinstance(card, ModelCard)
    assert (card.headline, card.measured_on, card.reliability) == ([], None, [])
    assert all(len(name) <= 200 and len(value) <= 200 for name, value in card.figures)


def test_built_in_models_that_bring_figures_have_them_shown():
    for name in built_in():
        card = find_card(name, load_spec(name).digest)
        assert isinstance(card, ModelCard)
        if (brought := WEIGHTS / name / "figures.json").exists():
            assert len(card.headline) == 3 and card.measured_on
            assert bool(card.reliability) == ("reliability" in json.loads(brought.read_text()))


def test_figures_are_flattened_with_their_intervals():
    content = {
        "auc": {"value": 0.5, "low": 0.25, "high": 0.75},
        "by": {"x": {"fakes": 3}},
        "bins": [1, 2],
        "note": None,
    }
    assert list(figures_rows(content)) == [("auc", "0.500 [0.250, 0.750]"), ("by, x, fakes", "3"), ("note", "–")]


# --- markup and plots -------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_text_and_attributes_come_back_as_text(text, value):
    tags, data = [], []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)
    parser.handle_data = data.append
    parser.feed(el("p", text, title=value))
    parser.close()
    assert tags == ["p"]
    assert "".join(data) == escape_controls(text)


@pytest.mark.parametrize(
    "attributes", [{"onclick": "x"}, {"style": "x"}, {"src": "http://a"}, {"href": "javascript:x"}]
)
def test_elements_refuse_what_could_run_or_load(attributes):
    with pytest.raises(ValueError):
        el("a", "x", **attributes)


def test_code_cannot_end_its_own_element():
    with pytest.raises(ValueError):
        code("script", "'</script>'")
    assert jpeg_uri(b"GIF89a") is None


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(1, 12))
def test_ticks_are_few_round_and_inside(low, width, count):
    high = low + width
    found = ticks(low, high, count)
    assert len(found) <= count + 1
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in found)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=400), st.integers(10, 50))
def test_thinning_keeps_every_extreme(values, limit):
    kept = thin(list(range(len(values))), values, limit)
    known = [v for v in values if v is not None]
    assert len(kept) <= max(limit + 2, 0) or len(values) <= limit
    if known:
        shown = [v for _, v in kept if v is not None]
        assert (min(shown), max(shown)) == (min(known), max(known))


def test_curves_are_broken_where_nothing_is_known():
    x, y = Axis(0, 10, 0, 100), Axis(0, 1, 10, 0)
    data = path_of([(0, 0.5), (0.1, 0.5), (0.2, None), (0.3, 0.5), (5, 0.5)], x, y)
    assert (data.count("M"), data.count("L")) == (3, 1)


def test_moments_read_as_clocks():
    assert [clock(v) for v in (None, 12.34, 59.96, 245, 3723.04)] == ["–", "12.3 s", "1:00.0", "4:05.0", "1:02:03.0"]
