#!/bin/bash
# The shipped unit under its watchdog, with a short time.
. "$(dirname "$0")/lib.sh"
UNIT=prefork.service
mkdir -p /run/systemd/system/$UNIT.d
printf '[Service]\nWatchdogSec=2s\nRestartSec=100ms\n' >/run/systemd/system/$UNIT.d/short.conf
printf 'bind = "127.0.0.1:8000"\nworkers = 2\n' >/etc/prefork/config.toml
systemctl daemon-reload
systemctl start $UNIT
check "it starts" '[ "$(prop ActiveState)" = active ]'
sleep 5
check "a live supervisor is left alone" \
    '[ "$(prop NRestarts)" = 0 ] && [ "$(prop ActiveState)" = active ]'
pid=$(prop MainPID)
kill -STOP "$pid"
check "a hung one is killed and restarted" \
    'until_true "[ \"\$(prop NRestarts)\" -ge 1 ] && [ \"\$(prop ActiveState)\" = active ]"'
check "the journal says why" 'journalctl -u $UNIT --no-pager | grep -q "Watchdog timeout"'
check "it serves again" '[[ $(get 127.0.0.1 8000) == *"Hello, client!"* ]]'
systemctl stop $UNIT
check "stopped" '[ "$(prop ActiveState)" = inactive ]'
finish
