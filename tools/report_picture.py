"""A report as a picture, much as GitHub shows it: python tools/report_picture.py REPORT.md OUT.png HEIGHT PART ...

A part is a name in the report's marks (summary, h1, …), or one with a heading of it, as in h2/試行.
Needs markdown-it-py and a Chromium; CHROMIUM names another program than `chromium`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
from steph.tell.keep import blocks_in

WIDTH = 940
STYLE = """
body { font: 16px/1.5 "Noto Sans", "Noto Sans CJK JP", sans-serif; color: #1f2328; background: #fff; padding: 8px 24px }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em }
h1, h2, h3, h4 { margin: 20px 0 12px }
table { border-collapse: collapse; margin-bottom: 16px }
td, th { border: 1px solid #d1d9e0; padding: 6px 13px }
tr:nth-child(2n) { background: #f6f8fa }
blockquote { color: #59636e; border-left: 4px solid #d1d9e0; padding: 0 1em; margin: 0 }
code { font: 85% "DejaVu Sans Mono", monospace; background: #818b981f; padding: .2em .4em; border-radius: 6px }
img { max-width: 100% }
"""


def section(text: str, heading: str) -> str:
    """Give what stands under a `###` heading, with it; the whole text where no heading is asked for."""
    return f"### {heading}{text.split(f'### {heading}', 1)[1]}".split("\n### ")[0] if heading else text


def main(report: Path, picture: Path, height: str, *names: str) -> None:
    """Write the picture; raises CalledProcessError where the browser fails."""
    texts = {block.id: block.text for block in blocks_in(report.read_bytes())}
    asked = [name.partition("/") for name in names]
    text = "\n\n".join(section(texts[part], heading) for part, _, heading in asked)
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    with tempfile.NamedTemporaryFile("w", dir=report.parent, suffix=".html", encoding="utf-8") as page:
        page.write(f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{body}")
        page.flush()
        browser = [os.environ.get("CHROMIUM", "chromium"), "--headless", "--no-sandbox", "--disable-gpu"]
        look = ["--hide-scrollbars", f"--window-size={WIDTH},{height}", f"--screenshot={picture.resolve()}"]
        subprocess.run([*browser, *look, f"file://{page.name}"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
