// The queue and the gallery.

import { address, cancel } from "./api.js";
import { problem, setSeed } from "./forms.js";
import { make, nameOf } from "./sources.js";
import { showJob, showImage } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const STATES = { waiting: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled" };
/** Number of ended jobs in the list. */
const ENDED = 4;

/** Gallery elements by image, to update in place. */
const shots = new Map();

export function showJobs(jobs) {
  const live = jobs.filter((job) => job.state === "running" || job.state === "waiting");
  const ended = jobs.filter((job) => !live.includes(job)).slice(-ENDED).reverse();
  $("queue").hidden = jobs.length === 0;
  $("queue-count").textContent = live.length ? String(live.length) : "";
  // The focus stays on the button that has it.
  const focus = document.activeElement?.dataset?.key;
  $("jobs").replaceChildren(...live.map(item), ...ended.map(item));
  if (focus) $("jobs").querySelector(`[data-key="${focus}"]`)?.focus();
}

function item(job) {
  const state = job.state === "waiting" && job.position ? `waiting, ${job.position} ahead` : STATES[job.state];
  const open = make("button", { type: "button", className: "job", title: job.title, onclick: () => showJob(job.id) });
  open.dataset.key = `open-${job.id}`;
  open.append(make("span", { className: "name", textContent: job.title }), make("span", { className: "state", textContent: job.error ?? state }));
  const element = make("li", {}, open);
  element.dataset.state = job.state;
  if (job.state === "running" || job.state === "waiting") {
    const stop = make("button", { type: "button", className: "quiet", textContent: "Cancel" });
    stop.dataset.key = `cancel-${job.id}`;
    stop.setAttribute("aria-label", `Cancel ${job.title}`);
    stop.onclick = () => cancel(job.id).catch((error) => problem(error.message));
    element.append(stop);
  }
  return element;
}

/** Clears the gallery: a restarted studio reuses image names. */
export function forget() {
  shots.clear();
  $("shots").replaceChildren();
}

export function showGallery(images) {
  $("gallery").hidden = images.length === 0;
  $("gallery-count").textContent = String(images.length);
  const stored = new Set(images.map((image) => image.id));
  for (const [id, element] of shots) {
    if (stored.has(id)) continue;
    element.remove();
    shots.delete(id);
  }
  // The newest is the first.
  for (const image of [...images].reverse()) {
    if (shots.has(image.id)) continue;
    const element = shot(image);
    shots.set(image.id, element);
    $("shots").prepend(element);
  }
}

function shot(image) {
  const name = nameOf(image);
  const open = make("button", { type: "button", className: "open", title: name, onclick: () => showImage(image) });
  open.append(make("img", { src: address(image), alt: name, loading: "lazy" }));
  const text = make("span", { className: "name", textContent: name });
  const element = make("li", {}, open, text);
  if (image.seed !== null) {
    const seed = make("button", { type: "button", className: "chip seed", textContent: image.seed, title: "Reuse this seed" });
    seed.setAttribute("aria-label", `Reuse seed ${image.seed}`);
    seed.onclick = () => setSeed(image.seed);
    element.append(seed);
  } else {
    element.append(make("span", { className: "chip", textContent: "upload" }));
  }
  return element;
}
