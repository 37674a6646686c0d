#!/bin/sh
# Pin the base images: pull the tags that this version was tested with, and write what they are today, by digest, into
# docker/images.env. On a machine with internet, before a release:
#   docker/pin.sh && docker compose --env-file docker/images.env build
# Look at the difference and commit it: from then on a build takes these bytes or fails.
set -eu
cd "$(dirname "$0")/.."
docker="${DOCKER:-docker}"
pinned() {
  "$docker" pull --quiet "$2" > /dev/null
  digest=$("$docker" image inspect --format '{{index .RepoDigests 0}}' "$2")
  case "$digest" in *@sha256:*) echo "$1=${2%%:*}@${digest##*@}" ;; *) echo "no digest of $2 is known" >&2; exit 1 ;; esac
}
{
  pinned RELAY_PYTHON_IMAGE python:3.11-slim-bookworm
  pinned RELAY_REDIS_IMAGE redis:7-bookworm
  pinned RELAY_POSTGRES_IMAGE postgres:15-bookworm
} > docker/images.env.new
mv docker/images.env.new docker/images.env
cat docker/images.env
