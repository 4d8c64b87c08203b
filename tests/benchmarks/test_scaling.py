import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_scaling", FOLDER / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_a_point_is_measured(scaling):
    setting = scaling.Setting(rows=3, length=12, rank=2, adapters=2, vocabulary=64)
    figures = scaling.measure(setting, steps=2, threads=None)
    assert len(figures["each_seconds"]) == 2
    assert min(figures["each_seconds"]) <= figures["seconds"] <= max(figures["each_seconds"])


def test_panels_change_one_thing(scaling):
    usual = scaling.Setting()
    for panel in scaling.PANELS:
        first, *others = (scaling.setting_of(panel, value, quick=False) for value in panel.values)
        for other in others:
            changed = {name for name in vars(usual) if getattr(first, name) != getattr(other, name)}
            assert changed - {"token_budget"} == {panel.name}


def test_rows_are_half_masked(scaling):
    rows = scaling.documents(scaling.Setting(rows=3, length=10, vocabulary=50))
    assert [len(row["input_ids"]) for row in rows] == [10] * 3
    assert all(row["labels"] == [-100] * 5 + row["input_ids"][5:] for row in rows)


def test_the_line_is_that_of_least_squares(scaling):
    x, y = [1, 2, 4, 8, 9], [2.0, 2.9, 5.3, 8.1, 10.0]
    line = scaling.fit(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert (line["slope"], line["intercept"]) == pytest.approx((slope, intercept))
    assert line["r_squared"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert line["change"] == pytest.approx(slope * 8 / np.mean(y))
    assert scaling.fit([1, 2], [3.0, 3.0])["r_squared"] == 1


def test_the_figure_is_drawn_from_the_file(scaling, tmp_path):
    pytest.importorskip("matplotlib")
    points = [{"value": value, "seconds": 0.1 * value, "peak_bytes": 1e8} for value in (1, 2, 3)]
    fits = {
        what: scaling.fit([p["value"] for p in points], [p[what] for p in points]) for what in ("seconds", "peak_bytes")
    }
    report = {"panels": {"rows": {"label": "rows a step", "points": points, **fits}}}
    (tmp_path / "scaling.json").write_text(json.dumps(report))
    scaling.main(["--draw", "--output", str(tmp_path / "scaling.json")])
    drawn = (tmp_path / "scaling.svg").read_text()
    assert all(text in drawn for text in ("R² = 1.000", "flat (+0.0%)", "rows a step", "seconds a step", "GB"))
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
