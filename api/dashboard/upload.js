// A dataset from the reader's own machine, sent to the server as it is.

import { html, useState } from "./vendor/htm-preact.js";
import { ask } from "./api.js";
import { bytes } from "./format.js";

/** @param {{onDone: (dataset: string) => void}} props */
export function Upload({ onDone }) {
  const [said, setSaid] = useState("");
  const [isWrong, setWrong] = useState(false);
  const send = async (/** @type {any} */ event) => {
    const [file] = event.currentTarget.files;
    if (!file) return;
    setWrong(false);
    setSaid(`sending ${file.name}, ${bytes(file.size)} …`);
    try {
      const headers = { "Content-Type": "application/octet-stream" };
      const stored = await ask(`/v1/datasets?filename=${encodeURIComponent(file.name)}`, { method: "POST", body: file, headers });
      onDone(stored.dataset);
      setSaid(`${file.name} is on the server`);
    } catch (error) {
      const { message, nextStep } = /** @type {import("./api.js").Problem} */ (error);
      setWrong(true);
      setSaid(nextStep ? `${message}: ${nextStep}` : message);
    }
  };
  return html`<div class="field"><label for="upload">Or send a file from here</label>
    <input id="upload" type="file" accept=".csv,.tsv,.jsonl,.json,.parquet,.txt,.npz" onChange=${send} />
    <small role="status" class=${isWrong ? "error" : ""}>${said}</small></div>`;
}
