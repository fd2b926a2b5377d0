"""Makes the README's screenshots from a running app (needs Playwright and Debian's chromium).

python app.py &
python benchmarks/screenshot.py http://127.0.0.1:7860 assets/screenshots/restore.png
python benchmarks/screenshot.py http://127.0.0.1:7860 assets/screenshots/erase.png --tab erase
"""

from __future__ import annotations

import argparse

from playwright.sync_api import Page, sync_playwright


def main() -> None:
    """Opens the page, shows a tab at work, takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("file")
    parser.add_argument("--tab", choices=["restore", "erase"], default="restore")
    parser.add_argument("--alpha", default="1.5")
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": options.width, "height": 1000})
        page.goto(f"{options.url}?__theme={options.theme}")
        page.wait_for_selector("#curves .js-plotly-plot .scatterlayer", timeout=60_000)
        {"restore": restore, "erase": erase}[options.tab](page, options)
        page.wait_for_timeout(1000)  # Plotly's last redraw
        page.screenshot(path=options.file, full_page=True)
        browser.close()


def restore(page: Page, options: argparse.Namespace) -> None:
    """Sets alpha, clicks the hottest patch and its strongest latent."""
    page.fill("#alpha input[type=number]", options.alpha)
    page.keyboard.press("Enter")
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


if __name__ == "__main__":
    main()
