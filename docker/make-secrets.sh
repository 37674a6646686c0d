#!/bin/sh
# Make the site's secrets, once. The folder is for its owner alone; the files in it must be readable inside the
# containers, whose users are not this one.
set -eu
folder="${1:-secrets}"
mkdir -p "$folder"
chmod 700 "$folder"
for name in secret_key key_passphrase database_password database_api_password database_worker_password \
    broker_api_password broker_worker_password; do
  [ -s "$folder/$name" ] && continue
  openssl rand -hex 32 | tr -d '\n' > "$folder/$name"
  chmod 644 "$folder/$name"
  echo "made $folder/$name"
done
