// The gallery: images are picked with boxes, and what is done to all of them is done at once.
"use strict";

function pickedBoxes() {
  return [...document.querySelectorAll(".pick:checked")];
}
function showPicked() {
  const bar = document.getElementById("picked");
  if (!bar) return;
  const boxes = pickedBoxes();
  bar.hidden = !boxes.length;
  document.getElementById("gallery").classList.toggle("picking", boxes.length > 0);
  bar.querySelector("[data-count]").textContent = boxes.length === 1 ? "1 image" : `${boxes.length} images`;
}
let lastBox = null;
document.addEventListener("click", (event) => {
  const box = event.target.closest?.(".pick");
  if (box) {
    if (event.shiftKey && lastBox) {
      const all = [...document.querySelectorAll(".pick")];
      const [from, to] = [all.indexOf(lastBox), all.indexOf(box)].sort((a, b) => a - b);
      for (const each of all.slice(from, to + 1)) each.checked = box.checked;
    }
    lastBox = box;
    showPicked();
  }
  if (event.target.closest?.("[data-unpick]")) {
    for (const each of pickedBoxes()) each.checked = false;
    showPicked();
  }
});
document.addEventListener("htmx:afterSettle", showPicked);
