// The service of the chaos suite for Node's cluster module, which leaves reloads to its user. This
// one does what the module's documentation shows: HUP starts new workers and disconnects the old
// ones when the new ones listen; USR2 reads their number again; a worker that exits is replaced;
// TERM disconnects all.
const cluster = require('cluster');
const fs = require('fs');
const http = require('http');
const path = require('path');

const places = JSON.parse(process.env.CHAOS_BIND);

function primary() {
  const number = () => Number(fs.readFileSync(process.env.CHAOS_WORKERS, 'utf8'));
  let wanted = number();
  let stopping = false;
  let generation = 0;
  const serving = new Set();
  const listens = (worker) => worker.places === places.length;
  const disconnect = (worker) => { if (worker.isConnected()) worker.disconnect(); };
  const retire = (worker) => {
    serving.delete(worker);
    // One that is disconnected before it listens would listen afterwards, and never leave.
    if (listens(worker)) disconnect(worker); else worker.retired = true;
  };
  const converge = () => {
    const is = (worker, current) => (worker.generation === generation) === current;
    const of = (current) => [...serving].filter((worker) => is(worker, current));
    for (let more = wanted - of(true).length; more > 0 && !stopping; more -= 1) {
      const worker = cluster.fork();
      worker.generation = generation;
      worker.places = 0;
      serving.add(worker);
    }
    of(true).slice(wanted).forEach(retire);
    // An old one goes for each new one that listens.
    const old = of(false);
    const excess = of(true).filter(listens).length + old.length - wanted;
    old.slice(0, Math.max(0, excess)).forEach(retire);
  };
  cluster.on('listening', (worker) => {
    worker.places += 1;
    if (listens(worker) && worker.retired) disconnect(worker);
    converge();
  });
  const gone = (worker) => {
    serving.delete(worker);
    converge();
  };
  cluster.on('disconnect', gone);
  cluster.on('exit', (worker) => {
    gone(worker);
    if (stopping && Object.keys(cluster.workers).length === 0) process.exit(0);
  });
  process.on('SIGHUP', () => { generation += 1; converge(); });
  process.on('SIGUSR2', () => { wanted = number(); converge(); });
  process.on('SIGTERM', () => {
    stopping = true;
    wanted = 0;
    converge();
  });
  converge();
}

function worker() {
  const bodies = new Map();
  const site = path.join(process.env.CHAOS_SITE, 'bytes');
  for (const key of fs.readdirSync(site)) {
    for (const length of fs.readdirSync(path.join(site, key))) {
      bodies.set(`${key}/${length}`, fs.readFileSync(path.join(site, key, length)));
    }
  }
  const handler = (request, response) => {
    const number = request.headers['x-chaos-request'];
    if (number) response.setHeader('x-chaos-request', number);
    response.setHeader('x-chaos-pid', String(process.pid));
    const answer = (body) => {
      response.setHeader('content-length', body.length);
      response.end(body);
    };
    if (request.method === 'POST') {
      const pieces = [];
      request.on('data', (piece) => pieces.push(piece));
      request.on('end', () => answer(Buffer.concat(pieces)));
      return;
    }
    const known = /^\/(\w+)\/(\d+)\/(\d+)(?:\?ms=(\d+))?$/;
    const [, way, key, length, ms] = request.url.match(known) || [];
    const body = bodies.get(`${key}/${length}`);
    if (!body) {
      response.statusCode = 404;
      answer(Buffer.alloc(0));
    } else if (way === 'wait') {
      setTimeout(answer, Number(ms), body);
    } else {
      const end = Date.now() + (way === 'block' ? Number(ms) : 0);
      while (Date.now() < end);
      answer(body);
    }
  };
  let listening = 0;
  let leaving = false;
  const leave = () => { if (leaving && listening === places.length) cluster.worker.disconnect(); };
  process.on('SIGTERM', () => { leaving = true; leave(); });
  for (const place of places) {
    const server = http.createServer({ keepAliveTimeout: 75_000 }, handler);
    server.listen(place, () => { listening += 1; leave(); });
  }
}

if (cluster.isPrimary) primary(); else worker();
