// Requests to the API of this origin, and what it says when something is wrong.

/** A request that the API refused, with its next step. */
export class Problem extends Error {
  /** @param {{status: number, detail: string, next_step?: string, errors?: any[]}} document */
  constructor(document) {
    super(document.detail);
    this.status = document.status;
    this.nextStep = document.next_step || "";
    /** @type {{pointer: string, message: string, next_step: string}[]} */
    this.errors = document.errors || [];
  }
}

/** Called when the API wants to know who one is. */
export const access = { ask: () => {} };

/** @param {string} path @param {RequestInit & {json?: any}} [options] @returns {Promise<Response>} */
export async function request(path, { json, ...options } = {}) {
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers = { "Content-Type": "application/json", ...options.headers };
  }
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem({
      status: 0,
      detail: "the server cannot be reached",
      next_step: "look whether `rankwise serve` still runs; this page tries again by itself",
    });
  }
  if (answer.ok) return answer;
  const problem = new Problem(await problemOf(answer));
  if (answer.status === 401) access.ask();
  throw problem;
}

/** @param {string} path @param {RequestInit & {json?: any}} [options] @returns {Promise<any>} */
export async function ask(path, options) {
  const answer = await request(path, options);
  return answer.status === 204 ? null : answer.json();
}

/** The same, with null where there is nothing there. @param {string} path */
export async function askIfThere(path) {
  try {
    return await ask(path);
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return null;
    throw error;
  }
}

/** @param {Response} answer */
async function problemOf(answer) {
  try {
    const document = await answer.json();
    return { ...document, status: answer.status, detail: document.detail || answer.statusText };
  } catch {
    return { status: answer.status, detail: `the server answered ${answer.status}` };
  }
}

/** @param {string} id */
export const studyPath = (id) => `/v1/studies/${encodeURIComponent(id)}`;
