// The server: requests, and what it tells while it works.

/** Calls an address and gives back its JSON; what is wrong is thrown in the server's words. */
async function call(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("The studio does not answer. Is it still running in the terminal?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(sentence(answer.error ?? `The studio answered ${response.status}.`));
  return answer;
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export const model = () => call("/api/model");

export const submit = (task) =>
  call("/api/jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(task) });

export const cancel = (job) => call(`/api/jobs/${job}`, { method: "DELETE" });

/** Sends a picture from this machine's disk to the studio, which runs on the same machine. */
export async function upload(file, limit) {
  if (file.size > limit) throw new Error(`${file.name} has ${megabytes(file.size)}; at most ${megabytes(limit)} are read.`);
  const name = file.name.replace(/\.[^.]*$/, "");
  return call(`/api/pictures?name=${encodeURIComponent(name)}`, { method: "POST", body: file });
}

const megabytes = (bytes) => `${(bytes / (1 << 20)).toFixed(1)} MiB`;

export const address = (picture) => `/api/pictures/${picture.id}.png`;

/** Calls `on.jobs`, `on.pictures`, `on.step` and `on.connected` with what happens, for as long as the page is open. */
export function listen(on) {
  const source = new EventSource("/api/events");
  source.onopen = () => on.connected(true);
  for (const name of ["jobs", "pictures", "step"]) {
    source.addEventListener(name, (event) => on[name](JSON.parse(event.data)));
  }
  source.onerror = () => {
    on.connected(false);
    // A connection that broke is made again by the browser, one that was refused is not.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => listen(on), 3000);
  };
}
