// Input slots: an image from the gallery or from disk, or a caption where the task allows it.

import { address, upload } from "./api.js";

const $ = (id) => document.getElementById(id);
const picker = $("picker");
let limit = Infinity;
let gallery = [];
/** Receives the chosen image. */
let waiting = null;

export const setLimit = (bytes) => (limit = bytes);

/** A new element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Name of an image for people. */
export const nameOf = (image) => [image.caption || image.id, image.label].filter(Boolean).join(" · ");

let count = 0;

/** An input slot in `element` for an image, and for a caption if `captions`. */
export class Slot {
  constructor(element, { label, captions = false, changed = () => {} }) {
    this.element = element;
    this.changed = changed;
    this.chosen = null;
    const id = `slot-${++count}`;
    this.button = make("button", { type: "button", className: "well", id });
    this.button.onclick = () => choose((image) => this.set(image));
    element.classList.add("slot");
    element.append(make("label", { htmlFor: id, textContent: label }), this.button);
    if (captions) {
      this.caption = make("input", { type: "text", placeholder: "or a caption", spellcheck: false });
      this.caption.setAttribute("aria-label", `${label}: a caption instead of an image`);
      this.caption.oninput = () => {
        if (this.caption.value && this.chosen) this.set(null);
      };
      element.append(this.caption);
    }
    element.addEventListener("dragover", (event) => {
      event.preventDefault();
      element.classList.add("over");
    });
    element.addEventListener("dragleave", () => element.classList.remove("over"));
    element.addEventListener("drop", async (event) => {
      event.preventDefault();
      element.classList.remove("over");
      const [file] = event.dataTransfer.files;
      if (!file) return;
      try {
        this.set(await upload(file, limit));
      } catch (error) {
        this.element.dispatchEvent(new CustomEvent("problem", { bubbles: true, detail: error.message }));
      }
    });
    this.set(null);
  }

  set(image) {
    this.chosen = image;
    this.button.classList.toggle("empty", !image);
    if (image) {
      this.button.replaceChildren(make("img", { src: address(image), alt: "" }), make("span", { textContent: nameOf(image) }));
      if (this.caption) this.caption.value = "";
    } else {
      this.button.replaceChildren(make("span", { textContent: "Choose or drop an image" }));
    }
    this.changed(image);
  }

  /** Name of the image; throws if the slot is empty. */
  image() {
    if (!this.chosen) throw new Error("Choose an image first: upload one, or select one of the gallery.");
    return this.chosen.id;
  }

  /** Image or caption as a part of a task. */
  part() {
    const caption = this.caption.value.trim();
    if (this.chosen) return { image: this.chosen.id };
    if (caption) return { caption };
    throw new Error("Choose an image or write a caption for every slot.");
  }
}

/** Opens the picker. */
function choose(then) {
  waiting = then;
  $("picker-problem").textContent = "";
  list();
  picker.showModal();
}

function chosen(image) {
  picker.close();
  waiting?.(image);
  waiting = null;
}

/** Updates the gallery. */
export function setGallery(all) {
  gallery = all;
  if (picker.open) list();
}

function list() {
  const items = gallery.map((image) => {
    const name = nameOf(image);
    const button = make("button", { type: "button", title: name, onclick: () => chosen(image) });
    button.setAttribute("aria-label", name);
    button.append(make("img", { src: address(image), alt: "", loading: "lazy" }));
    return make("li", {}, button);
  });
  $("picks").replaceChildren(...items);
}

async function take(file) {
  if (!file) return;
  $("picker-problem").textContent = "";
  try {
    chosen(await upload(file, limit));
  } catch (error) {
    $("picker-problem").textContent = error.message;
  }
  $("file").value = "";
}

$("file").onchange = () => take($("file").files[0]);
$("picker-close").onclick = () => picker.close();
picker.addEventListener("click", (event) => {
  if (event.target === picker) picker.close();
});
for (const name of ["dragover", "drop"]) {
  picker.addEventListener(name, (event) => {
    event.preventDefault();
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
