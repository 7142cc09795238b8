"""Work that takes long says how much of all is done, how fast, and how long the rest takes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from raypaml import counting
from raypaml.cli import say
from raypaml.counting import Count, number_of, progress_line
from raypaml.preparation import shard_tasks
from raypaml.preparation.image_form import ImageForm
from raypaml.preparation.image_store import Fetched
from raypaml.preparation.probe import Probe
from raypaml.preparation.shard_tasks import ShardJob, counted_in
from raypaml.preparation.sharding_progress import Progress


def test_the_line_of_every_command() -> None:
    begun = progress_line("predicting test", 1_000, 13_000, "images", 100.0)
    assert begun == "predicting test: 1,000 of 13,000 images, 100 images/s, 2:00 left"
    assert progress_line("a", 0, 5, "parts", 0.0) == "a: 0 of 5 parts, time left not known yet"
    assert progress_line("a", 0, 0, "parts", 0.0) == "a: 0 of 0 parts"
    assert progress_line("a", 5, 5, "parts", 0.251, "2 broken") == "a: 5 of 5 parts, 2 broken, 0.25 parts/s"


def test_a_log_has_the_time_of_progress_and_of_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = progress_line("a", 1, 5, "parts", 1.0)
    say(line)
    say("8 shards read")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    say(line)
    logged, *shown = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  a: 1 of 5 parts, 1 parts/s, 0:04 left", logged)
    assert shown == ["8 shards read", line]


def test_one_is_no_plural() -> None:
    assert [number_of(count, "node") for count in (0, 1, 2, 1234)] == ["0 nodes", "1 node", "2 nodes", "1,234 nodes"]


def test_a_count_speaks_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [100.0], list[str]()
    monkeypatch.setattr(counting.time, "monotonic", lambda: now[0])
    count = Count("scoring", 40, said.append, done=10)
    for _ in count.each(range(3), lambda _: 10):
        now[0] += 4.0
    # 10 more in 4 s are too soon to say, 20 in 8 s are not: those done before are not part of the rate
    assert said == [
        "scoring: 30 of 40 images, 2.5 images/s, 0:04 left",
        "scoring: 40 of 40 images, 2.5 images/s",
    ]


def test_images_of_a_shard_that_is_being_written_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of one shard was `0 of 2,000 images, unknown left` until its end."""
    monkeypatch.setattr(shard_tasks, "NOTE_SECONDS", 0.0)
    job = ShardJob(tmp_path, ("a",), ImageForm(), 0, 2000)
    job.count("000007").write_text("999")  # left by a run that was killed
    said: list[str] = []
    images = counted_in(job.count("000000"), [Fetched(str(number)) for number in range(500)])
    with Progress("train", job, 2000, said.append) as progress:
        for _ in range(101):
            next(images)
        time.sleep(0.01)
        progress._count()
        line = progress.line()
    assert re.fullmatch(r"train: 100 of 2,000 images, [\d,]+ images/s, [\d:]+ left", line)


@pytest.mark.parametrize(("workers", "cores", "seconds"), [(1, 2, 10.0), (2, 2, 5.0), (8, 2, 4.0), (8, 16, 1.25)])
def test_more_workers_than_cores_are_no_faster(workers: int, cores: int, seconds: float) -> None:
    seen: Any = Probe(asked=64, written=64, bytes_read=0, bytes_written=0, seconds=0.01, processor_seconds=0.008)
    assert seen.seconds_for(1000, workers, cores) == pytest.approx(seconds)
