#!/bin/sh
# Certificates for compose.share.yaml: a certificate authority of the site's own and one for this machine's name.
#   docker/make-tls.sh relay-1.site.example [secrets]
# A site that has its own authority puts its files at secrets/tls_ca, tls_cert and tls_key instead.
set -eu
name="${1:?the name that the second machine knows this one by}"
folder="${2:-secrets}"
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=relay site authority" \
    -keyout tls_ca_key -out tls_ca 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" -keyout tls_key -out tls_request 2>/dev/null
printf 'subjectAltName=DNS:%s\nextendedKeyUsage=serverAuth\n' "$name" > tls_extensions
openssl x509 -req -in tls_request -CA tls_ca -CAkey tls_ca_key -CAcreateserial -days 825 -extfile tls_extensions \
    -out tls_cert 2>/dev/null
rm -f tls_request tls_extensions tls_ca.srl
chmod 600 tls_ca_key
chmod 644 tls_ca tls_cert tls_key
echo "made tls_ca, tls_cert and tls_key in $folder; the second machine needs tls_ca; keep tls_ca_key elsewhere"
