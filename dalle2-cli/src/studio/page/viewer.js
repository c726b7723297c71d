// The viewer: a running job, or its results.

import { address, cancel } from "./api.js";
import { problem, setSeed, use } from "./forms.js";
import { make, nameOf } from "./sources.js";

const $ = (id) => document.getElementById(id);
const STAGES = {
  prior: "Prior: sampling an embedding", decoder: "Decoder: generating", inversion: "Inversion: recovering the noise",
  "text encoder": "Encoding the caption", "image encoder": "Encoding the image",
};
const TASKS = {
  generate: "Generated", variations: "Variation", interpolate: "Interpolation", text_diff: "Text diff",
  inpaint: "Inpainted", mix: "Mixed", upload: "Uploaded",
};
const FRAMES = ["interpolate", "text_diff"];

/** The view: a job by its number (of the server or of the gallery), or an upload. */
let view = null;
let jobs = [];
let gallery = [];
let steps = new Map();
/** The image that the buttons act on. */
let selected = null;
let playing = null;
/** Key of the rendered images, to avoid rebuilding the view. */
let rendered = "";

export const followed = () => view?.job;

/** Shows a job. */
export function showJob(job) {
  view = { job };
  selected = null;
  render();
}

/** Shows an image with the others of its job. */
export function showImage(image) {
  view = image.job === null ? { image: image.id } : { job: image.job };
  selected = image.id;
  render();
  $("viewer").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

export function setJobs(all) {
  jobs = all;
  for (const id of steps.keys()) if (!jobs.some((job) => job.id === id && job.state === "running")) steps.delete(id);
  render();
}

export function setGallery(all) {
  gallery = all;
  render();
}

/** Stores a step of a job; its preview stays until the next one. */
export function setStep(step) {
  const before = steps.get(step.job);
  if (step.previews.length === 0 && before?.first_image === step.first_image) step.previews = before.previews;
  steps.set(step.job, step);
  if (view?.job === step.job) progress(step);
}

function ofView() {
  if (view.image) return gallery.filter((image) => image.id === view.image);
  return gallery.filter((image) => image.job === view.job).reverse();
}

function render() {
  if (!view) return;
  const job = jobs.find((job) => job.id === view.job);
  const shown = ofView();
  if (!job && shown.length === 0) return;
  $("welcome").hidden = true;
  $("work").hidden = false;
  $("work-title").textContent = job?.title ?? nameOf(shown[0]);
  const live = job?.state === "running" || job?.state === "waiting";
  $("running").hidden = !live;
  $("work").dataset.state = job?.state ?? "done";
  if (live) return renderLive(job);
  if (job && job.state !== "done") return renderEnd(job);
  if (shown.length) renderResult(job, shown);
}

function renderLive(job) {
  stop();
  $("actions").hidden = $("film").hidden = true;
  rendered = "";
  const step = steps.get(job.id);
  $("cancel").onclick = () => cancel(job.id).catch((error) => problem(error.message));
  $("work-info").textContent = job.state === "waiting" ? "waiting" : "running";
  if (job.state === "waiting") {
    $("stage").textContent = job.position ? `${job.position} jobs ahead` : "next";
    $("count").textContent = "";
    bar(0);
    $("canvas").replaceChildren(blank());
  } else if (step) {
    progress(step);
  } else {
    $("stage").textContent = "Starting";
    $("count").textContent = "";
    bar(0);
    $("canvas").replaceChildren(blank());
  }
}

const blank = () => make("div", { className: "grid", "data-count": 1 }, make("div", { className: "blank" }));

function progress(step) {
  const stage = STAGES[step.stage] ?? step.stage.replace("upsampler", "Upsampler");
  // The live region announces stages, not every step.
  if ($("stage").textContent !== stage) $("stage").textContent = stage;
  const batch = step.first_image > 0 ? ` · from image ${step.first_image + 1}` : "";
  $("count").textContent = `${step.step} of ${step.total}${batch}`;
  bar(step.step / step.total);
  const grid = $("canvas").firstElementChild;
  if (step.previews.length === 0) {
    if (!grid || !grid.querySelector(".blank, .preview")) $("canvas").replaceChildren(blank());
    return;
  }
  if (grid?.querySelectorAll(".preview").length === step.previews.length) {
    grid.querySelectorAll(".preview").forEach((preview, i) => (preview.src = step.previews[i]));
    return;
  }
  const images = step.previews.map((src) => make("img", { src, alt: "Preview", className: "preview" }));
  $("canvas").replaceChildren(make("div", { className: "grid", "data-count": images.length }, ...images));
}

function bar(share) {
  const percent = Math.round(100 * share);
  $("bar").setAttribute("aria-valuenow", String(percent));
  $("bar").firstElementChild.style.width = `${percent}%`;
}

/** Shows a failed or cancelled job. */
function renderEnd(job) {
  stop();
  $("actions").hidden = $("film").hidden = true;
  $("work-info").textContent = "";
  rendered = "";
  const text = job.state === "failed" ? job.error : "The job was cancelled.";
  const title = job.state === "failed" ? "The job failed" : "Cancelled";
  const message = make("div", { className: "message" }, make("strong", { textContent: title }), make("p", { textContent: text }));
  $("canvas").replaceChildren(message);
}

function renderResult(job, shown) {
  if (!shown.some((image) => image.id === selected)) selected = shown[0].id;
  const film = FRAMES.includes(shown[0].origin) && shown.length > 1;
  const key = shown.map((image) => image.id).join();
  if (rendered !== key) {
    stop();
    rendered = key;
    $("canvas").replaceChildren(film ? filmOf(shown) : gridOf(shown));
  }
  const time = job?.seconds ? ` · ${job.seconds.toFixed(1)} s` : "";
  const { width, height } = shown[0];
  $("work-info").textContent = `${TASKS[shown[0].origin]} · ${width} × ${height} px${time}`;
  $("film").hidden = !film;
  mark(shown, film);
}

function gridOf(shown) {
  const tiles = shown.map((image) => {
    const tile = make("button", { type: "button", className: "tile", onclick: () => {
      selected = image.id;
      mark(shown, false);
    } });
    tile.dataset.id = image.id;
    tile.setAttribute("aria-label", `Select ${nameOf(image)}, seed ${image.seed}`);
    tile.append(make("img", { src: address(image), alt: nameOf(image) }));
    return tile;
  });
  return make("div", { className: "grid", "data-count": tiles.length }, ...tiles);
}

/** Stacks all frames, so that the slider shows each without loading. */
function filmOf(shown) {
  const frames = shown.map((image) => {
    const frame = make("img", { src: address(image), alt: nameOf(image) });
    frame.dataset.id = image.id;
    return frame;
  });
  const slider = $("frame");
  slider.max = shown.length - 1;
  slider.value = shown.findIndex((image) => image.id === selected);
  slider.oninput = () => {
    selected = shown[slider.value].id;
    mark(shown, true);
  };
  $("play").onclick = () => (playing ? stop() : play(slider));
  return make("div", { className: "frames" }, ...frames);
}

function play(slider) {
  let step = 1;
  $("play").textContent = "Pause";
  $("play").setAttribute("aria-pressed", "true");
  playing = setInterval(() => {
    const last = Number(slider.max);
    if (Number(slider.value) + step > last || Number(slider.value) + step < 0) step = -step;
    slider.value = Number(slider.value) + step;
    slider.oninput();
  }, 180);
}

function stop() {
  clearInterval(playing);
  playing = null;
  $("play").textContent = "Play";
  $("play").setAttribute("aria-pressed", "false");
}

/** Marks the selected image and updates its actions. */
function mark(shown, film) {
  const image = shown.find((image) => image.id === selected);
  for (const element of $("canvas").querySelectorAll("[data-id]")) {
    const own = element.dataset.id === selected;
    element.classList.toggle("selected", own);
    if (element.matches("button")) element.setAttribute("aria-pressed", String(own));
  }
  if (film) {
    const index = shown.indexOf(image);
    $("frame").value = index;
    $("frame").style.setProperty("--filled", `${(100 * index) / (shown.length - 1)}%`);
    $("frame").setAttribute("aria-valuetext", image.label);
    $("frame-label").textContent = image.label;
  }
  $("actions").hidden = false;
  const words = image.caption.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40);
  $("download").href = address(image);
  $("download").download = [words || "image", image.seed ?? image.id, image.label].filter((part) => part !== "").join("-") + ".png";
  for (const button of $("actions").querySelectorAll("[data-use]")) {
    button.onclick = () => use(button.dataset.use, image);
  }
  $("use-seed").hidden = image.seed === null;
  $("use-seed").textContent = `Reuse seed ${image.seed}`;
  $("use-seed").onclick = () => setSeed(image.seed);
}
