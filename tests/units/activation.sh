#!/bin/bash
# Socket activation: the first connection starts the service, and reloads lose none.
. "$(dirname "$0")/lib.sh"
UNIT=activated.service
systemctl start web.socket
check "the socket listens before the service runs" '[ "$(prop ActiveState)" = inactive ]'
check "the first connection starts it and is answered" \
    '[[ $(get 127.0.0.1 8001) == *"Hello, client!"* ]]'
check "active" 'until_true "[ \"\$(prop ActiveState)\" = active ]"'
systemctl reload $UNIT
check "a reload keeps the socket" '[ $? = 0 ] && [[ $(get 127.0.0.1 8001) == *"Hello, client!"* ]]'
systemctl restart $UNIT
check "so does a restart" '[[ $(get 127.0.0.1 8001) == *"Hello, client!"* ]]'
systemctl stop web.socket $UNIT
check "stopped" '[ "$(prop ActiveState)" = inactive ]'
finish
