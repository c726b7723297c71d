// Requests to the server and its events.

/** Calls an address and returns its JSON; throws the error message of the server. */
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

/** Uploads an image to the studio, which runs on the same machine. */
export async function upload(file, limit) {
  if (file.size > limit) throw new Error(`${file.name} has ${megabytes(file.size)}; the limit is ${megabytes(limit)}.`);
  const name = file.name.replace(/\.[^.]*$/, "");
  return call(`/api/images?name=${encodeURIComponent(name)}`, { method: "POST", body: file });
}

const megabytes = (bytes) => `${(bytes / (1 << 20)).toFixed(1)} MiB`;

export const address = (image) => `/api/images/${image.id}.png`;

/** Calls `on.jobs`, `on.gallery`, `on.step` and `on.connected` with each event. */
export function listen(on) {
  const source = new EventSource("/api/events");
  source.onopen = () => on.connected(true);
  for (const name of ["jobs", "gallery", "step"]) {
    source.addEventListener(name, (event) => on[name](JSON.parse(event.data)));
  }
  source.onerror = () => {
    on.connected(false);
    // The browser restores broken connections, but not refused ones.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => listen(on), 3000);
  };
}
