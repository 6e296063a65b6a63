"""How well text can be read on what lies under it."""

import numpy as np

COLOURS = """selector => {
  const node = document.querySelector(selector), rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  let around = node;
  while (getComputedStyle(around).backgroundColor === "rgba(0, 0, 0, 0)") around = around.parentElement;
  return [rgb(getComputedStyle(node).color), rgb(getComputedStyle(around).backgroundColor)];
}"""


def contrast(page, selector):
    """Of the text of the first such element and its ground, as WCAG defines it."""

    def luminance(colour):
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    light, dark = sorted(map(luminance, page.evaluate(COLOURS, selector)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
