"""The dashboard in headless Chromium, over a real model that is being asked.

DASHBOARD_PNG in the environment says where its picture is kept, as docs/figures/dashboard.png.
"""

import os
import threading
import time
from pathlib import Path

import httpx
import pytest

from scoutattention import LLM, ScoutConfig
from scoutattention.eval.text import prose
from scoutattention.server.local import LocalEngine

from . import chromium
from .conftest import serving, until

MOST_BYTES = 150_000
TEXT = "document.getElementById('{}')?.textContent"
ANSWER = "document.getElementById('most').value = 12; document.getElementById('send').click()"


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium is installed: apt install chromium")
def test_the_dashboard_shows_what_the_server_does(tmp_path):
    config = ScoutConfig(budget=256, block_size=16)
    llm = LLM("smollm2", scout=config, max_model_len=4096, max_num_seqs=3, device_memory="24MiB")
    with llm, serving(LocalEngine(llm), model="smollm2") as client, chromium.page(tmp_path / "browser") as page:
        text, ended = prose().text, threading.Event()
        statuses = set()

        def ask(number: int) -> None:
            with httpx.Client(base_url=client.base_url, timeout=300) as own:
                for place in range(100):
                    begin = 3000 * (number + 2 * place)
                    body = {"prompt": text[begin : begin + 3000], "max_tokens": 150, "ignore_eos": True, "stream": True}
                    if not ended.is_set():
                        statuses.add(own.post("/v1/completions", json=body).status_code)

        askers = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
        for asker in askers:
            asker.start()
        try:
            page.open(str(client.base_url), 1000, 1125)
            until(lambda: page.value(TEXT.format("layers-text")) not in (None, "No step yet."), 200)
            time.sleep(float(os.environ.get("DASHBOARD_SECONDS", "5")))
            page.value(ANSWER)
            until(lambda: "tokens" in page.value(TEXT.format("told")), 120)
            shown = {
                name: page.value(TEXT.format(name))
                for name in ("trouble", "running", "layers-text", "slots-text", "told")
            }
            key_is_asked_for = page.value("document.getElementById('asks-key').offsetHeight > 0")
            picture = page.picture()
        finally:
            ended.set()
            client.server.end_all("the server is closing")
            for asker in askers:
                asker.join()
    assert statuses <= {200, 503}  # those that had not begun when the server was ended
    assert shown["trouble"] == ""
    assert not key_is_asked_for
    assert shown["running"] in ("0", "1", "2", "3")
    assert "the mean of 30 layers" in shown["layers-text"]
    assert " % of " in shown["slots-text"]
    assert "first token after" in shown["told"]
    assert picture[:4] == b"\x89PNG"
    assert len(picture) < MOST_BYTES
    if keep := os.environ.get("DASHBOARD_PNG"):
        Path(keep).write_bytes(picture)
