// Node's own http server on descriptor 3. SIGTERM: accept no more, finish, leave.
const http = require('http');

const server = http.createServer((request, response) => {
  response.setHeader('x-prefork-generation', process.env.PREFORK_GENERATION || '');
  response.setHeader('x-prefork-pid', String(process.pid));
  response.end('Hello from Node');
});
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
});
server.listen({ fd: 3 });
