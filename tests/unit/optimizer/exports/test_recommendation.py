"""The document holds all evidence as plain JSON, each figure in a block that names its source."""

from __future__ import annotations

import json

from rankwise.optimizer.domain import Estimate, Outcome, Rung
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.exports.recommendation import recommendation_document
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.scorer import recommend


def test_the_document_is_json_and_names_the_source_of_each_figure(build):
    study = build.study()
    candidates = enumerate_candidates(study.facts, study.request)
    trials = [
        build.trial(candidates[0], 1, peak_process_bytes=2**30, peak_tensor_bytes=2**20),
        build.trial(candidates[0], 2, rung=Rung.TRAIN),
        build.trial(candidates[1], 3, outcome=Outcome.OOM),
    ]
    hopeless = Estimate(device="Some CPU", fits=Fits.NO, reason="it needs too much", low_bytes=2**40)
    chosen = recommend(study, trials, wall_s=100.0, measured_s=60.0)
    document = recommendation_document(chosen, study, trials, {candidates[2]: hopeless})
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["schema_version"] == 1
    assert document["recommended"]["id"] == candidates[0].id
    speed_and_memory = document["evidence"]["speed_and_memory"]
    assert (speed_and_memory["provenance"], speed_and_memory["trial_id"]) == ("measured here", "trial-1")
    assert speed_and_memory["peak_process_bytes"] == 2**30
    assert speed_and_memory["peak_tensor_bytes"] == 2**20
    assert speed_and_memory["peak_device_bytes"] is None
    training = document["evidence"]["training"]
    assert (training["trial_id"], training["heldout_loss"]) == ("trial-2", 0.5)
    assert not speed_and_memory.keys() & training.keys() - {"provenance", "trial_id"}
    assert document["prior"]["provenance"] == "published prior"
    assert "5d602fdbf" in document["prior"]["source"]
    assert [trial["outcome"] for trial in document["trials"]] == ["ok", "ok", "oom"]
    assert document["trials"][2]["measured"] is None
    [ruled_out] = document["ruled_out"]
    assert ruled_out["candidate"]["id"] == candidates[2].id
    assert ruled_out["estimated"]["provenance"] == "estimated by a dry run"
    assert ruled_out["estimated"]["reason"] == "it needs too much"
    assert document["facts"]["train_rows"] == 4500
    assert document["time"]["overhead_share"] == 0.4
