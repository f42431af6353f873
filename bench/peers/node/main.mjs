// A peer of `./dev bench queue`: `main.mjs SYSTEM`, steered by a JSON object a line on standard input, answering one a line.
// bench/src/queue/process.rs describes what is said.

import { createInterface } from "node:readline";

const system = process.argv[2];
const { default: connect } = await import(`./${system}.mjs`);

// Nanoseconds of CLOCK_MONOTONIC, which all processes of the machine share. A double holds them exactly for 104 days.
const now = () => Number(process.hrtime.bigint());
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

const runs = { count: 0, last: 0 };
const peer = await connect({
  databaseUrl: process.env.BENCH_DATABASE_URL,
  redisUrl: process.env.BENCH_REDIS_URL,
  // What this one process may run at the same time.
  concurrency: Number(process.env.BENCH_CONCURRENCY),
  ran: () => {
    runs.last = now();
    runs.count += 1;
  },
});

let told = 0;
setInterval(() => {
  if (runs.count !== told) {
    told = runs.count;
    say({ ran: runs.count, last: runs.last });
  }
}, 10);

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  const begin = now();
  switch (command.do) {
    case "prepare":
      await peer.prepare();
      break;
    case "fill":
      await peer.fill(command.jobs, { payload: "x".repeat(command.payload) });
      break;
    case "one":
      await peer.one({ payload: "x".repeat(command.payload) });
      break;
    case "start":
      await peer.start();
      break;
    case "stop":
      await peer.stop();
      break;
    default:
      throw new Error(`unknown command ${command.do}`);
  }
  say({ done: command.do, begin, end: now() });
}
process.exit(0);
