// A Fastify application on descriptor 3. See common.js for its variables.
const fastify = require('fastify');
const common = require('./common.js');

common.start(async () => {
  // By default it answers 503 while it closes.
  const app = fastify({ return503OnClosing: false });
  app.addHook('onRequest', async (request, reply) => {
    if (common.draining()) reply.header('connection', 'close');
  });
  app.get('*', (request, reply) => {
    reply.headers(common.headers);
    common.before(request.url, () => reply.send('Hello from Fastify'));
  });
  // `app.listen` takes no descriptor.
  await app.ready();
  app.server.listen({ fd: 3 });
  common.onStop(() => app.close().then(() => process.exit(0)));
});
