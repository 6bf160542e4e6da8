"""Folders of very many images: time to list them, memory per image, results of all."""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from condinst_infer.cli import predict
from condinst_infer.cli.sources import media
from condinst_infer.pipeline import Pipeline
from condinst_infer.system.row_file import IN_MEMORY, ROWS, RowFile, write_with_rows
from tests.support.command_line import Run
from tests.support.fake_session import FakeSession

PER_IMAGE = 4096  # bytes; 1,600 were measured: a path, a job and a report
LISTED_PER_SECOND = 2000  # 21,000 on an idle core


class ForgetfulSession(FakeSession):
    """Keeps nothing of what it was given."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = super().run(feeds)
        self.fed.clear()
        return out


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


@pytest.mark.parametrize(
    "count",
    [pytest.param(5000, marks=pytest.mark.slow), pytest.param(100_000, marks=pytest.mark.long)],
)
def test_memory_does_not_hold_the_results(
    count: int, tmp_path: Path, condinst: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "load", lambda *_, **__: Pipeline(ForgetfulSession()))
    image = np.zeros((24, 24, 3), np.uint8)
    image[4:20, 4:20] = 230
    content = cv2.imencode(".png", image)[1].tobytes()
    for number in range(count):
        path = Path(f"photos/{number // 1000}/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    start = time.perf_counter()
    assert len(media(["photos"], Path("out")).images) == count
    assert count / (time.perf_counter() - start) > LISTED_PER_SECOND
    command = ("predict", "fake.onnx", "photos", "-o", "out", "--no-overlays", "--workers", 1)
    before = resident_bytes()
    status, out, err = condinst(*command)
    growth = resident_bytes() - before
    assert (status, err) == (0, "") and f"\n{count} images, {count} instances, " in out
    lines = 2 * len(out)  # which the test keeps
    assert growth - lines < IN_MEMORY + count * PER_IMAGE
    rows = json.loads(Path("out/detections.json").read_text())
    assert [row["image_id"] for row in rows] == sorted(
        range(count), key=lambda n: (str(n // 1000), str(n))
    )


def test_rows_wait_in_a_file(tmp_path: Path) -> None:
    with closing(RowFile(tmp_path / "new")) as rows:
        before, added = resident_bytes(), 120 << 20
        for _ in range(added // 600_000):
            rows.add([{"text": "x" * 600_000}])
        assert resident_bytes() - before < added // 2
        assert list((tmp_path / "new").iterdir()) == []  # the file has no name


def test_rows_in_the_content_of_a_file(tmp_path: Path) -> None:
    with closing(RowFile(tmp_path / "new")) as rows:
        rows.add([{"id": number, "text": "é" * 1000} for number in range(10)])
        assert not (tmp_path / "new").exists()
        rows.add([{"text": "x" * IN_MEMORY}])
        write_with_rows(tmp_path / "a.json", {"first": 1, "rows": ROWS, "last": [2]}, rows)
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content) == ["first", "rows", "last"] and content["rows"][9]["text"] == "é" * 1000
    assert len(content["rows"]) == 11
    for some in ([], [1], [{"a": 1}, {"b": None}]):
        write_with_rows(tmp_path / "b.json", ROWS, iter(some))
        assert (tmp_path / "b.json").read_text() == json.dumps(some) + "\n"
