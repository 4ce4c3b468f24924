#!/bin/sh
# tradr-relay, in the environment that was installed beside it.
lib=$(dirname "$(readlink -f "$0")")/../lib/tradr-relay
exec "$lib/bin/python" "$lib/bin/tradr-relay" "$@"
