"""The page to send in a real browser: nothing runs over the edge, and it follows the reader's light or dark setting.

Chromium measures it in a frame of each width; where no Chromium is found these tests skip.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import record_factory as factory
from steph.base.messages import LANGUAGES, Language, speaking
from steph.tell.outlook import production_outlook
from steph.tell.report import write_page
from test_figures import many_attempts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (380, 820, 1400)
# what is wider than the frame and no part of something that scrolls by itself, and letters like their background
MEASURE = """
<!doctype html><body><pre id="found"></pre><iframe></iframe><script>
const frame = document.querySelector('iframe'), found = {}, widths = %s;
function measure() {
  const page = frame.contentDocument, edge = page.documentElement.clientWidth;
  const wide = [...page.querySelectorAll('main *, footer')].filter(one =>
    one.getBoundingClientRect().right > edge + 1 && one.getBoundingClientRect().width &&
    !one.closest('.scroll, pre')).map(one => one.outerHTML.slice(0, 80));
  const style = frame.contentWindow.getComputedStyle(page.body);
  found[edge] = {wide, scroll: page.scrollingElement.scrollWidth, ink: style.color, paper: style.backgroundColor,
    pictures: [...page.images].map(one => one.naturalWidth), folds: page.querySelectorAll('details').length};
}
function next() {
  if (!widths.length) { document.getElementById('found').textContent = JSON.stringify(found); return; }
  frame.style.cssText = 'border:0;height:900px;width:' + widths.shift() + 'px';
  setTimeout(() => { frame.contentDocument.querySelectorAll('details').forEach(one => { one.open = true; });
    setTimeout(() => { measure(); next(); }, 100); }, 100);
}
frame.onload = next;
frame.src = 'page.html';
</script></body>
"""


def measured(folder: Path, *options: str) -> dict[str, Any]:
    """What Chromium measured of `page.html` in this folder, by the width of its view; every fold was opened."""
    assert CHROMIUM is not None
    (folder / "frame.html").write_text(MEASURE % json.dumps(WIDTHS), encoding="utf-8")
    words = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--allow-file-access-from-files"),
        *("--hide-scrollbars", "--virtual-time-budget=20000", f"--user-data-dir={folder / 'browser'}", "--dump-dom"),
    )
    command = [CHROMIUM, *words, *options, (folder / "frame.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', shown, re.S)
    values: dict[str, Any] = json.loads(html.unescape(found))
    return values


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_fits_every_width_and_follows_light_and_dark(tmp_path: Path, language: Language) -> None:
    """On a phone, a tablet and a screen, every fold open, with ten attempts; ink and paper trade places."""
    record, samples = many_attempts(10, 9.0, None)
    record = record.changed(stages={**factory.out_of_memory_everywhere().stages, **record.stages})
    with speaking(language):
        outlook = production_outlook(record)
        write_page(record, (), tmp_path / "page.html", markdown=tmp_path / "r.md", samples=samples, outlook=outlook)
    seen = {
        name: measured(tmp_path, f"--blink-settings=preferredColorScheme={at}")
        for at, name in enumerate(("dark", "light"))
    }
    assert [int(width) for width in seen["light"]] == list(WIDTHS)
    for scheme in seen.values():
        for width, found in scheme.items():
            assert (found["wide"], found["scroll"]) == ([], int(width))
            assert found["folds"] > 5
            assert len(found["pictures"]) == 2
            assert all(found["pictures"])
    light, dark = seen["light"]["380"], seen["dark"]["380"]
    assert (light["paper"], dark["paper"]) == ("rgb(255, 255, 255)", "rgb(13, 17, 23)")
    assert light["ink"] != dark["ink"]
