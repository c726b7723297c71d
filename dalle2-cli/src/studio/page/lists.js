// The queue and the gallery.

import { address, cancel } from "./api.js";
import { problem, setSeed } from "./forms.js";
import { make, nameOf } from "./sources.js";
import { showJob, showPicture } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const STATES = { waiting: "waits", running: "runs", done: "done", failed: "failed", cancelled: "cancelled" };
/** Ended jobs that stay in the list. */
const ENDED = 4;

/** Items of the gallery by picture, so that what is there stays in place. */
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
  const state = job.state === "waiting" && job.position ? `waits, ${job.position} before it` : STATES[job.state];
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

/** Forgets what the gallery shows: another studio may give other pictures the same names. */
export function forget() {
  shots.clear();
  $("shots").replaceChildren();
}

export function showGallery(pictures) {
  $("gallery").hidden = pictures.length === 0;
  $("gallery-count").textContent = String(pictures.length);
  const kept = new Set(pictures.map((picture) => picture.id));
  for (const [id, element] of shots) {
    if (kept.has(id)) continue;
    element.remove();
    shots.delete(id);
  }
  // The newest is the first.
  for (const picture of [...pictures].reverse()) {
    if (shots.has(picture.id)) continue;
    const element = shot(picture);
    shots.set(picture.id, element);
    $("shots").prepend(element);
  }
}

function shot(picture) {
  const name = nameOf(picture);
  const open = make("button", { type: "button", className: "open", title: name, onclick: () => showPicture(picture) });
  open.append(make("img", { src: address(picture), alt: name, loading: "lazy" }));
  const text = make("span", { className: "name", textContent: name });
  const element = make("li", {}, open, text);
  if (picture.seed !== null) {
    const seed = make("button", { type: "button", className: "chip seed", textContent: picture.seed, title: "Reuse this seed" });
    seed.setAttribute("aria-label", `Reuse seed ${picture.seed}`);
    seed.onclick = () => setSeed(picture.seed);
    element.append(seed);
  } else {
    element.append(make("span", { className: "chip", textContent: "upload" }));
  }
  return element;
}
