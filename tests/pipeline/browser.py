"""Headless Chromium, driven over its own protocol through two pipes: no port, no other package."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_SECONDS = 120
# No network of its own accord; a sandbox needs rights that a container seldom gives.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {"ArrowDown": 40, "ArrowUp": 38, "ArrowRight": 39, "Tab": 9, "Enter": 13, " ": 32}


def chromium() -> str | None:
    """Path of the browser, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a browser; use as a context manager."""

    def __init__(self, profile: Path) -> None:
        program = chromium()
        assert program is not None
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        # The protocol is spoken on descriptors 3 and 4; kept apart from them while they move.
        high = [fcntl.fcntl(one, fcntl.F_DUPFD, 50) for one in (theirs_in, theirs_out)]
        command = f'exec "$@" 3<&{high[0]} 4>&{high[1]} {high[0]}<&- {high[1]}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", program, *FLAGS, f"--user-data-dir={profile}",
             "about:blank"],
            pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for one in (theirs_in, theirs_out, *high):
            os.close(one)
        self._read, self._write = ours_in, os.fdopen(ours_out, "wb")
        self._received = b""
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._write.close()  # the browser leaves when the pipe does
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what comes meanwhile is kept in `events`."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, path: Path, view: str = "") -> None:
        """Open a file and wait until it has loaded."""
        # From a blank page: another fragment alone would not load anew.
        self._navigate("about:blank")
        self.events.clear()
        self._navigate(path.resolve().as_uri() + view)

    def _navigate(self, url: str) -> None:
        # By its loader: the event of the page before may come late and be taken for this one's.
        loader = self.call("Page.navigate", url=url)["loaderId"]
        while not any(
            one["method"] == "Page.lifecycleEvent"
            and (one["params"]["name"], one["params"]["loaderId"]) == ("load", loader)
            for one in self.events
        ):
            self.events.append(self._next())

    def value(self, script: str) -> Any:
        """Return what an expression gives in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, as a person would."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                windowsVirtualKeyCode=KEYS[key],
            )  # fmt: skip

    def resize(self, width: int, height: int) -> None:
        """Give the window another size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def requests(self) -> list[str]:
        """Addresses that the page has asked for."""
        sent = [one for one in self.events if one["method"] == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in sent]

    def complaints(self) -> list[str]:
        """Errors of scripts and of the content security policy."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(one["params"]) for one in self.events if one["method"] in kinds]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], PATIENCE_SECONDS)
            assert ready, f"the browser has said nothing for {PATIENCE_SECONDS} s"
            some = os.read(self._read, 1 << 16)
            assert some, "the browser has gone away"
            self._received += some
        message, _, self._received = self._received.partition(b"\0")
        return dict(json.loads(message))
