// A mask painted over an image: painted regions are generated anew.

import { address } from "./api.js";

const $ = (id) => document.getElementById(id);
const canvas = $("brush-canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });
const cursor = $("brush-cursor");
const size = $("brush-size");
const COLOUR = "#e5179b";
const UNDO = 30;

let erasing = false;
/** Position of the brush in pixels of the mask. */
let at = { x: 0, y: 0 };
let stroke = null;
let undo = [];

/** Shows an image to paint on, with an empty mask. */
export function show(image) {
  $("brush").hidden = !image;
  if (!image) return;
  $("brush-image").src = address(image);
  canvas.width = image.width;
  canvas.height = image.height;
  at = { x: image.width / 2, y: image.height / 2 };
  undo = [];
  changed();
}

/** Radius of the brush in pixels of the mask. */
const radius = () => Math.max(0.6, (canvas.width * size.value) / 200);

/** Paints or erases a line with round ends. */
function line(from, to) {
  context.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  context.strokeStyle = context.fillStyle = COLOUR;
  context.lineWidth = 2 * radius();
  context.lineCap = "round";
  context.beginPath();
  if (from.x === to.x && from.y === to.y) {
    context.arc(to.x, to.y, radius(), 0, 2 * Math.PI);
    context.fill();
  } else {
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y);
    context.stroke();
  }
}

function remember() {
  undo.push(context.getImageData(0, 0, canvas.width, canvas.height));
  if (undo.length > UNDO) undo.shift();
}

/** Changes every pixel; `paint` maps its painted state to the new one. */
function each(paint) {
  remember();
  const data = context.getImageData(0, 0, canvas.width, canvas.height);
  const [r, g, b] = [1, 3, 5].map((start) => parseInt(COLOUR.slice(start, start + 2), 16));
  for (let i = 0; i < data.data.length; i += 4) {
    data.data.set(paint(data.data[i + 3] > 127) ? [r, g, b, 255] : [0, 0, 0, 0], i);
  }
  context.putImageData(data, 0, 0);
  changed();
}

/** Painted share of the image. */
function share() {
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let painted = 0;
  for (let i = 3; i < data.length; i += 4) painted += data[i] > 127;
  return painted / (data.length / 4);
}

/** The mask as a PNG, white where it is painted; null if nothing is. */
export function mask() {
  if ($("brush").hidden || share() === 0) return null;
  const { width, height } = canvas;
  const painted = context.getImageData(0, 0, width, height).data;
  const out = new ImageData(width, height);
  for (let i = 0; i < painted.length; i += 4) {
    const white = painted[i + 3] > 127 ? 255 : 0;
    out.data.set([white, white, white, 255], i);
  }
  const copy = document.createElement("canvas");
  copy.width = width;
  copy.height = height;
  copy.getContext("2d").putImageData(out, 0, 0);
  return copy.toDataURL("image/png");
}

function changed() {
  const painted = share();
  const percent = Math.min(99, Math.max(1, Math.round(100 * painted)));
  const some = `${percent} % is generated anew, ${100 - percent} % stays.`;
  $("brush-share").textContent = painted === 0 ? "Nothing is painted yet." : painted === 1 ? "The whole image is generated anew." : some;
  $("undo-brush").disabled = undo.length === 0;
}

/** Puts the ring where the brush is. */
function ring(shown) {
  cursor.hidden = !shown;
  const box = canvas.getBoundingClientRect();
  const scale = box.width / canvas.width;
  cursor.style.width = cursor.style.height = `${2 * radius() * scale}px`;
  cursor.style.left = `${at.x * scale}px`;
  cursor.style.top = `${at.y * scale}px`;
  cursor.classList.toggle("erasing", erasing);
}

function locate(event) {
  const box = canvas.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * canvas.width,
    y: ((event.clientY - box.top) / box.height) * canvas.height,
  };
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  remember();
  stroke = at = locate(event);
  line(stroke, at);
  changed();
});
canvas.addEventListener("pointermove", (event) => {
  for (const part of event.getCoalescedEvents?.() ?? [event]) {
    at = locate(part);
    if (stroke) {
      line(stroke, at);
      stroke = at;
    }
  }
  at = locate(event);
  ring(true);
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    stroke = null;
    changed();
  });
}
canvas.addEventListener("pointerleave", () => ring(canvas === document.activeElement));
canvas.addEventListener("focus", () => ring(canvas.matches(":focus-visible")));
canvas.addEventListener("blur", () => ring(false));

canvas.addEventListener("keydown", (event) => {
  const by = canvas.width / 24;
  const moves = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
  const move = moves[event.key];
  if (move) {
    at = {
      x: Math.min(canvas.width, Math.max(0, at.x + move[0])),
      y: Math.min(canvas.height, Math.max(0, at.y + move[1])),
    };
  } else if (event.key === " ") {
    remember();
    line(at, at);
    changed();
  } else if (event.key.toLowerCase() === "e") {
    use(!erasing);
  } else if (event.key === "[" || event.key === "]") {
    size.value = Number(size.value) + (event.key === "[" ? -4 : 4);
    size.dispatchEvent(new Event("input"));
  } else {
    return;
  }
  event.preventDefault();
  ring(true);
});

/** Takes the brush or the eraser. */
function use(eraser) {
  erasing = eraser;
  $("paint").setAttribute("aria-pressed", String(!eraser));
  $("erase").setAttribute("aria-pressed", String(eraser));
}

$("paint").onclick = () => use(false);
$("erase").onclick = () => use(true);
$("clear").onclick = () => each(() => false);
$("swap").onclick = () => each((painted) => !painted);
$("undo-brush").onclick = () => {
  const last = undo.pop();
  if (last) context.putImageData(last, 0, 0);
  changed();
};
