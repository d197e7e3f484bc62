"""The first screen of a report as a picture: python tools/report_picture.py RECORD OUT.png LANGUAGE HEIGHT

Draws the page that `steph report --html` writes of the record's folder, 900 px wide and HEIGHT px high, in a Chromium;
CHROMIUM names another program than `chromium`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CLONE = Path(__file__).parents[1]
WIDTH = 900


def main(record: Path, picture: Path, language: str, height: str) -> None:
    """Write the picture; raises CalledProcessError where the report or the browser fails."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        own = {**os.environ, "PYTHONPATH": str(CLONE / "plugins")}
        report = ["steph.cli", "report", str(record), "--output", str(page), "--language", language]
        subprocess.run([sys.executable, "-m", *report], env=own, check=True)
        browser = [os.environ.get("CHROMIUM", "chromium"), "--headless", "--no-sandbox", "--disable-gpu"]
        look = ["--hide-scrollbars", f"--window-size={WIDTH},{height}", f"--screenshot={picture.resolve()}"]
        subprocess.run([*browser, *look, page.as_uri()], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
