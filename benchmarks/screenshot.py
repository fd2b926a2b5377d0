"""Makes the README's screenshot from a running app (needs Playwright and Debian's chromium).

python app.py &
python benchmarks/screenshot.py http://127.0.0.1:7860 assets/screenshots/restore.png
"""

from __future__ import annotations

import argparse

from playwright.sync_api import sync_playwright


def main() -> None:
    """Opens the page, sets alpha, clicks the hottest patch and its strongest latent, takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("file")
    parser.add_argument("--alpha", default="1.5")
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": options.width, "height": 1000})
        page.goto(f"{options.url}?__theme={options.theme}")
        page.wait_for_selector("#curves .js-plotly-plot .scatterlayer", timeout=60_000)
        page.fill("#alpha input[type=number]", options.alpha)
        page.keyboard.press("Enter")
        page.locator("#heat .sod-heat").first.locator("rect").nth(27).click()
        page.locator("#inspector tr[data-pick]").first.click()
        page.wait_for_selector("#strongest .sod-strip")
        page.wait_for_timeout(1000)  # Plotly's last redraw
        page.screenshot(path=options.file, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
