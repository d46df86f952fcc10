// An Express application on descriptor 3. See common.js for its variables.
const express = require('express');
const common = require('./common.js');

common.start(() => {
  const app = express();
  app.use((request, response, next) => {
    if (common.draining()) response.set('connection', 'close');
    next();
  });
  app.get('*path', (request, response) => {
    response.set(common.headers);
    common.before(request.path, () => response.send('Hello from Express'));
  });
  const server = app.listen({ fd: 3 });
  common.onStop(() => server.close(() => process.exit(0)));
});
