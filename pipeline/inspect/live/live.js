"use strict";
const REFRESH_MS = 3000;

async function refresh() {
  try {
    const response = await fetch(location.href, { cache: "no-store" });
    if (response.ok) {
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      document.getElementById("live").replaceWith(page.getElementById("live"));
      document.title = page.title;
    }
  } catch {
    document.title = "not connected";
  }
  setTimeout(refresh, REFRESH_MS);
}

setTimeout(refresh, REFRESH_MS);
