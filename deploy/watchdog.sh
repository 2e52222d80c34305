#!/bin/sh
# Restart a model server that hangs. For a timer, each 30 s:
#   watchdog.sh MODE URL STAMP COMMAND [ARGUMENT …]
# runs the command once eidproxy's /status (URL) has called MODE's model server wedged for 60 s, at most once in 5 minutes
# (STAMP remembers when), and again only when the server has stayed silent since: to an idle one nobody has spoken yet.
# With an API key, EIDPROXY_HEADER_FILE names a file with the line "Authorization: Bearer <key>".
set -eu
mode=$1 url=$2 stamp=$3
shift 3
status=$(curl -sSf --max-time 5 --noproxy '*' ${EIDPROXY_HEADER_FILE:+"-H@$EIDPROXY_HEADER_FILE"} "$url")
wedged="s/.*\"$mode\":{\"state\":\"wedged\",\"since_seconds\":\([0-9]*\)[.0-9]*,\"silent_ends\":\([0-9]*\).*/\1 \2/p"
found=$(printf '%s\n' "$status" | sed -n "$wedged")
[ -n "$found" ] || { rm -f "$stamp.seen" && exit 0; }
[ "${found% *}" -ge 60 ] || exit 0
[ "${found#* }" != "$(cat "$stamp.seen" 2>/dev/null)" ] || exit 0
[ -z "$(find "$stamp" -mmin -5 2>/dev/null)" ] || exit 0
touch "$stamp" && echo "${found#* }" >"$stamp.seen"
echo "eidproxy: the model server of $mode has been silent for ${found% *} s: $*"
exec "$@"
