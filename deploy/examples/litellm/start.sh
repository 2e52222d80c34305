#!/bin/sh
# LiteLLM on 127.0.0.1:4000. DAILY_KEY and DEEP_KEY are the keys of the model servers, LITELLM_MASTER_KEY is LiteLLM's own:
# give the same to eidproxy as EIDPROXY_ROUTER_API_KEY.
set -eu
cd "$(dirname "$0")"
: "${LITELLM_MASTER_KEY:?must be set: sk- and something random}"
export LITELLM_MASTER_KEY DAILY_KEY="${DAILY_KEY:-none}" DEEP_KEY="${DEEP_KEY:-none}"
export LITELLM_LOCAL_MODEL_COST_MAP=True # it would fetch its price list
exec litellm --config "${CONFIG:-config.yaml}" --host 127.0.0.1 --port "${PORT:-4000}" --telemetry False
