"""Headless Chromium by its DevTools protocol over two pipes: needs neither a driver nor a package.

with Chromium("chromium", folder) as page:
    page.send("Page.navigate", url="http://127.0.0.1:8000")
    page.wait_for("document.title")
"""

import json
import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_WORDS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
LIMIT_S = 120  # for one reply or condition: a network in WebAssembly on a loaded machine


class Chromium:
    """A page in a browser of its own.

    Args:
        program: path of Chromium.
        folder: an empty folder for the profile; downloads go there too.
    """

    def __init__(self, program: str, folder: Path) -> None:
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()
        words = [program, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
        # the browser reads commands from descriptor 3 and writes to 4
        shell = ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", *words, *_WORDS]
        self._process = subprocess.Popen(
            [*shell, "about:blank"],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._write, self._read = to_browser, from_browser
        self._buffer, self._number = b"", 0
        self._session: dict[str, str] = {}
        self.problems: list[str] = []  # what the console says is wrong; no advice on speed
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "DOM", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the browser."""
        os.close(self._write)  # which ends it
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._write, json.dumps(request).encode() + b"\0")
        while (reply := self._receive()).get("id") != self._number:
            pass
        assert "error" not in reply, (method, reply["error"])
        return reply["result"]

    def open(self, url: str) -> None:
        """Go to a page, and wait until it has loaded."""
        self.send("Page.navigate", url=url)
        self.wait_for(f"location.href === '{url}' && document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page; promises are awaited."""
        reply = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def wait_for(self, condition: str) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + LIMIT_S
        while not (value := self.evaluate(condition)):
            text = self.evaluate("document.body?.innerText")
            assert time.monotonic() < end, f"{condition} stays false; the page says:\n{text}"
            time.sleep(0.05)
        return value

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to a file input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def _receive(self) -> dict[str, Any]:
        """The next message of the browser, which may be an event."""
        end = time.monotonic() + LIMIT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            assert data, "Chromium ended" if ready else f"no reply within {LIMIT_S} s"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(message["params"]["exceptionDetails"]["exception"]["description"])
        elif message.get("method") == "Log.entryAdded":
            entry = message["params"]["entry"]
            if entry["source"] != "rendering" and entry["level"] in ("error", "warning"):
                self.problems.append(f"{entry['text']} {entry.get('url', '')}")
        return message
