"""A headless Chromium, and what is measured in it."""

from __future__ import annotations

import shutil
from pathlib import Path

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
AXE = (
    "node_modules/axe-core/axe.min.js",
    "/usr/lib/node_modules/axe-core/axe.min.js",
    "/usr/local/lib/node_modules/axe-core/axe.min.js",
)
"""Where npm puts axe-core: below the repository, or globally."""


def chromium() -> str | None:
    """Return the path of a Chromium that the machine has."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


def axe() -> str | None:
    """Return the source of axe-core, if it is installed."""
    root = Path(__file__).parents[2]
    return next(((root / path).read_text(encoding="utf-8") for path in AXE if (root / path).exists()), None)


CONTROLS = """
() => {
  const wanted = 'a[href], button, input, select, summary, [tabindex="0"]';
  return [...document.querySelectorAll(wanted)].filter((e) => e.checkVisibility({visibilityProperty: true}))
    .map((e, i) => { e.dataset.control = i; return e.dataset.control; });
}
"""
"""Numbers every visible control that the keyboard has to reach."""

FOCUSED = """
() => {
  const e = document.activeElement;
  const style = getComputedStyle(e);
  return [e.dataset.control ?? null, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
}
"""
"""Which control has the focus, and whether that shows."""

CONTRAST = """
() => {
  const parse = (text) => {
    const numbers = (text.match(/[\\d.]+(e-?\\d+)?/g) ?? []).map(Number);
    const scale = text.startsWith('color(srgb') ? 255 : 1;
    const [r, g, b, a = 1] = numbers;
    return [r * scale, g * scale, b * scale, a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat([1]);
  const light = (c) => {
    const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = c.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const background = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const found = {texts: 0, low: [], shapes: 0, faint: []};
  for (const element of document.querySelectorAll('body *')) {
    if (!element.checkVisibility({visibilityProperty: true})) continue;
    const style = getComputedStyle(element);
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join('');
    const svg = element instanceof SVGElement;
    if (text && !['title', 'desc', 'script', 'style'].includes(element.localName)) {
      found.texts += 1;
      const colour = parse(svg ? style.fill : style.color);
      const value = ratio(over(colour, background(element)), background(element));
      if (value < 4.5) found.low.push([text.slice(0, 40), element.className?.baseVal ?? element.className, value]);
    }
    if (svg && element.matches('.chart .line, .chart .bars rect, .legend .line')) {
      found.shapes += 1;
      const value = ratio(parse(element.localName === 'rect' ? style.fill : style.stroke), background(element));
      if (value < 3) found.faint.push([element.getAttribute('class'), value]);
    }
  }
  return found;
}
"""
"""Texts below 4.5:1 against what is behind them, and lines and bars below 3:1."""
