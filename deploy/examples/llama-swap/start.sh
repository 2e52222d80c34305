#!/bin/sh
# llama-swap on 127.0.0.1:4000.
set -eu
cd "$(dirname "$0")"
exec llama-swap --config "${CONFIG:-config.yaml}" --listen "127.0.0.1:${PORT:-4000}"
