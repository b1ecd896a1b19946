# shellcheck shell=bash
# Sourced by scripts that wait for a program which has to save before it ends.

# pass_signal PID: how a signal gets on. A script whose program runs elsewhere too defines its own after this file.
pass_signal() {
    kill -TERM "$1" 2>/dev/null || true
}

# run_passing_signals COMMAND...: run it and wait. SIGTERM, SIGINT and SIGHUP reach it as SIGTERM; the status is then
# 128 + signal unless it ends with 0, otherwise its own. SIGNALLED is 128 + signal afterwards, 0 if none came.
run_passing_signals() {
    local child status=0
    SIGNALLED=0
    "$@" &
    child=$!
    trap 'SIGNALLED=143; pass_signal "$child"' TERM
    trap 'SIGNALLED=130; pass_signal "$child"' INT
    trap 'SIGNALLED=129; pass_signal "$child"' HUP
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do  # the signal ended the wait, not yet the program
        status=0
        wait "$child" || status=$?
    done
    trap - TERM INT HUP
    [ "$status" = 0 ] || [ "$SIGNALLED" = 0 ] || status=$SIGNALLED
    return "$status"
}
