"use strict";
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const { questions, images } = study;
  const at = (id) => document.getElementById(id);
  const storeKey = `dalle2-human-eval:${study.study}`;

  const asks = {
    photorealism: { name: "Photorealism", ask: "Which looks more like a real photo?", task: "which of two images looks more real" },
    caption: { name: "Caption", ask: "Which fits this caption better?", task: "which of two images fits a caption better" },
    diversity: { name: "Diversity", ask: "Which set is more varied?", task: "which of two sets of 16 images is more varied" },
  };

  // State of this rater, restored after a reload if the browser allows storage.
  const fresh = () => {
    const bytes = crypto.getRandomValues(new Uint8Array(8));
    return { rater: Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join(""), name: "", answers: {} };
  };
  let state = fresh();
  let position = 0;
  let shownAt = 0;

  function notice(text) {
    at("notice").textContent = text;
    at("notice").hidden = false;
  }

  function load() {
    try {
      const stored = JSON.parse(localStorage.getItem(storeKey));
      if (stored && typeof stored.rater === "string" && stored.answers && typeof stored.answers === "object") state = stored;
    } catch {
      notice("This browser does not keep your answers over a reload. Save them before you close the page.");
    }
  }

  function keep() {
    try {
      localStorage.setItem(storeKey, JSON.stringify(state));
    } catch {
      notice("This browser could not keep your answers. Save them before you close the page.");
    }
  }

  const answered = () => questions.filter((q) => state.answers[q.id]).length;
  const firstOpen = () => {
    const open = questions.findIndex((q) => !state.answers[q.id]);
    return open < 0 ? questions.length : open;
  };

  function screen(name) {
    for (const id of ["intro", "question", "done"]) at(id).hidden = id !== name;
    document.body.dataset.screen = name;
    const done = answered();
    at("count").textContent = `${done} of ${questions.length}`;
    at("bar").style.width = `${(100 * done) / questions.length}%`;
    at("progress").setAttribute("aria-valuemax", questions.length);
    at("progress").setAttribute("aria-valuenow", done);
    at("save").hidden = done === 0 || name === "done";
  }

  function intro() {
    const done = answered();
    at("welcome").textContent = `You will be asked ${questions.length} times:`;
    const kinds = Object.keys(asks).filter((kind) => questions.some((q) => q.kind === kind));
    at("tasks").replaceChildren(...kinds.map((kind) => {
      const item = document.createElement("li");
      item.textContent = asks[kind].task;
      return item;
    }));
    at("name").value = state.name;
    at("start").textContent = done > 0 ? `Go on (${done} of ${questions.length} answered)` : "Start";
    at("restart").hidden = done === 0;
    screen("intro");
    at("start").focus();
  }

  function start() {
    state.name = at("name").value.trim();
    keep();
    show(firstOpen());
  }

  function fill(side, indices) {
    const alt = side === "left" ? "first" : "second";
    at(side).classList.toggle("grid", indices.length > 1);
    at(side).replaceChildren(...indices.map((index) => {
      const image = document.createElement("img");
      image.src = images[index];
      image.alt = `the ${alt}`;
      image.draggable = false;
      return image;
    }));
  }

  function show(index) {
    position = index;
    if (index >= questions.length) {
      at("saved").textContent = "";
      screen("done");
      at("save-done").focus();
      return;
    }
    const question = questions[index];
    const { name, ask } = asks[question.kind];
    at("kind").textContent = name;
    at("ask").textContent = ask;
    at("caption").textContent = question.caption ? `“${question.caption}”` : "";
    at("caption").hidden = !question.caption;
    fill("left", question.left);
    fill("right", question.right);
    const choice = state.answers[question.id]?.choice;
    const pressed = { left: "left", right: "right", "choose-left": "left", "choose-unsure": "not_sure", "choose-right": "right" };
    for (const [id, value] of Object.entries(pressed)) at(id).setAttribute("aria-pressed", String(choice === value));
    at("back").disabled = index === 0;
    screen("question");
    document.activeElement?.blur();
    shownAt = performance.now();
  }

  function choose(choice) {
    const ms = Math.round(performance.now() - shownAt);
    state.answers[questions[position].id] = { choice, ms };
    keep();
    show(position + 1);
  }

  function back() {
    if (position > 0) show(position - 1);
  }

  // CRC-32 as in PNG and zip, of UTF-8: shows a file that was damaged or edited.
  function crc32(text) {
    let crc = 0xffffffff;
    for (const byte of new TextEncoder().encode(text)) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
    }
    return ((crc ^ 0xffffffff) >>> 0).toString(16).padStart(8, "0");
  }

  function save() {
    const answers = questions
      .filter((q) => state.answers[q.id])
      .map((q) => ({ question: q.id, choice: state.answers[q.id].choice, ms: state.answers[q.id].ms }));
    const signed = [study.study, state.rater, ...answers.map((a) => `${a.question} ${a.choice} ${a.ms}`)].join("\n");
    const file = {
      format: "dalle2-human-eval-answers",
      version: 1,
      study: study.study,
      rater: state.rater,
      name: state.name,
      answers,
      checksum: crc32(signed),
    };
    const name = `answers-${study.study}-${state.rater.slice(0, 8)}.json`;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    at("saved").textContent = `Saved as ${name}.`;
  }

  const keys = {
    ArrowLeft: () => choose("left"),
    1: () => choose("left"),
    ArrowRight: () => choose("right"),
    2: () => choose("right"),
    ArrowDown: () => choose("not_sure"),
    0: () => choose("not_sure"),
    Backspace: back,
    s: save,
    S: save,
  };

  document.addEventListener("keydown", (event) => {
    // A key that is held down must not answer questions that were not shown.
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = document.body.dataset.screen;
    if (here === "intro") {
      if (event.key === "Enter" && event.target === at("name")) start();
    } else if (here === "question" && keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    } else if (here === "done" && (event.key === "s" || event.key === "S")) {
      save();
    } else if (here === "done" && event.key === "Backspace") {
      back();
    }
  });

  at("start").addEventListener("click", start);
  at("restart").addEventListener("click", () => {
    if (!confirm("Forget the answers given so far in this browser?")) return;
    state = fresh();
    keep();
    intro();
  });
  at("left").addEventListener("click", () => choose("left"));
  at("right").addEventListener("click", () => choose("right"));
  at("choose-left").addEventListener("click", () => choose("left"));
  at("choose-unsure").addEventListener("click", () => choose("not_sure"));
  at("choose-right").addEventListener("click", () => choose("right"));
  at("back").addEventListener("click", back);
  at("back-done").addEventListener("click", back);
  at("save").addEventListener("click", save);
  at("save-done").addEventListener("click", save);

  document.title = study.title;
  at("title").textContent = study.title;
  load();
  intro();
})();
