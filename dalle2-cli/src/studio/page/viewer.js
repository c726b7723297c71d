// The large view: a job while it runs, and what it has drawn.

import { address, cancel } from "./api.js";
import { problem, setSeed, use } from "./forms.js";
import { make, nameOf } from "./sources.js";

const $ = (id) => document.getElementById(id);
const STAGES = {
  prior: "Prior: thinking of an image", decoder: "Decoder: drawing", inversion: "Inversion: reading the picture",
  "text encoder": "Reading the caption", "image encoder": "Looking at the picture",
};
const TASKS = {
  generate: "Generated", variations: "Variation", interpolate: "Interpolation", text_diff: "Text diff",
  inpaint: "Inpainted", mix: "Mixed", upload: "Uploaded",
};
const FRAMES = ["interpolate", "text_diff"];

/** What is shown: a job by its number, or the pictures of one that the server has forgotten, or an upload. */
let view = null;
let jobs = [];
let pictures = [];
let steps = new Map();
/** The picture that the buttons are about. */
let selected = null;
let playing = null;
/** What the view was built from, so that it is not built anew for nothing. */
let drawn = "";

export const followed = () => view?.job;

/** Shows a job. */
export function showJob(job) {
  view = { job };
  selected = null;
  render();
}

/** Shows a picture, with those that were drawn with it. */
export function showPicture(picture) {
  view = picture.job === null ? { picture: picture.id } : { job: picture.job };
  selected = picture.id;
  render();
  $("viewer").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

export function setJobs(all) {
  jobs = all;
  for (const id of steps.keys()) if (!jobs.some((job) => job.id === id && job.state === "running")) steps.delete(id);
  render();
}

export function setPictures(all) {
  pictures = all;
  render();
}

/** Notes a step of a job: what it draws stays on view until there is something newer. */
export function setStep(step) {
  const before = steps.get(step.job);
  if (step.previews.length === 0 && before?.first_image === step.first_image) step.previews = before.previews;
  steps.set(step.job, step);
  if (view?.job === step.job) progress(step);
}

function ofView() {
  if (view.picture) return pictures.filter((picture) => picture.id === view.picture);
  return pictures.filter((picture) => picture.job === view.job).reverse();
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
  drawn = "";
  const step = steps.get(job.id);
  $("cancel").onclick = () => cancel(job.id).catch((error) => problem(error.message));
  $("work-info").textContent = job.state === "waiting" ? "waits" : "is being drawn";
  if (job.state === "waiting") {
    $("stage").textContent = job.position ? `${job.position} before it` : "next";
    $("count").textContent = "";
    bar(0);
    $("canvas").replaceChildren(blank());
  } else if (step) {
    progress(step);
  } else {
    $("stage").textContent = "Begins";
    $("count").textContent = "";
    bar(0);
    $("canvas").replaceChildren(blank());
  }
}

const blank = () => make("div", { className: "grid", "data-count": 1 }, make("div", { className: "blank" }));

function progress(step) {
  const stage = STAGES[step.stage] ?? step.stage.replace("upsampler", "Upsampler");
  // The live region is told of stages, not of every step.
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
    grid.querySelectorAll(".preview").forEach((image, i) => (image.src = step.previews[i]));
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

/** A job that gave nothing. */
function renderEnd(job) {
  stop();
  $("actions").hidden = $("film").hidden = true;
  $("work-info").textContent = "";
  drawn = "";
  const text = job.state === "failed" ? job.error : "It was cancelled before it was done.";
  const title = job.state === "failed" ? "This did not work" : "Cancelled";
  const message = make("div", { className: "message" }, make("strong", { textContent: title }), make("p", { textContent: text }));
  $("canvas").replaceChildren(message);
}

function renderResult(job, shown) {
  if (!shown.some((picture) => picture.id === selected)) selected = shown[0].id;
  const film = FRAMES.includes(shown[0].origin) && shown.length > 1;
  const key = shown.map((picture) => picture.id).join();
  if (drawn !== key) {
    stop();
    drawn = key;
    $("canvas").replaceChildren(film ? filmOf(shown) : gridOf(shown));
  }
  const time = job?.seconds ? ` · ${job.seconds.toFixed(1)} s` : "";
  const { width, height } = shown[0];
  $("work-info").textContent = `${TASKS[shown[0].origin]} · ${width} × ${height} px${time}`;
  $("film").hidden = !film;
  mark(shown, film);
}

function gridOf(shown) {
  const tiles = shown.map((picture) => {
    const tile = make("button", { type: "button", className: "tile", onclick: () => {
      selected = picture.id;
      mark(shown, false);
    } });
    tile.dataset.id = picture.id;
    tile.setAttribute("aria-label", `Select ${nameOf(picture)}, seed ${picture.seed}`);
    tile.append(make("img", { src: address(picture), alt: nameOf(picture) }));
    return tile;
  });
  return make("div", { className: "grid", "data-count": tiles.length }, ...tiles);
}

/** All frames lie on one another, so that the slider shows each at once. */
function filmOf(shown) {
  const frames = shown.map((picture) => {
    const image = make("img", { src: address(picture), alt: nameOf(picture) });
    image.dataset.id = picture.id;
    return image;
  });
  const slider = $("frame");
  slider.max = shown.length - 1;
  slider.value = shown.findIndex((picture) => picture.id === selected);
  slider.oninput = () => {
    selected = shown[slider.value].id;
    mark(shown, true);
  };
  $("play").onclick = () => (playing ? stop() : play(slider));
  return make("div", { className: "frames" }, ...frames);
}

function play(slider) {
  let way = 1;
  $("play").textContent = "Pause";
  $("play").setAttribute("aria-pressed", "true");
  playing = setInterval(() => {
    const last = Number(slider.max);
    if (Number(slider.value) + way > last || Number(slider.value) + way < 0) way = -way;
    slider.value = Number(slider.value) + way;
    slider.oninput();
  }, 180);
}

function stop() {
  clearInterval(playing);
  playing = null;
  $("play").textContent = "Play";
  $("play").setAttribute("aria-pressed", "false");
}

/** Shows which picture is selected, and what can be done with it. */
function mark(shown, film) {
  const picture = shown.find((picture) => picture.id === selected);
  for (const element of $("canvas").querySelectorAll("[data-id]")) {
    const own = element.dataset.id === selected;
    element.classList.toggle("selected", own);
    if (element.matches("button")) element.setAttribute("aria-pressed", String(own));
  }
  if (film) {
    const index = shown.indexOf(picture);
    $("frame").value = index;
    $("frame").style.setProperty("--filled", `${(100 * index) / (shown.length - 1)}%`);
    $("frame").setAttribute("aria-valuetext", picture.label);
    $("frame-label").textContent = picture.label;
  }
  $("actions").hidden = false;
  const words = picture.caption.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40);
  $("download").href = address(picture);
  $("download").download = [words || "picture", picture.seed ?? picture.id, picture.label].filter((part) => part !== "").join("-") + ".png";
  for (const button of $("actions").querySelectorAll("[data-use]")) {
    button.onclick = () => use(button.dataset.use, picture);
  }
  $("use-seed").hidden = picture.seed === null;
  $("use-seed").textContent = `Reuse seed ${picture.seed}`;
  $("use-seed").onclick = () => setSeed(picture.seed);
}
