#!/bin/sh
# mlx_lm.server alone, as the router, on 127.0.0.1:4000:   start.sh DAILY_MODEL [DEEP_MODEL]
# A model is a folder. The server knows it by its path, so a link in the folder that it starts in gives it the alias.
# With one model both modes are that one; with two, each change of mode loads the other.
set -eu
daily=$(cd "${1:?must be the folder of a model}" && pwd)
deep=$(cd "${2:-$1}" && pwd)
mkdir -p "${MODELS:-$HOME/.eidproxy-models}"
cd "${MODELS:-$HOME/.eidproxy-models}"
ln -sfn "$daily" mac-mini-default
ln -sfn "$deep" qwen-macbook
export HF_HUB_OFFLINE=1 # it would ask the internet for a name that it does not know
exec mlx_lm.server --model mac-mini-default --host 127.0.0.1 --port "${PORT:-4000}" \
    --prompt-concurrency 1 --decode-concurrency 1
