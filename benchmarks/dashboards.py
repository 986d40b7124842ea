"""Takes the pictures of docs/watching.md: TensorBoard of a run, in headless Chromium.

    cd WHERE && python benchmarks/dashboards.py runs/codiesp      # a minute; needs chromium

The run is named relative to where this is started, as it will be read in the pictures.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Picture -> the tags on it, as one types them into the search field; and its height.
PICTURES = {
    "learning": (r"1_loss|2_validation/(map|micro_f1|ndcg@5$|p@(1|5|8)$|r@10$|psp@5$)", 900),
    "bands": (r"3_bands_(within_map|r@10)|4_gates", 900),
    "machine": (
        r"5_learning_rate/(rows|epoch)|6_gradient_norm/total|7_speed/(data|doc|tok)|8_memory", 900,
    ),
}  # fmt: skip
CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--virtual-time-budget=20000",
)  # fmt: skip
START_SECONDS = 300  # TensorBoard is slow to import on a busy machine


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/data/plugin/scalars/tags") as answer:
                if answer.read() not in (b"", b"{}"):
                    return
        except urllib.error.URLError:
            pass
        time.sleep(1)
    raise SystemExit("TensorBoard does not show the run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run
    if run.is_absolute():
        parser.error("name the run relative to here: its path is in the pictures")
    browser = shutil.which("chromium") or parser.error("chromium is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(run / "tensorboard"),
         "--port", str(port), "--host", "127.0.0.1", "--load_fast=false"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, server)
        IMAGES.mkdir(exist_ok=True)
        for name, (tags, height) in PICTURES.items():
            place = f"{address}/?darkMode=false#scalars&tagFilter={quote(tags, safe='')}"
            path = IMAGES / f"dashboard-{name}.png"
            with tempfile.TemporaryDirectory() as profile:
                subprocess.run(
                    [browser, *CHROMIUM, f"--user-data-dir={profile}", f"--screenshot={path}",
                     f"--window-size=1640,{height}", f"{place}&_smoothingWeight=0"],
                    check=True, stderr=subprocess.DEVNULL, timeout=600,
                )  # fmt: skip
            print(path)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
