"use strict";
// Light or dark as the reader chose last; else as the system says.
const theme = {
  system: matchMedia("(prefers-color-scheme: dark)"),
  kept() {
    try {
      return localStorage.getItem("fedbrain-theme");
    } catch {
      return null; // a browser that keeps nothing for pages from disk
    }
  },
  isDark() {
    return (document.documentElement.dataset.theme || (theme.system.matches ? "dark" : "light")) === "dark";
  },
  choose(name) {
    document.documentElement.dataset.theme = name;
    try {
      localStorage.setItem("fedbrain-theme", name);
    } catch {
      // for this visit only
    }
  },
};
if (theme.kept()) document.documentElement.dataset.theme = theme.kept();
