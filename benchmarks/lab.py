"""A JupyterLab of its own on a free port, and notebooks in a headless Chromium; for screenshots and for tests/workbook/test_lab.py.

Nothing of the user's is read or written: Jupyter's folders lie in the one that is given. Nothing is fetched either.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOKEN = "robustlib"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
START, RUN = 60, 180  # seconds for the server, and for a notebook


def chromium() -> str | None:
    """Debian's Chromium; None if it is not installed."""
    return shutil.which("chromium")


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab whose notebooks and kernels live in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {name: str(folder / ".jupyter" / name.lower()) for name in PLACES}
    news = Path(places["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", *OPTIONS]
    with open(folder / "jupyter.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=os.environ | places, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(server, f"{address}/api", folder / "jupyter.log")
            yield address
        finally:
            server.terminate()
            server.wait(30)


PLACES = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")
OPTIONS = (
    "--LabApp.expose_app_in_browser=True",  # commands by name instead of clicks through menus
    "--LabApp.extension_manager=readonly",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)
# A notebook that is run before its kernel is there asks for one.
KERNEL = "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


def _wait(server: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium (playwright's `Browser`)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield started
        started.close()


def run_notebook(page: Any, address: str, notebook: str, ready: str) -> None:
    """Opens a notebook by itself, runs all its cells, and waits for an element that fits the selector `ready`."""
    page.goto(f"{address}/doc/tree/{notebook}?token={TOKEN}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=START * 1000)
    page.wait_for_function(KERNEL, timeout=START * 1000)
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(ready, timeout=RUN * 1000)


def change_theme(page: Any, theme: str) -> None:
    """Shows JupyterLab in its "Light" or its "Dark" theme."""
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    page.wait_for_timeout(1500)
