// What can be done with a study: cancel, clone, resume, read its report.

import { html, useState } from "./vendor/htm-preact.js";
import { ask, studyPath } from "./api.js";
import { Dialog, Failure, go } from "./ui.js";

/** @param {{study: any, caller: any, hasReport: boolean}} props */
export function Actions({ study, caller, hasReport }) {
  const [error, setError] = useState(/** @type {any} */ (null));
  const [isAsking, setAsking] = useState(false);
  const mayWrite = !caller || caller.role !== "reader";
  const isOpen = study.state === "queued" || study.state === "running";
  const attempt = async (/** @type {() => Promise<any>} */ act) => {
    setError(null);
    try {
      await act();
    } catch (failure) {
      setError(failure);
    }
  };
  const cancel = () => attempt(async () => {
    await ask(studyPath(study.id), { method: "DELETE" });
    setAsking(false);
  });
  const resume = () => attempt(async () => {
    const begun = await ask("/v1/studies", { method: "POST", json: requestOf(study) });
    go(`/studies/${begun.id}`);
  });
  return html`
    <div class="actions">
      ${mayWrite && isOpen && !study.cancel_requested &&
      html`<button type="button" class="danger" onClick=${() => setAsking(true)}>Cancel study</button>`}
      ${mayWrite && html`<a class="button" href="/new?from=${study.id}">Clone</a>`}
      ${mayWrite && !isOpen && study.state !== "succeeded" &&
      html`<button type="button" onClick=${resume} title="Asks for the same again; what was measured is taken over">Resume</button>`}
      ${hasReport && html`<a class="button" href="${studyPath(study.id)}/report" target="_blank" rel="noopener">Report</a>`}
    </div>
    ${error && !isAsking && html`<${Failure} error=${error} />`}
    ${isAsking &&
    html`<${Dialog} title="Cancel this study?" onClose=${() => setAsking(false)}>
      <p>Its running trial is stopped. What was measured is kept, and a study like it takes it over.</p>
      ${error && html`<${Failure} error=${error} />`}
      <p class="actions"><button type="button" class="danger" onClick=${cancel}>Cancel the study</button></p>
    <//>`}
  `;
}

/** A study's request as a body that is accepted: what is not set is left out. @param {any} study */
export function requestOf(study) {
  const body = /** @type {Record<string, any>} */ ({});
  for (const [name, value] of Object.entries(study.request)) {
    const isEmpty = value === null || (Array.isArray(value) && !value.length);
    if (!isEmpty && name !== "eval_command") body[name] = value;
  }
  return body;
}
