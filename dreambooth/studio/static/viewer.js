// A run's samples: one prompt and one seed over the steps, with a slider, beside what the base drew from the same noise.
"use strict";

class Viewer {
  constructor(root) {
    this.root = root;
    this.slider = root.querySelector("input[type=range]");
    this.now = root.querySelector("[data-now]");
    this.base = root.querySelector("[data-base]");
    this.caption = root.querySelector("[data-caption]");
    this.film = root.querySelector(".film");
    this.prompt = 0;
    this.seed = 0;
    this.read();
    this.slider.addEventListener("input", () => this.show());
    root.addEventListener("click", (event) => this.click(event));
  }

  read() {
    const data = this.root.querySelector("[data-steps]").dataset;
    const wasLast = !this.steps || Number(this.slider.value) === this.steps.length - 1;
    this.steps = data.steps.split(",").filter(Boolean).map(Number);
    this.best = data.best === "" ? null : Number(data.best);
    this.qualities = JSON.parse(data.qualities || "{}");
    this.slider.max = Math.max(0, this.steps.length - 1);
    return wasLast;
  }

  url(step) {
    return `${this.root.dataset.images}/${step}/${this.prompt}/${this.seed}`;
  }

  click(event) {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.prompt) this.prompt = Number(button.dataset.prompt);
    if (button.dataset.seed) this.seed = Number(button.dataset.seed);
    if (button.dataset.step) this.slider.value = this.steps.indexOf(Number(button.dataset.step));
    this.show();
  }

  show() {
    const step = this.steps[Number(this.slider.value)];
    if (step === undefined) return;
    this.now.src = this.url(step);
    if (this.base) this.base.src = this.url(this.steps[0]);
    const quality = this.qualities[step] === undefined ? "" : `, quality ${this.qualities[step].toFixed(2)}`;
    const name = step === 0 ? "the base" : `step ${step}`;
    this.caption.textContent = name + quality + (step === this.best ? ", kept" : "");
    this.caption.classList.toggle("is-best", step === this.best);
    this.slider.setAttribute("aria-valuetext", this.caption.textContent);
    const words = this.root.querySelector(`[data-prompt="${this.prompt}"]`)?.textContent.trim() || "";
    this.now.alt = `${words}, ${name}`;
    this.mark("[data-prompt]", "prompt", this.prompt);
    this.mark("[data-seed]", "seed", this.seed);
    this.mark(".film [data-step]", "step", step);
    for (const image of this.film.querySelectorAll("[data-step] img")) {
      image.src = this.url(image.closest("[data-step]").dataset.step);
    }
  }

  mark(selector, key, value) {
    for (const button of this.root.querySelectorAll(selector)) {
      button.setAttribute("aria-pressed", String(Number(button.dataset[key]) === value));
    }
  }
}

let viewer = null;
function begin() {
  const root = document.getElementById("viewer");
  const hasSamples = root?.querySelector("[data-steps]"); // a run that has just begun has none
  if (hasSamples && viewer?.root !== root) viewer = new Viewer(root);
}
document.addEventListener("DOMContentLoaded", begin);
// New samples came: the film is another; whoever stood at the newest step goes on to it.
document.addEventListener("htmx:afterSettle", (event) => {
  begin();
  if (!viewer || !viewer.root.contains(event.detail.elt)) return;
  const step = viewer.steps[Number(viewer.slider.value)];
  const wasLast = viewer.read();
  viewer.film = viewer.root.querySelector(".film");
  viewer.slider.value = wasLast ? viewer.steps.length - 1 : Math.max(0, viewer.steps.indexOf(step));
  viewer.show();
});
