// What the JavaScript programs here have in common: variables for tests.
//
// START_DELAY=SECONDS makes a program slow to start; if BROKEN=FILE exists, it cannot start;
// IN_FLIGHT=FILE is written when /slow is being answered; with LINGER=SECONDS, a program that is
// asked to exit announces closes for that long before it does.
const fs = require('fs');

const linger = Number(process.env.LINGER || 0);
let stopping = false;

exports.headers = {
  'x-prefork-generation': process.env.PREFORK_GENERATION || '',
  'x-prefork-pid': String(process.pid),
};
exports.draining = () => stopping && linger > 0;
exports.start = (run) => {
  if (fs.existsSync(process.env.BROKEN || '')) throw new Error('broken');
  setTimeout(run, 1000 * (process.env.START_DELAY || 0));
};
exports.onStop = (stop) => {
  process.on('SIGTERM', () => {
    stopping = true;
    setTimeout(stop, 1000 * linger);
  });
};
// Does what a path asks for, then answers.
exports.before = (path, answer) => {
  if (path === '/block') {
    for (;;);
  } else if (path === '/slow') {
    fs.writeFileSync(process.env.IN_FLIGHT, '');
    setTimeout(answer, 1000);
  } else {
    answer();
  }
};
