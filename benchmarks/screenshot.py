"""Makes the README's pictures from a running app (needs Playwright and Debian's chromium).

python app.py &
python benchmarks/screenshot.py http://127.0.0.1:7860 assets/screenshots/restore.gif
python benchmarks/screenshot.py http://127.0.0.1:7860 assets/screenshots/restore.png
python benchmarks/screenshot.py http://127.0.0.1:7860 assets/screenshots/erase.png --tab erase
python benchmarks/screenshot.py http://127.0.0.1:7860 assets/screenshots/clamp.png --tab clamp
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

SWEEP = (0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.15, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6.5, 8, 10)
"""The alphas of the moving picture: slow where the class returns."""
FRAME_MS, END_MS = 260, 1600
"""How long an alpha stays, and the first and the last one."""
PAGE_WIDTH, GIF_WIDTH = 1300, 1000
"""The browser's and the moving picture's, in pixels: GitHub shows a README no wider."""
UNUSED = "footer, .row:has(> .column > #inspector) { display: none !important }"
"""What the moving picture leaves out, so that it fits a screen."""


def main() -> None:
    """Opens the page, shows a tab at work, takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("file", type=Path, help="a .png, or a .gif of the Restore tab while alpha grows")
    parser.add_argument("--tab", choices=["restore", "erase", "clamp"], default="restore")
    parser.add_argument("--alpha", default="1.5")
    parser.add_argument("--width", type=int, help=f"of the page, in pixels; default: 1440, for a .gif {PAGE_WIDTH}")
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    options = parser.parse_args()
    moves = options.file.suffix == ".gif"
    width = options.width or (PAGE_WIDTH if moves else 1440)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 1000})
        page.goto(f"{options.url}?__theme={options.theme}")
        page.wait_for_selector("#curves .js-plotly-plot .scatterlayer", timeout=60_000)
        if moves:
            write_gif(sweep(page), options.file)
        else:
            {"restore": restore, "erase": erase, "clamp": clamp}[options.tab](page, options)
            page.wait_for_timeout(1000)  # Plotly's last redraw
            page.screenshot(path=options.file, full_page=True)
        browser.close()


def restore(page: Page, options: argparse.Namespace) -> None:
    """Sets alpha, clicks the hottest patch and its strongest latent."""
    set_alpha(page, options.alpha)
    page.locator("#heat .sod-heat").first.locator("rect").nth(27).click()
    page.locator("#inspector tr[data-pick]").first.click()
    page.wait_for_selector("#strongest .sod-strip")


def erase(page: Page, options: argparse.Namespace) -> None:
    """Draws the first prompt before and after, then all objects."""
    page.get_by_role("tab", name="Erase").click()
    page.locator("#erase-prompt textarea").wait_for()
    page.wait_for_timeout(2000)
    page.locator("#erase-generate").click()
    page.locator("#erase-headline h3").wait_for(timeout=120_000)
    page.locator("#erase-grid").click()
    page.locator(".sod-objects").wait_for(timeout=120_000)


def clamp(page: Page, options: argparse.Namespace) -> None:
    """A multiple-choice question about the first field, and what a word says that made a latent fire."""
    page.get_by_role("tab", name="Clamp").click()
    page.wait_for_selector("#clamp-firing table", timeout=120_000)
    page.locator("#clamp-field input").click()
    page.get_by_role("option").first.click()
    page.wait_for_selector("#clamp-options .js-plotly-plot", timeout=120_000)
    page.wait_for_selector("#clamp-ask")
    page.locator(".sod-asked mark").last.click()


def set_alpha(page: Page, alpha: float | str) -> None:
    """Types it into the slider's box."""
    page.fill("#alpha input[type=number]", str(alpha))
    page.keyboard.press("Enter")


def sweep(page: Page) -> list[Image.Image]:
    """A picture of the page for each alpha of SWEEP."""
    page.add_style_tag(content=UNUSED)
    page.wait_for_timeout(2000)
    frames = []
    for alpha in SWEEP:
        set_alpha(page, alpha)
        page.wait_for_timeout(1200)  # the answer, and Plotly's redraw
        frames.append(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB"))
    return frames


def write_gif(frames: list[Image.Image], path: Path) -> None:
    """Writes a loop of the frames in one palette, without dithering: Pillow keeps only what changes between two."""
    height = round(frames[0].height * GIF_WIDTH / frames[0].width)
    small = [frame.resize((GIF_WIDTH, height), Image.Resampling.LANCZOS) for frame in frames]
    some = [small[0], small[len(small) // 2], small[-1]]
    together = Image.new("RGB", (GIF_WIDTH, height * len(some)))
    for i, frame in enumerate(some):
        together.paste(frame, (0, height * i))
    palette = together.quantize(256, dither=Image.Dither.NONE)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    stay = [END_MS, *[FRAME_MS] * (len(rest) - 1), END_MS]
    first.save(path, save_all=True, append_images=rest, duration=stay, loop=0, optimize=True)


if __name__ == "__main__":
    main()
