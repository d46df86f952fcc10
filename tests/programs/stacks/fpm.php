<?php
// What PHP-FPM answers; see fpm.sh.
if ($_SERVER['REQUEST_URI'] === '/slow') {
    touch(getenv('IN_FLIGHT'));
    // A signal cuts a sleep short.
    for ($end = microtime(true) + 1; microtime(true) < $end; usleep(50_000));
}
header('x-prefork-generation: ' . getenv('PREFORK_GENERATION'));
header('x-prefork-pid: ' . getmypid());
echo 'Hello from PHP-FPM';
