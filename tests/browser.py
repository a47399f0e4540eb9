"""A page in headless Chromium, at a size and in fonts that are the same on every machine."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars "
    "--window-size=1400,1000 --force-color-profile=srgb --font-render-hinting=none "
    "--disable-lcd-text"
)
WIDE, PHONE = (1400, 1250), (390, 2300)  # pixels
# The page's own words in fonts that matplotlib ships, as adopted sheets and fonts made of bytes
# are under no content security policy.
_FONTS = """
const [sheet, done] = [new CSSStyleSheet(), arguments[2]];
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
sheet.replaceSync(`* { font-family: Tested !important; caret-color: transparent !important; }
  #source, #source *, #equation, #steps td:nth-child(2) { font-family: TestedMono !important; }`);
document.adoptedStyleSheets = [sheet];
const faces = [["Tested", arguments[0]], ["TestedMono", arguments[1]]];
Promise.all(faces.map(([name, text]) => new FontFace(name, bytes(text)).load())).then((loaded) => {
  loaded.forEach((face) => document.fonts.add(face));
  requestAnimationFrame(() => requestAnimationFrame(done));
});
"""
_READY = """
const done = arguments[0];
(function wait() { document.body.dataset.ready ? done() : setTimeout(wait, 20); })();
"""


def program(names: tuple[str, ...]) -> str | None:
    """The first of these that is installed."""
    return next((path for name in names if (path := shutil.which(name))), None)


def browsers() -> Iterator[Any]:
    """A driver, quit afterwards; without Chromium tests are skipped, or fail if it is demanded."""
    chromium, chromedriver = program(CHROMIUM), program(("chromedriver",))
    if chromium is None or chromedriver is None:
        missing = "chromium and chromedriver are not both installed"
        if os.environ.get("TNC_BROWSER") == "1":
            pytest.fail(f"{missing}, and TNC_BROWSER=1 demands them")
        pytest.skip(missing)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ARGUMENTS.split():
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield made
    made.quit()


class Page:
    """A page in the browser: elements by id, and what the page's own code computes."""

    def __init__(self, driver: Any, size: tuple[int, int] = WIDE) -> None:
        self.driver = driver
        driver.set_script_timeout(60)
        self.resize(size)
        self.emulate()

    def open(self, path: Path) -> Page:
        self.driver.get(path.resolve().as_uri())
        self.driver.execute_async_script(_READY)
        return self

    def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip

    def emulate(self, *, media: str = "", scheme: str = "light") -> None:
        """Show the page on "print", or to somebody who prefers the dark scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", media=media, features=features)

    def tell(self, command: str, **arguments: Any) -> Any:
        """A command of Chrome's DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def find(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def count(self, selector: str) -> int:
        return len(self.driver.find_elements("css selector", selector))

    def texts(self, selector: str) -> list[str]:
        found = self.driver.find_elements("css selector", selector)
        return [element.get_attribute("textContent") for element in found]

    def run(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.keys import Keys

        body = self.driver.find_element("css selector", "body")
        for key in keys:
            body.send_keys(getattr(Keys, key, key))

    def press_there(self, key: str) -> None:
        """A key where the focus is."""
        from selenium.webdriver.common.keys import Keys

        self.driver.switch_to.active_element.send_keys(getattr(Keys, key, key))

    def slide(self, size: int) -> None:
        box = self.find("sliders").find_element("css selector", "input[type=number]")
        self.driver.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))",
            box, size,
        )  # fmt: skip

    def set_fonts(self) -> None:
        """Write everything in the fonts that matplotlib ships."""
        import matplotlib

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        fonts = [(folder / f"{name}.ttf").read_bytes() for name in ("DejaVuSans", "DejaVuSansMono")]
        texts = [base64.b64encode(font).decode() for font in fonts]
        self.driver.execute_async_script(_FONTS, *texts)

    def boxes(self, *selectors: str) -> list[tuple[int, int, int, int]]:
        """Left, top, right, bottom of the first element of each selector, in pixels."""
        found = [self.run(_BOX.format(selector)) for selector in selectors]
        return [(int(x), int(y), int(right) + 1, int(bottom) + 1) for x, y, right, bottom in found]

    def shot(self) -> bytes:
        picture: bytes = self.driver.get_screenshot_as_png()
        return picture

    def complaints(self) -> list[Any]:
        return [entry for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]


_BOX = "(() => {{ const b = document.querySelector('{}').getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; }})()"  # noqa: E501
