"use strict";
// What the pages of the report share.

// Copies the text of a part of the page, and says so on the button.
async function copyText(part, button) {
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(part.innerText);
  } catch {
    const range = document.createRange(); // where the browser gives a page from disk no clipboard
    range.selectNodeContents(part);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = words; }, 1500);
}
