// The tabs, their fields, and the task that they define.

import { show as showBrush, mask } from "./brush.js";
import { Slot, make } from "./sources.js";

const $ = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll("[role=tab]")];
const IDEAS = ["red apple", "koala", "party popper", "blue heart", "sunflower", "hot air balloon"];
const SUBMIT = {
  generate: "Generate", variations: "Generate variations", interpolate: "Interpolate", text_diff: "Apply text diff",
  inpaint: "Inpaint", mix: "Mix",
};
/** Tasks that generate a row of frames. */
const FRAMES = ["interpolate", "text_diff"];

let limits = {};
export const slots = {};
const parts = [];

export const current = () => tabs.find((tab) => tab.getAttribute("aria-selected") === "true").id.slice(4);

/** Shows a tab. */
export function open(name) {
  for (const tab of tabs) {
    const selected = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !selected;
    if (selected) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  $("submit").textContent = SUBMIT[name];
  for (const element of document.querySelectorAll("[data-for]")) {
    const shown = { images: !FRAMES.includes(name), negative: name === "generate", prior: name !== "variations" && name !== "text_diff" };
    element.hidden = !shown[element.dataset.for];
  }
  problem("");
}

/** Shows a problem, or clears it. */
export function problem(text) {
  $("problem").textContent = text;
}

/** Number of a field; undefined if the field is empty. */
function number(id, { whole = false, low, high }) {
  const field = $(id);
  const label = document.querySelector(`label[for=${id}]`).textContent;
  if (field.value === "" && !field.validity.badInput) return undefined;
  const value = Number(field.value);
  const right = !field.validity.badInput && Number.isFinite(value) && value >= low && value <= high && (!whole || Number.isInteger(value));
  field.setAttribute("aria-invalid", String(!right));
  if (right) return value;
  field.closest("details")?.setAttribute("open", "");
  field.focus();
  throw new Error(`${label}: ${whole ? "a whole number" : "a number"} from ${low} to ${high}.`);
}

function settings(task) {
  const whole = (id, low, high) => number(id, { whole: true, low, high });
  const all = {
    images: FRAMES.includes(task) ? 1 : whole("images", 1, limits.images) ?? 1,
    size: Number($("size").value),
    seed: whole("seed", 0, limits.seed),
    steps: whole("steps", 1, limits.steps),
    prior_steps: whole("prior-steps", 1, limits.steps),
    upsampler_steps: whole("upsampler-steps", 1, limits.steps),
    guidance: number("guidance", { low: 0, high: limits.guidance }),
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

function caption(id) {
  const text = $(id).value.trim();
  if (text) return text;
  $(id).focus();
  throw new Error("Write a caption.");
}

/** The task of the open tab; throws if an input is missing. */
export function task() {
  for (const field of document.querySelectorAll("[aria-invalid=true]")) field.setAttribute("aria-invalid", "false");
  const name = current();
  const value = (id) => Number($(id).value);
  const chosen = (field) => document.querySelector(`input[name=${field}]:checked`).value;
  const fields = {
    generate: () => ({ caption: caption("generate-caption"), negative_caption: $("negative").value.trim() }),
    variations: () => ({ image: slots.variations.image(), eta: value("eta"), noise: chosen("variations-noise") }),
    interpolate: () => ({
      from: slots.from.part(), to: slots.to.part(), frames: value("frames"), noise: chosen("interpolate-noise"),
    }),
    text_diff: () => ({
      image: slots.text_diff.image(), from: $("diff-from").value.trim(), to: caption("diff-to"),
      strength: value("strength"), frames: value("diff-frames"),
    }),
    inpaint: () => {
      const image = slots.inpaint.image();
      const painted = mask();
      if (!painted) throw new Error("Paint the region to generate anew.");
      return { image, mask: painted, caption: $("inpaint-caption").value.trim() };
    },
    mix: () => ({ parts: parts.map(({ slot, weight }) => ({ part: slot.part(), weight: Number(weight.value) })) }),
  };
  return { [name]: { ...fields[name](), settings: settings(name) } };
}

/** Puts an image into the slot of a task, and opens the task. */
export function use(slot, image) {
  if (slot === "mix") {
    const empty = parts.find(({ slot }) => !slot.chosen && !slot.caption.value);
    (empty ?? addPart() ?? parts[parts.length - 1]).slot.set(image);
  } else {
    slots[slot].set(image);
  }
  if (slot === "text_diff" && image.origin === "generate") $("diff-from").value = image.caption;
  open({ from: "interpolate", to: "interpolate" }[slot] ?? slot);
  const to = slot === "from" ? slots.to : null;
  (to ? to.button : $(`tab-${current()}`)).focus({ preventScroll: true });
  $("controls").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

export function setSeed(seed) {
  $("seed").value = seed;
  $("seed").classList.remove("flash");
  // Reading the width restarts the animation.
  void $("seed").offsetWidth;
  $("seed").classList.add("flash");
}

function addPart() {
  if (parts.length >= (limits.sources ?? 4)) return null;
  const item = make("li");
  const place = make("div");
  const id = `weight-${Date.now()}-${parts.length}`;
  const weight = make("input", { type: "range", id, min: -limits.weight, max: limits.weight, step: 0.1, value: 1 });
  const output = make("output", { htmlFor: id });
  const remove = make("button", { type: "button", className: "quiet", textContent: "Remove" });
  item.append(place, make("div", { className: "range" }, make("label", { htmlFor: id, textContent: "Weight" }), output, weight), remove);
  const part = { slot: new Slot(place, { label: `Part ${parts.length + 1}`, captions: true }), weight };
  remove.onclick = () => {
    item.remove();
    parts.splice(parts.indexOf(part), 1);
    counted();
  };
  parts.push(part);
  $("parts").append(item);
  mirror(weight, output);
  counted();
  return part;
}

function counted() {
  $("add-part").hidden = parts.length >= limits.sources;
  for (const remove of $("parts").querySelectorAll("li > button")) remove.hidden = parts.length <= 1;
}

/** Mirrors the value of a slider beside it and in its track. */
function mirror(input, output) {
  const write = () => {
    output.textContent = input.id === "brush-size" ? `${input.value} %` : input.value;
    input.style.setProperty("--filled", `${(100 * (input.value - input.min)) / (input.max - input.min)}%`);
  };
  input.addEventListener("input", write);
  write();
}

/** Applies the limits and sizes of the model. */
export function begin(model) {
  limits = model.limits;
  $("images").max = limits.images;
  for (const id of ["frames", "diff-frames"]) $(id).max = limits.frames;
  $("size").append(...model.sizes.map((side) => make("option", { value: side, textContent: `${side} px` })));
  $("size").value = model.sizes[model.sizes.length - 1];
  for (const element of document.querySelectorAll("[data-slot]")) {
    const { slot, label, captions } = element.dataset;
    const changed = slot === "inpaint" ? showBrush : undefined;
    slots[slot] = new Slot(element, { label, captions: captions !== undefined, changed });
  }
  for (const output of document.querySelectorAll("output[for]")) {
    const input = $(output.htmlFor.value);
    if (input?.type === "range" && input.id !== "frame") mirror(input, output);
  }
  addPart();
  addPart();
  const idea = (text) => {
    const fill = () => {
      $("generate-caption").value = text;
      $("generate-caption").focus();
    };
    return make("button", { type: "button", className: "chip", textContent: text, onclick: fill });
  };
  $("ideas").append(...IDEAS.map(idea));
  open("generate");
}

for (const tab of tabs) {
  tab.onclick = () => open(tab.id.slice(4));
  tab.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const place = { Home: 0, End: tabs.length - 1 }[event.key] ?? (by && (tabs.indexOf(tab) + by + tabs.length) % tabs.length);
    if (place === undefined) return;
    event.preventDefault();
    open(tabs[place].id.slice(4));
    tabs[place].focus();
  });
}
$("add-part").onclick = addPart;
$("dice").onclick = () => ($("seed").value = "");
// Enter in a caption submits; shift-enter inserts a line break.
$("generate-caption").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
