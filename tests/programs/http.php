<?php
// A small HTTP server on descriptor 3, one connection at a time. SIGTERM: finish, leave.
//
// Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
// start; IN_FLIGHT=FILE is written when /slow is being answered.
if (file_exists((string) getenv('BROKEN'))) {
    exit(1);
}
usleep((int) (1e6 * (float) getenv('START_DELAY')));
$listener = fopen('php://fd/3', 'r+');
stream_set_blocking($listener, false);
$stop = false;
pcntl_async_signals(true);
pcntl_signal(SIGTERM, function () use (&$stop) { $stop = true; }, false);

while (!$stop) {
    $read = [$listener];
    $write = $except = null;
    // A second at most: a signal that comes right before the call does not end it.
    if (!@stream_select($read, $write, $except, 1)) {
        continue;
    }
    // Another worker may have taken it.
    $connection = @stream_socket_accept($listener, 0);
    if (!$connection) {
        continue;
    }
    stream_set_timeout($connection, 10);
    $request = fgets($connection);
    while (($line = fgets($connection)) !== false && trim($line) !== '');
    if ($line === false) {
        continue;
    }
    $path = explode(' ', $request)[1];
    if ($path === '/slow') {
        touch(getenv('IN_FLIGHT'));
        // A signal would cut it short.
        $end = microtime(true) + 1;
        while (($left = $end - microtime(true)) > 0) {
            usleep((int) (1e6 * $left));
        }
    } elseif ($path === '/block') {
        for (;;);
    }
    $body = 'Hello from PHP';
    fwrite($connection, "HTTP/1.1 200 OK\r\nContent-Length: " . strlen($body) . "\r\nConnection: close\r\n"
        . 'x-prefork-generation: ' . getenv('PREFORK_GENERATION') . "\r\n"
        . 'x-prefork-pid: ' . getmypid() . "\r\n\r\n" . $body);
    fclose($connection);
}
