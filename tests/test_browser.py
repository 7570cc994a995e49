"""What a person sees: TensorBoard's pages of a real run, and its report, in chromium."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import run_command

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[1]
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1200"),
    *("--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
# All that the page shows, also within the components that it is built of.
TEXT = """
const found = [];
(function walk(node) {
  if (node.nodeType === Node.TEXT_NODE) { if (node.data.trim()) found.push(node.data.trim()); }
  if (node.nodeName === 'STYLE' || node.nodeName === 'SCRIPT') return;
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes || []) walk(child);
})(document.body);
return found;
"""
IMAGES = """
const found = [];
(function walk(node) {
  if (node.nodeName === 'IMG') found.push([node.src, node.naturalWidth]);
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes || []) walk(child);
})(document.body);
return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A chromium without a window."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: make install")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as opened:
        yield opened


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of two runs in logs/grid/today."""
    folder = tmp_path_factory.mktemp("place")
    done = run_command(
        folder, "train", "--multirun", "seed=0,1",
        "data=shapes", "data.train_size=100", "data.test_size=40", "data.batch_size=16",
        "model.network._target_=tiny.TinyNet", "trainer.max_epochs=2", "trainer.accelerator=cpu",
        "callbacks=histograms", "hydra.sweep.dir=logs/grid/today",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def tensorboard(place: Path) -> Iterator[str]:
    """The address of what `make tensorboard` starts."""
    options = "ARGS=--port 0 --reload_interval 2"
    told = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "tensorboard", options],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = [line for line in told.stdout.splitlines() if "tensorboard" in line]
    command = shlex.split(line)
    command[0] = str(Path(sys.executable).with_name(Path(command[0]).name))
    log = place / "tensorboard.log"
    with log.open("w") as file:
        environment = {**os.environ, "no_proxy": "*"}
        process = subprocess.Popen(command, cwd=place, stderr=file, stdout=file, env=environment)
        try:
            yield wait(lambda: re.search(r"http://\S+", log.read_text()))[0]
        finally:
            process.terminate()
            process.wait()


def wait(condition: Callable[[], Any], seconds: float = 90) -> Any:
    """Return the first value that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.3)
    raise AssertionError("it did not come in time")


def shows(browser: Any, *words: str) -> bool:
    """Whether the page says all of it; TensorBoard breaks names into pieces."""
    text = "".join(browser.execute_script(TEXT))
    return all(word in text for word in words)


def test_the_scalars(browser: Any, tensorboard: str, place: Path) -> None:
    browser.get(f"{tensorboard}?tagFilter=loss#timeseries")
    wait(lambda: shows(browser, "train/loss", "val/loss", "test/loss"))
    # Beside the curve, the value at its end; of this tag each run has one alone.
    browser.get(f"{tensorboard}?tagFilter=best#timeseries")
    for run in "01":
        best = json.loads((place / f"logs/grid/today/{run}/result.json").read_text())
        shown = f"{best['best_val/loss']:.4f}".rstrip("0")
        wait(lambda shown=shown: shows(browser, "best/val/loss", shown))


def test_the_confusion_matrix(browser: Any, tensorboard: str) -> None:
    browser.get(f"{tensorboard}?tagFilter=confusion#timeseries")
    wait(lambda: shows(browser, "val/confusion"))
    drawn = wait(
        lambda: [
            (source, width)
            for source, width in browser.execute_script(IMAGES)
            if "imageData" in source and width
        ]
    )
    assert all(width > 400 for _, width in drawn)


def test_the_hparams_table(browser: Any, tensorboard: str) -> None:
    browser.get(f"{tensorboard}#hparams")
    wait(lambda: shows(browser, "seed", "best/val/loss", "grid/today/0", "grid/today/1"))


def test_the_graph_and_the_histograms(browser: Any, tensorboard: str) -> None:
    browser.get(f"{tensorboard}#graphs")
    wait(lambda: shows(browser, "TinyNet"))
    browser.get(f"{tensorboard}#histograms")
    wait(lambda: shows(browser, "weights/fc.weight"))


def test_the_report(browser: Any, place: Path) -> None:
    done = run_command(place, "report", "logs/grid/today")
    assert done.returncode == 0, done.stderr
    browser.get((place / "logs/grid/today/report.html").as_uri())
    result = json.loads((place / "logs/grid/today/0/result.json").read_text())
    assert shows(browser, "seed=0", "seed=1", f"{result['best_val/loss']:.4f}", "data.train_size")
    images = browser.execute_script(IMAGES)
    assert len(images) == 11  # nine figures, the curves, those of both runs
    assert all(source.startswith("data:image/") and width > 0 for source, width in images)
    # Chromium tells of whatever it could not load.
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
