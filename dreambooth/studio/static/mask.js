// A mask painted over the image to start from: what is painted is drawn anew. It is sent as a black and white PNG.
"use strict";

class Mask {
  constructor(root) {
    this.root = root;
    this.image = root.querySelector("img");
    this.canvas = root.querySelector("canvas");
    this.size = root.querySelector("[data-brush]");
    this.file = root.querySelector("input[type=file][name=mask]");
    this.isErasing = false;
    this.past = [];
    this.last = null;
    if (this.image.complete) this.fit();
    this.image.addEventListener("load", () => this.fit());
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => this.up());
    root.addEventListener("click", (event) => this.press(event.target.closest("[data-mask]")));
  }

  fit() {
    this.canvas.width = this.image.naturalWidth;
    this.canvas.height = this.image.naturalHeight;
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.past = [];
    if (this.canvas.dataset.existing) this.fill(this.canvas.dataset.existing);
  }

  // Take over a mask that is there already: its white becomes paint.
  fill(address) {
    const mask = new Image();
    mask.addEventListener("load", () => {
      this.context.drawImage(mask, 0, 0, this.canvas.width, this.canvas.height);
      const paint = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
      for (let i = 0; i < paint.data.length; i += 4) {
        paint.data[i + 3] = paint.data[i] > 127 ? 255 : 0;
        [paint.data[i], paint.data[i + 1], paint.data[i + 2]] = [255, 106, 19];
      }
      this.context.putImageData(paint, 0, 0);
      this.keep();
    });
    mask.src = address;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  down(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.past.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.past.length > 20) this.past.shift();
    this.last = this.point(event);
    this.stroke(this.last);
  }

  move(event) {
    if (this.last) this.stroke(this.point(event));
  }

  up() {
    if (!this.last) return;
    this.last = null;
    this.keep();
  }

  stroke([x, y]) {
    const pen = this.context;
    pen.globalCompositeOperation = this.isErasing ? "destination-out" : "source-over";
    pen.strokeStyle = "#ff6a13";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = (Number(this.size.value) / 100) * Math.max(this.canvas.width, this.canvas.height);
    pen.beginPath();
    pen.moveTo(...this.last);
    pen.lineTo(x + 0.01, y);
    pen.stroke();
    this.last = [x, y];
  }

  press(button) {
    if (!button) return;
    const what = button.dataset.mask;
    if (what === "erase" || what === "paint") {
      this.isErasing = what === "erase";
      for (const each of this.root.querySelectorAll("[data-mask=erase], [data-mask=paint]")) {
        each.setAttribute("aria-pressed", String(each === button));
      }
      return;
    }
    if (what === "undo" && this.past.length) this.context.putImageData(this.past.pop(), 0, 0);
    if (what === "clear") this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (what === "invert") this.invert();
    this.keep();
  }

  invert() {
    this.past.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    this.context.globalCompositeOperation = "xor";
    this.context.fillStyle = "#ff6a13";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.context.globalCompositeOperation = "source-over";
  }

  keep() {
    const { width, height } = this.canvas;
    const painted = this.context.getImageData(0, 0, width, height);
    const paper = document.createElement("canvas");
    paper.width = width;
    paper.height = height;
    const pen = paper.getContext("2d");
    const mask = pen.createImageData(width, height);
    let isEmpty = true;
    for (let i = 0; i < mask.data.length; i += 4) {
      const white = painted.data[i + 3] > 127 ? 255 : 0;
      isEmpty &&= !white;
      mask.data[i] = mask.data[i + 1] = mask.data[i + 2] = white;
      mask.data[i + 3] = 255;
    }
    pen.putImageData(mask, 0, 0);
    const files = new DataTransfer();
    if (isEmpty) {
      this.file.files = files.files;
      return;
    }
    // At once, and not by toBlob: the form may be sent the moment the brush is lifted.
    const letters = atob(paper.toDataURL("image/png").split(",")[1]);
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    files.items.add(new File([bytes], "mask.png", { type: "image/png" }));
    this.file.files = files.files;
  }
}

const masks = new WeakMap(); // not a property of the element: form.mask is its field of that name
function beginMasks(root) {
  for (const each of root.querySelectorAll(".source:has(canvas)")) {
    if (!masks.has(each)) masks.set(each, new Mask(each));
  }
}
document.addEventListener("DOMContentLoaded", () => beginMasks(document));
document.addEventListener("htmx:load", (event) => beginMasks(event.detail.elt.parentElement || document));
