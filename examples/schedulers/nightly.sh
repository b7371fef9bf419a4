#!/usr/bin/env bash
# For cron: asks a server each night, and keeps the answer if there is a new one. Measurements in an unchanged environment
# are taken over from the night before, so it costs time only after an upgrade.
#
#   30 2 * * *  RANKWISE_URL=https://rankwise.example RANKWISE_TOKEN_FILE=/etc/rankwise/token /srv/models/nightly.sh
#
# cron mails what is written to standard error; standard output has one line if the recommendation changed.
set -euo pipefail
cd "${1:-$(dirname "$0")}"
study=${STUDY:-study.yaml}

# Yesterday's may still be running.
exec 9> nightly.lock
flock --nonblock 9 || { echo "still running since yesterday" >&2; exit 75; }

# The same night asks for the same study, however often this is started.
key=${KEY:-nightly-$(date +%F)}
new=$(mktemp recommendation.XXXXXX)
trap 'rm -f "$new"' EXIT
rankwise recommend --remote --wait --key "$key" --config "$study" --quiet --format json > "$new"

id() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["candidate_id"])' "$1"; }
if [ ! -e recommendation.json ] || [ "$(id "$new")" != "$(id recommendation.json)" ]; then
  python3 -c 'import json, sys; print("recommended:", json.load(open(sys.argv[1]))["description"])' "$new"
fi
mv "$new" recommendation.json
