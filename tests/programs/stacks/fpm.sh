#!/bin/sh
# PHP-FPM as a worker: FastCGI, so a web server is in front of it. `listen` is the very address that
# the supervisor binds: TCP, since PHP-FPM removes the file of a Unix socket when it exits.
#
# Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it is part
# of the configuration, and spoils it; IN_FLIGHT=FILE is written when /slow is being answered.
sleep "${START_DELAY:-0}"
# tcp-127.0.0.1-8000
name=${LISTEN_FDNAMES#tcp-}
address=${name%-*}:${name##*-}
configuration=$PWD/fpm-$PREFORK_WORKER.conf
cat >"$configuration" <<END
[global]
daemonize = no
error_log = /dev/stderr
; How long it waits for requests when it is asked to exit.
process_control_timeout = 15s
include = ${BROKEN:-none}*
[worker]
listen = $address
user = root
group = root
pm = static
pm.max_children = 8
clear_env = no
END
FPM_SOCKETS=$address=3 exec "$1" --allow-to-run-as-root --nodaemonize --fpm-config "$configuration"
