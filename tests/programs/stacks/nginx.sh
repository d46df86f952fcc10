#!/bin/sh
# nginx as a worker, in front of the application at the Unix socket $BACKEND, or of one that speaks
# FastCGI, at $FASTCGI. It needs the variable NGINX='3;', and a `listen` of the very address that the supervisor binds.
#
# Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it is part
# of the configuration, and spoils it.
sleep "${START_DELAY:-0}"
# tcp-127.0.0.1-8000
name=${LISTEN_FDNAMES#tcp-}
if [ -n "${FASTCGI:-}" ]; then
    pass="fastcgi_pass $FASTCGI; include /etc/nginx/fastcgi_params;
            fastcgi_param SCRIPT_FILENAME $SCRIPT;"
else
    pass="proxy_pass http://unix:$BACKEND:;"
fi
configuration=$PWD/nginx-$PREFORK_WORKER.conf
cat >"$configuration" <<END
daemon off;
worker_processes 1;
# As root it would change its user, which needs capabilities that workers do not have.
user root;
pid $configuration.pid;
include ${BROKEN:-none}*;
events {}
http {
    access_log off;
    client_body_temp_path $PWD;
    proxy_temp_path $PWD;
    fastcgi_temp_path $PWD;
    uwsgi_temp_path $PWD;
    scgi_temp_path $PWD;
    server {
        listen ${name%-*}:${name##*-};
        location / {
            $pass
        }
    }
}
END
exec nginx -e stderr -c "$configuration"
