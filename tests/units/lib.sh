# Shared by the scripts here, which run under a throw-away systemd. $1 is the binary under test.
set -u
install -m 755 "$1" /usr/local/bin/supervisor || exit 1
mkdir -p /etc/prefork
fails=0
check() { # WHAT COMMAND: one line a fact
    if eval "$2"; then echo "ok   - $1"; else
        echo "FAIL - $1"
        fails=$((fails + 1))
    fi
}
until_true() { # COMMAND: waits up to 20 s for it
    for _ in {1..400}; do
        eval "$1" && return 0
        sleep 0.05
    done
    return 1
}
# Without an HTTP client from elsewhere: bash speaks TCP.
get() { # HOST PORT
    exec 9<>"/dev/tcp/$1/$2" || return 1
    printf 'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' >&9
    timeout 5 cat <&9
    exec 9>&-
}
finish() {
    [ $fails = 0 ] || journalctl --no-pager -n 60 -u "$UNIT"
    echo "$fails failed"
    exit $((fails > 0))
}
prop() { systemctl show -P "$1" "$UNIT"; }
