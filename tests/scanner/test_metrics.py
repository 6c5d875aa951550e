"""Metrics: what the dashboard asks for is what a scan counts, and nothing is counted where there is no Ray."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from scanner import metrics
from scanner.metrics import METRICS, PREFIX, count, observe, timed

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "grafana.json").read_text(encoding="utf-8"))
SUFFIXES = {"counter": ("",), "histogram": ("_bucket", "_sum", "_count")}
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def exposed() -> set[str]:
    """The names under which Prometheus finds the metrics."""
    return {PREFIX + name + suffix for name, metric in METRICS.items() for suffix in SUFFIXES[metric.kind]}


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_every_query_of_the_dashboard_names_metrics_and_tags_that_exist(title, query):
    names = re.findall(r"\b[a-z]\w*deepsweep_\w+", query)
    assert names and set(names) <= exposed(), title
    tags = {tag for metric in METRICS.values() for tag in metric.tags} | {"le"}
    used = set(re.findall(r"(\w+)=~?\"", query)) | {
        tag for group in re.findall(r"by \(([^)]*)\)", query) for tag in re.split(r",\s*", group)
    }
    assert used <= tags, title


def test_the_dashboard_shows_every_metric():
    asked = " ".join(query for _, query in QUERIES)
    assert all(name in asked for name in METRICS)


def test_the_dashboard_asks_a_data_source_that_grafana_lets_one_choose():
    assert [variable["type"] for variable in DASHBOARD["templating"]["list"]] == ["datasource"]
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
    places = [tuple(panel["gridPos"][key] for key in "xy") for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_the_operations_page_names_every_metric():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in METRICS)


def test_names_carry_their_units():
    for name, metric in METRICS.items():
        assert name.startswith("deepsweep_")
        assert name.endswith("_total" if metric.kind == "counter" else ("_seconds", "_ratio")), name


def test_what_the_code_counts_is_declared_with_its_tags():
    """A wrong name or tag would only show on a cluster, in the middle of a night."""
    calls = []
    for file in ("scan.py", "pipeline.py", "metrics.py"):
        for node in ast.walk(ast.parse((ROOT / "scanner" / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in ("count", "observe"):
                    calls.append((name, node.args[0].value, {keyword.arg for keyword in node.keywords}))
    assert {name for _, name, _ in calls} == METRICS.keys()
    for how, name, tags in calls:
        assert how == ("count" if METRICS[name].kind == "counter" else "observe")
        assert tags == set(METRICS[name].tags), name


def test_without_ray_nothing_happens(monkeypatch):
    monkeypatch.setattr(metrics, "_made", lambda name: pytest.fail(f"{name} was made"))
    monkeypatch.delitem(metrics.sys.modules, "ray", raising=False)
    count("deepsweep_videos_total")
    observe("deepsweep_pass_fill_ratio", 0.5, device="cpu")
    with timed("analyze"):
        pass
