// What every page shares: messages, questions before deleting, dropping files, and looking at one image after another.
"use strict";

const toasts = () => document.getElementById("toasts");

function toast(text, { kind = "", action = null, seconds = 8 } = {}) {
  const box = document.createElement("div");
  box.className = `toast ${kind}`;
  const words = document.createElement("span");
  words.textContent = text;
  box.append(words);
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action.label;
    button.addEventListener("click", () => {
      box.remove();
      htmx.ajax("POST", action.url, { target: action.target || "#main", swap: action.swap || "none" });
    });
    box.append(button);
  }
  toasts().append(box);
  setTimeout(() => box.remove(), 1000 * seconds);
}

// The server sends HX-Trigger: {"toast": {"text": ..., "action": {"label": "Undo", "url": ...}}}.
document.addEventListener("toast", (event) => toast(event.detail.text, event.detail));

document.addEventListener("htmx:responseError", (event) => {
  const reply = event.detail.xhr;
  let text = reply.statusText || "The server did not answer.";
  try {
    const body = JSON.parse(reply.responseText);
    text = body.error?.message || body.message || body.detail || text;
  } catch {
    text = reply.responseText && reply.responseText.length < 400 ? reply.responseText : text;
  }
  toast(typeof text === "string" ? text : JSON.stringify(text), { kind: "error", seconds: 14 });
});
document.addEventListener("htmx:sendError", () =>
  toast("The studio does not answer. Is it still running in its terminal?", { kind: "error", seconds: 14 }),
);

// hx-confirm asks in a dialog of the page: "Title | text | button".
document.addEventListener("htmx:confirm", (event) => {
  if (!event.detail.question) return;
  event.preventDefault();
  const [title, text = "", button = "Delete"] = event.detail.question.split("|").map((part) => part.trim());
  const ask = document.getElementById("ask");
  document.getElementById("ask-title").textContent = title;
  document.getElementById("ask-text").textContent = text;
  document.getElementById("ask-yes").textContent = button;
  ask.returnValue = "";
  ask.showModal();
  ask.addEventListener("close", () => ask.returnValue === "yes" && event.detail.issueRequest(true), { once: true });
});

// A choice that is marked data-keep stays when the part of the page around it is drawn anew.
let kept = [];
document.addEventListener("htmx:beforeSwap", () => {
  kept = [...document.querySelectorAll("input[data-keep]:checked")].map((input) => [input.name, input.value]);
});
document.addEventListener("htmx:afterSwap", () => {
  for (const [name, value] of kept) {
    const again = document.querySelector(`input[data-keep][name="${name}"][value="${CSS.escape(value)}"]`);
    if (again) again.checked = true;
  }
});

// Files may be dropped on the whole of a .drop, and pasted where it says data-paste.
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    event.target.closest?.(".drop")?.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  const drop = event.target.closest?.(".drop");
  if (drop && !drop.contains(event.relatedTarget)) drop.classList.remove("over");
});
function give(drop, files) {
  const input = drop.querySelector("input[type=file]");
  if (!input || !files.length) return;
  const all = new DataTransfer();
  for (const file of input.multiple ? files : [files[0]]) all.items.add(file);
  input.files = all.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}
document.addEventListener("drop", (event) => {
  event.preventDefault(); // a file beside it would else replace the page
  const drop = event.target.closest?.(".drop") || document.querySelector(".drop[data-anywhere]");
  drop?.classList.remove("over");
  if (drop) give(drop, [...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const drop = document.querySelector(".drop[data-paste]");
  const files = [...(event.clipboardData?.files || [])].filter((file) => file.type.startsWith("image/"));
  if (drop && files.length) give(drop, files);
});

// Numbers of sliders stand beside them; data-unit follows.
document.addEventListener("input", (event) => {
  if (event.target.type !== "range") return;
  const output = document.querySelector(`output[for="${event.target.id}"]`);
  if (output) output.textContent = event.target.value + (output.dataset.unit || "");
});

// One image, large: opened by a tile, walked with the arrow keys.
const look = () => document.getElementById("look");
let opener = null;
document.addEventListener("click", (event) => {
  const tile = event.target.closest?.("[data-look]");
  if (tile) opener = tile;
  if (event.target.closest?.("[data-close]")) event.target.closest("dialog").close();
  if (event.target === look()) look().close();
});
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target === look() && !look().open && look().innerHTML.trim()) look().showModal();
});
function walk(by) {
  const tiles = [...document.querySelectorAll("[data-look]")];
  const next = tiles[tiles.findIndex((tile) => tile.dataset.look === opener?.dataset.look) + by];
  if (next) {
    opener = next;
    htmx.ajax("GET", next.dataset.look, { target: "#look", swap: "innerHTML" });
  }
}
document.addEventListener("click", (event) => {
  const by = event.target.closest?.("[data-walk]")?.dataset.walk;
  if (by) walk(Number(by));
});
document.addEventListener("keydown", (event) => {
  if (!look()?.open || event.target.matches("input, textarea, select")) return;
  if (event.key === "ArrowRight") walk(1);
  if (event.key === "ArrowLeft") walk(-1);
});
document.addEventListener("close", (event) => event.target === look() && opener?.focus(), true);

// Text that is copied with one click.
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  toast("Copied.", { seconds: 2 });
});

// Ctrl+Enter sends the form that one types in.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form?.requestSubmit();
});

// Buttons that open a dialog of the page.
document.addEventListener("click", (event) => {
  const name = event.target.closest?.("[data-open]")?.dataset.open;
  if (name) document.getElementById(name).showModal();
});

// The server sends an event whenever a job changes. Parts of the page are drawn anew at most once a second ("jobs") or
// every four ("jobs-slow"), and once more behind the last event; a page that nobody sees waits until somebody does.
class Pulse {
  constructor(name, seconds) {
    Object.assign(this, { name, seconds, next: 0, timer: null });
  }

  ask() {
    if (this.timer || document.hidden) {
      this.isOwed = true;
      return;
    }
    this.timer = setTimeout(() => this.beat(), Math.max(0, this.next - Date.now()));
  }

  beat() {
    this.timer = null;
    this.next = Date.now() + 1000 * this.seconds;
    document.body.dispatchEvent(new CustomEvent(this.name));
    if (this.isOwed) {
      this.isOwed = false;
      this.ask();
    }
  }
}
const pulses = [new Pulse("jobs", 1), new Pulse("jobs-slow", 4)];
for (const name of ["sse:job", "sse:gone"]) document.addEventListener(name, () => pulses.forEach((pulse) => pulse.ask()));
document.addEventListener("visibilitychange", () => document.hidden || pulses.forEach((pulse) => pulse.ask()));

// What was switched shows it at once; what was deleted leaves the page.
document.addEventListener("htmx:afterRequest", (event) => {
  const button = event.detail.elt;
  if (!event.detail.successful) return;
  if (button.matches?.("[data-toggle]")) {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  }
  const trigger = event.detail.xhr.getResponseHeader("HX-Trigger-After-Settle");
  if (trigger === "images-gone") leave(button);
});
function leave(button) {
  const row = button.closest("tr");
  if (row) return row.remove();
  const gone = button.closest("#look") ? [opener] : [...document.querySelectorAll(".pick:checked")];
  for (const each of gone) each?.closest(".tile")?.remove();
  document.dispatchEvent(new CustomEvent("htmx:afterSettle", { detail: { elt: document.body } }));
}

// The export dialog is about the run whose button opened it.
document.addEventListener("click", (event) => {
  const name = event.target.closest?.("[data-export]")?.dataset.export;
  if (name) document.getElementById("export-run").value = name;
});
