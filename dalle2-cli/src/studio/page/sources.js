// Places for pictures: a picture of the gallery or from the disk, or a caption where one may stand for it.

import { address, upload } from "./api.js";

const $ = (id) => document.getElementById(id);
const picker = $("picker");
let limit = Infinity;
let gallery = [];
/** Who gets the picture that is chosen. */
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

/** What a picture is called. */
export const nameOf = (picture) => [picture.caption || picture.id, picture.label].filter(Boolean).join(" · ");

let made = 0;

/** A place for a picture, or where `captions` may be for a caption, in `element`. */
export class Slot {
  constructor(element, { label, captions = false, changed = () => {} }) {
    this.element = element;
    this.changed = changed;
    this.picture = null;
    const id = `slot-${++made}`;
    this.button = make("button", { type: "button", className: "well", id });
    this.button.onclick = () => choose((picture) => this.set(picture));
    element.classList.add("slot");
    element.append(make("label", { htmlFor: id, textContent: label }), this.button);
    if (captions) {
      this.caption = make("input", { type: "text", placeholder: "or a caption", spellcheck: false });
      this.caption.setAttribute("aria-label", `${label}: a caption in place of a picture`);
      this.caption.oninput = () => {
        if (this.caption.value && this.picture) this.set(null);
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

  set(picture) {
    this.picture = picture;
    this.button.classList.toggle("empty", !picture);
    if (picture) {
      this.button.replaceChildren(make("img", { src: address(picture), alt: "" }), make("span", { textContent: nameOf(picture) }));
      if (this.caption) this.caption.value = "";
    } else {
      this.button.replaceChildren(make("span", { textContent: "Choose or drop a picture" }));
    }
    this.changed(picture);
  }

  /** The picture's name, or a problem that is thrown. */
  image() {
    if (!this.picture) throw new Error("Choose a picture first: upload one, or take one of the gallery.");
    return this.picture.id;
  }

  /** As a part of a task: a picture or a caption. */
  part() {
    const caption = this.caption.value.trim();
    if (this.picture) return { image: this.picture.id };
    if (caption) return { caption };
    throw new Error("Choose a picture or write a caption on both sides.");
  }
}

/** Asks for a picture. */
function choose(then) {
  waiting = then;
  $("picker-problem").textContent = "";
  list();
  picker.showModal();
}

function chosen(picture) {
  picker.close();
  waiting?.(picture);
  waiting = null;
}

/** Notes what the gallery holds. */
export function pictures(all) {
  gallery = all;
  if (picker.open) list();
}

function list() {
  const items = gallery.map((picture) => {
    const name = nameOf(picture);
    const button = make("button", { type: "button", title: name, onclick: () => chosen(picture) });
    button.setAttribute("aria-label", name);
    button.append(make("img", { src: address(picture), alt: "", loading: "lazy" }));
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
