#!/usr/bin/env bash
# Keys for trying a federation out: a certificate authority, the server's certificate, and a key pair for each node.
# Usage: certificates.sh FOLDER NODES [NAME OF THE SERVER]
set -euo pipefail
mkdir -p "$1"
cd "$1"
name="${3:-localhost}"

openssl req -x509 -newkey rsa:2048 -sha256 -days 30 -nodes -subj "/CN=dswag example" -keyout ca.key -out ca.crt \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" 2>openssl.log
openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout server.key -out server.csr 2>>openssl.log
cat >server.ext <<END
subjectAltName=DNS:$name,DNS:localhost,IP:127.0.0.1
extendedKeyUsage=serverAuth
keyUsage=digitalSignature,keyEncipherment
authorityKeyIdentifier=keyid
END
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.pem -days 30 -sha256 \
  -extfile server.ext 2>>openssl.log

for number in $(seq 1 "$2"); do
  rm -f "node$number" "node$number.pub"
  ssh-keygen -q -t ecdsa -b 384 -N "" -C "node$number" -f "node$number"
done
