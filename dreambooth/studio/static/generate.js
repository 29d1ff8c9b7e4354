// The generate page: words that a click puts into the prompt, images to start from shown at once, pins and comparing.
"use strict";

document.addEventListener("click", (event) => {
  const chip = event.target.closest?.("[data-insert]");
  if (chip) {
    const area = document.getElementById("prompt");
    const [from, to] = [area.selectionStart, area.selectionEnd];
    const before = area.value.slice(0, from);
    const text = (before && !before.endsWith(" ") ? " " : "") + chip.dataset.insert;
    area.setRangeText(text, from, to, "end");
    area.focus();
  }
  if (event.target.closest?.("[data-random]")) {
    document.getElementById("seed").value = String(Math.floor(Math.random() * 2 ** 31));
  }
});

// An image that was dropped is shown before it is sent.
document.addEventListener("change", (event) => {
  const slot = event.target.closest?.("[data-preview]");
  if (!slot || event.target.type !== "file" || event.target.name === "mask") return;
  const file = event.target.files[0];
  const image = slot.querySelector("img");
  const shown = slot.querySelector(".shown");
  if (!file || !image) return;
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  const kept = slot.querySelector("input[type=hidden][data-kept]");
  if (kept) kept.value = "";
  shown.hidden = false;
});
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-forget]");
  if (!button) return;
  const slot = button.closest("[data-preview]");
  for (const input of slot.querySelectorAll("input[type=file]")) input.value = "";
  for (const input of slot.querySelectorAll("input[type=hidden][data-kept]")) input.value = "";
  slot.querySelector(".shown").hidden = true;
});

// On a phone the results stand below the form: what was asked for is brought into view.
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target.id === "results") event.detail.target.firstElementChild?.scrollIntoView({ block: "nearest" });
});

// Pins stay beside the results while the page is open, also after it is loaded again.
const PINS = "studio.pins";
const pinned = () => JSON.parse(sessionStorage.getItem(PINS) || "[]");
function showPins() {
  const row = document.getElementById("pins");
  if (!row) return;
  const all = pinned();
  row.hidden = !all.length;
  row.querySelector("[data-pinned]").replaceChildren(...all.map(pinTile));
  document.getElementById("compare-pins").disabled = all.length < 2;
  for (const button of document.querySelectorAll("[data-pin]")) {
    button.setAttribute("aria-pressed", String(all.some((pin) => pin.id === button.dataset.pin)));
  }
}
function pinTile(pin) {
  const tile = document.createElement("div");
  tile.className = "tile";
  const image = document.createElement("img");
  Object.assign(image, { src: pin.thumb, alt: pin.alt, width: 96, height: 96 });
  const bar = document.createElement("div");
  bar.className = "bar";
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.pin = pin.id;
  button.title = "Unpin";
  button.setAttribute("aria-label", `Unpin: ${pin.alt}`);
  button.textContent = "×";
  bar.append(button);
  tile.append(image, bar);
  return tile;
}
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-pin]");
  if (!button) return;
  const all = pinned();
  const { pin: id, full, thumb, alt } = button.dataset;
  const others = all.filter((each) => each.id !== id);
  if (others.length === all.length) others.push({ id, full, thumb, alt });
  sessionStorage.setItem(PINS, JSON.stringify(others));
  showPins();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest?.("#compare-pins")) return;
  const [first, second] = pinned().slice(-2);
  const dialog = document.getElementById("compare");
  const images = dialog.querySelectorAll("img");
  [images[0].src, images[0].alt] = [first.full, first.alt];
  [images[1].src, images[1].alt] = [second.full, second.alt];
  dialog.showModal();
});
document.addEventListener("input", (event) => {
  if (event.target.id !== "cut") return;
  document.querySelector(".compare").style.setProperty("--cut", `${event.target.value}%`);
});
document.addEventListener("DOMContentLoaded", showPins);
document.addEventListener("htmx:afterSettle", showPins);
