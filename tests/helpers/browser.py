"""A headless Chromium that tests drive as a person would, through its DevTools pipe: no driver, no web socket."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 90.0
"""Seconds until something that should happen counts as not happening; a busy machine is slow."""


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab: what it shows, what it complained about, and what it asked the network for."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = os.fdopen(reader, "rb")
        self._writer = os.fdopen(writer, "wb")
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        self._writer.close()
        self._reader.close()

    def ask(self, command: str, **parameters: Any) -> Any:
        """One DevTools command and its answer; events that come in between are kept."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": command, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{command}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._reader.read(1)) != b"\0":
            assert byte, "the browser has gone"
            message += byte
        event: dict[str, Any] = json.loads(message)
        kind, facts = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(facts["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(facts["args"]))
        elif kind == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(facts["entry"]))
        elif kind == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {facts['message']}")
        elif kind == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        return event

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file afresh and wait until its script has run."""
        self.ask("Page.navigate", url="about:blank")
        self.complaints.clear()
        self.requests.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert not self.complaints, f"never true: {expression}; complaints: {self.complaints}"
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of an element."""
        found = json.dumps(selector)
        self.run(f"document.querySelector({found}).scrollIntoView({{block: 'center', inline: 'center'}})")
        box = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({found}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def key(self, name: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **more)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.ask("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """An entry of a list; headless browsers do not open the list itself."""
        self.run(
            f"(list => {{ list.value = {json.dumps(value)}; list.dispatchEvent(new Event('change')) }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def rows(self, selector: str = "#board") -> list[list[str]]:
        """Texts of a table's body."""
        found: list[list[str]] = self.run(
            f"[...document.querySelector({json.dumps(selector)}).tBodies[0].rows]"
            ".map(row => [...row.cells].map(cell => cell.textContent))"
        )
        return found

    def emulate(self, **features: str) -> None:
        """Media features, such as prefers_color_scheme="dark"."""
        pairs = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.ask("Emulation.setEmulatedMedia", features=pairs)

    def screenshot(self, path: Path, width: int, height: int) -> None:
        """What a window of this size shows."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        time.sleep(1)
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def pdf(self) -> bytes:
        """The page on paper."""
        return base64.b64decode(self.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"])


@contextlib.contextmanager
def browser(program: str) -> Iterator[Page]:
    """Start one and close it."""
    listens, from_us = os.pipe()
    to_us, answers = os.pipe()
    # Away from 3 and 4, where the browser listens and answers.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (listens, answers)]
    os.close(listens)
    os.close(answers)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--no-first-run", "--disable-background-networking", "--remote-debugging-pipe", "--lang=en"),
            f"--user-data-dir={profile}",
        ]
        shell = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]} {ends[0]}<&- {ends[1]}>&-'
        with (Path(profile) / "log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", shell, "bash", program, *flags, "about:blank"],
                pass_fds=ends, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        for end in ends:
            os.close(end)
        page = Page(to_us, from_us)
        try:
            yield page
        finally:
            with contextlib.suppress(Exception):
                page._session = None
                page.ask("Browser.close")
            page.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            if process.poll() is None:
                process.kill()
                process.wait()
