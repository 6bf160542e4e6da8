"""The throughput benchmark: what it writes, on a model that takes no time."""

from pathlib import Path

import pytest

from benchmarks import throughput


def test_each_combination_gets_a_rate(
    bright_model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "usable_cores", lambda: 3)
    result = throughput.measure(bright_model, photos / "a.png", images=5, repeats=2)
    assert result["what"].startswith("bright, 1 instances")
    assert list(result["images_per_second"]) == [
        "1 x 3 threads, batch 1",
        "3 x 1 threads, batch 1",
        "3 x 2 threads, batch 1",
        "1 x 3 threads, batch 4",
        "1 x 3 threads, batch 8",
        "3 x 1 threads, batch 4",
    ]
    for name, rate in result["images_per_second"].items():
        assert rate == 5000 / result["times_ms"][name]["p50"]
        assert result["times_ms"][name]["count"] == 2
