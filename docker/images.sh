#!/bin/sh
# Add the images to a release's folder: images.txt with the id of each (the SHA-256 of its configuration, which names its layers
# by theirs, and is the same after docker save and load), and a bill of materials of each.
#   docker/images.sh FOLDER IMAGE...
set -eu
folder="$1"
shift
docker="${DOCKER:-docker}"
script="$(cd "$(dirname "$0")" && pwd)/sbom.py"
for image; do
  id=$("$docker" image inspect --format '{{.Id}}' "$image")
  echo "sha256:${id#sha256:}  $image" >> "$folder/images.txt"
  case "$image" in
    relay-*) "$docker" run --rm --network none -i --entrypoint python "$image" - image "$image" < "$script" \
      > "$folder/$(echo "$image" | tr ':/' '--').cdx.json" ;;
  esac
done
