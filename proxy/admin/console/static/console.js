// The parts of pages that move. Every page works without this file.
"use strict";

// Replace what moves by what the server has drawn anew.
for (const part of document.querySelectorAll("[data-live]")) {
  const events = new EventSource(part.dataset.live);
  events.onmessage = (event) => { part.innerHTML = event.data; };
  events.onerror = () => { if (events.readyState === EventSource.CLOSED) document.getElementById("still").hidden = false; };
  addEventListener("pagehide", () => events.close());
}

// Copy a secret that is shown once.
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

// Close an open confirmation by Escape.
document.addEventListener("keydown", (event) => {
  const open = event.key === "Escape" && event.target.closest("details[open]");
  if (open) { open.open = false; open.querySelector("summary").focus(); }
});
