// Connects the modules of the page.

import { listen, model, submit } from "./api.js";
import { begin, problem, task } from "./forms.js";
import { forget, showGallery, showJobs } from "./lists.js";
import { setGallery as setSources, setLimit } from "./sources.js";
import { setJobs, setGallery, setStep, showJob } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const THEMES = ["auto", "light", "dark"];

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
  localStorage.setItem("theme", name);
}
$("theme").onclick = () => theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
theme(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto");

$("form").onsubmit = async (event) => {
  event.preventDefault();
  problem("");
  try {
    $("submit").disabled = true;
    const job = await submit(task());
    showJob(job.id);
    // On small screens the viewer is below the form.
    if (matchMedia("(max-width: 899px)").matches) $("viewer").scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    problem(error.message);
  } finally {
    $("submit").disabled = false;
  }
};
document.addEventListener("problem", (event) => problem(event.detail));

function connected(yes) {
  if (yes && $("connection").dataset.on === "false") forget();
  $("connection").dataset.on = String(yes);
  $("connection").lastElementChild.textContent = yes ? "Ready" : "No connection";
}

try {
  const known = await model();
  $("model").textContent = known.name;
  setLimit(known.limits.upload);
  begin(known);
  listen({
    connected,
    jobs: (jobs) => {
      setJobs(jobs);
      showJobs(jobs);
    },
    gallery: (images) => {
      setSources(images);
      setGallery(images);
      showGallery(images);
    },
    step: setStep,
  });
} catch (error) {
  connected(false);
  problem(error.message);
}
