#!/bin/bash
# The shipped unit: start, reload, a reload that fails, stop.
. "$(dirname "$0")/lib.sh"
UNIT=prefork.service
config() { # LINES
    printf 'bind = "127.0.0.1:8000"\nworkers = 2\nmin-ready = "200ms"\n%s\n' "$1" \
        >/etc/prefork/config.toml
}

config ''
systemctl start $UNIT
check "start returns when it is ready" \
    '[ $? = 0 ] && [ "$(prop ActiveState)/$(prop SubState)" = active/running ]'
check "it serves at once" '[[ $(get 127.0.0.1 8000) == *"Hello, client!"* ]]'
check "STATUS is shown: $(prop StatusText)" '[ -n "$(prop StatusText)" ]'
pid=$(prop MainPID)
before=$(get 127.0.0.1 8000 | tr -d '\r' | sed -n 's/^x-prefork-generation: //Ip')

systemctl reload $UNIT
check "reload returns 0" '[ $? = 0 ]'
after=$(get 127.0.0.1 8000 | tr -d '\r' | sed -n 's/^x-prefork-generation: //Ip')
check "the new generation serves when reload returns ($before, then $after)" \
    '[ "$after" -gt "$before" ]'
check "active after the reload" 'until_true "[ \"\$(prop ActiveState)\" = active ]"'
check "the same main process" '[ "$(prop MainPID)" = "$pid" ]'

config 'nonsense = 1'
systemctl reload $UNIT
check "a failed reload returns non-zero" '[ $? != 0 ]'
check "the service stays active" 'until_true "[ \"\$(prop ActiveState)\" = active ]"'
check "the old generation serves" \
    '[[ $(get 127.0.0.1 8000) == *"Hello, client!"* ]] && [ "$(prop MainPID)" = "$pid" ]'
check "the journal has the reason, as an error or warning" \
    'journalctl -u $UNIT -p warning --no-pager | grep -q nonsense'

config ''
systemctl reload $UNIT
check "a later good reload works" '[ $? = 0 ] && [[ $(get 127.0.0.1 8000) == *"Hello, client!"* ]]'

kill -KILL "$pid"
check "a killed supervisor is restarted" \
    'until_true "[ \"\$(prop NRestarts)\" = 1 ] && [ \"\$(prop ActiveState)\" = active ]"'
check "it serves again" 'until_true "get 127.0.0.1 8000 2>/dev/null | grep -q Hello"'

systemctl stop $UNIT
check "stopped cleanly" '[ "$(prop ActiveState)/$(prop Result)" = inactive/success ]'
check "nothing is left" '! pgrep -x supervisor >/dev/null'
finish
