# shellcheck shell=bash
# Sourced by scripts that wait for a program which has to save before it ends.

# run_passing_signals COMMAND...: run it and wait. SIGTERM, SIGINT and SIGHUP reach it as SIGTERM; the status is then
# 128 + signal unless it ends with 0, otherwise its own.
run_passing_signals() {
    local child status=0 signalled=0
    "$@" &
    child=$!
    trap 'signalled=143; kill -TERM "$child" 2>/dev/null || true' TERM
    trap 'signalled=130; kill -TERM "$child" 2>/dev/null || true' INT
    trap 'signalled=129; kill -TERM "$child" 2>/dev/null || true' HUP
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do  # the signal ended the wait, not yet the program
        status=0
        wait "$child" || status=$?
    done
    trap - TERM INT HUP
    [ "$status" = 0 ] || [ "$signalled" = 0 ] || status=$signalled
    return "$status"
}
