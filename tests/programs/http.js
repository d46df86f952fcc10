// Node's own http server on descriptor 3. SIGTERM: accept no more, finish, leave.
//
// Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
// start; IN_FLIGHT=FILE is written when /slow is being answered; with LINGER=SECONDS, it announces
// closes for that long before it closes.
const fs = require('fs');
const http = require('http');

if (fs.existsSync(process.env.BROKEN || '')) throw new Error('broken');

let draining = false;
const server = http.createServer((request, response) => {
  response.setHeader('x-prefork-generation', process.env.PREFORK_GENERATION || '');
  response.setHeader('x-prefork-pid', String(process.pid));
  if (draining) response.setHeader('connection', 'close');
  if (request.url === '/block') {
    for (;;);
  } else if (request.url === '/slow') {
    fs.writeFileSync(process.env.IN_FLIGHT, '');
    setTimeout(() => response.end('Hello from Node'), 1000);
  } else {
    response.end('Hello from Node');
  }
});
process.on('SIGTERM', () => {
  draining = true;
  setTimeout(() => server.close(() => process.exit(0)), 1000 * (process.env.LINGER || 0));
});
setTimeout(() => server.listen({ fd: 3 }), 1000 * (process.env.START_DELAY || 0));
