"""Headless Chromium, told what to do over two pipes in its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
from contextlib import contextmanager

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")


class Page:
    """A page in a browser."""

    def __init__(self, commands, answers):
        self._commands, self._answers, self._number, self._session = commands, answers, 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def call(self, method, **params):
        """What a method of the protocol gives."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (said := json.loads(self._message())).get("id") != self._number:
            pass
        assert "result" in said, said
        return said["result"]

    def _message(self):
        data = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        return data

    def open(self, url, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)

    def value(self, script):
        """What a JavaScript expression is."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self):
        """The page as a PNG file."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@contextmanager
def page(folder):
    """A page of a browser of its own, whose files are in a folder."""
    (read, to_browser), (from_browser, write) = os.pipe(), os.pipe()
    shell = ("bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "-")
    command = [*shell, PROGRAM, *FLAGS, f"--user-data-dir={folder}"]
    with subprocess.Popen(command, pass_fds=(read, write), stderr=subprocess.DEVNULL) as process:
        os.close(read)
        os.close(write)
        with open(to_browser, "wb", buffering=0) as commands, open(from_browser, "rb") as answers:
            try:
                yield Page(commands, answers)
            finally:
                process.terminate()
