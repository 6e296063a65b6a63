"""How large a study page is and how long headless Chromium takes to open it, without a network.

    python benchmarks/study_page.py results/report/study.html

Seconds from the request of the file to its load event and the next frame drawn, in a context of its own each time; beside it an empty page,
and the same page with its figures decoded at once instead of when they come into sight.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def seconds(browser, path: Path, repetitions: int) -> list[float]:
    """To open a page, once for each repetition."""
    found = []
    for _ in range(repetitions):
        context = browser.new_context(offline=True, viewport={"width": 1400, "height": 1000})
        page = context.new_page()
        start = time.perf_counter()
        page.goto(path.as_uri())
        page.evaluate(DRAWN)
        found.append(time.perf_counter() - start)
        context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        text = options.page.read_text(encoding="utf-8")
        pages = {
            "the page": options.page.resolve(),
            "all figures at once": Path(folder) / "eager.html",
            "an empty page": Path(folder) / "empty.html",
        }
        pages["all figures at once"].write_text(text.replace(' loading="lazy"', ""), encoding="utf-8")
        pages["an empty page"].write_text("<!doctype html><title>empty</title>", encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        seconds(browser, pages["an empty page"], 1)  # the browser's own start
        print(
            f"{options.page.stat().st_size / 1e6:.2f} MB, {text.count('<img ')} figures, {text.count('<table ')} tables"
        )
        for name, path in pages.items():
            found = seconds(browser, path, options.repetitions)
            print(f"{name}: median {statistics.median(found):.2f} s, largest {max(found):.2f} s")
        browser.close()


if __name__ == "__main__":
    main()
