// BullMQ. Settings follow:
//   https://docs.bullmq.io/guide/parallelism-and-concurrency  concurrency of a worker, and more workers for more cores
//   https://docs.bullmq.io/guide/workers/concurrency          the same as options
//   https://docs.bullmq.io/guide/queues/adding-bulks          addBulk
//   https://docs.bullmq.io/guide/workers/auto-removal-of-jobs finished jobs are removed at once: the least work there is
//   https://docs.bullmq.io/guide/going-to-production          noeviction, AOF each second; set on the server

import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";
import chunks from "./chunks.mjs";

// The top of the range that the first of these pages calls standard for one worker.
const CONCURRENCY = 300;
// One addBulk is one transaction of Redis, which is busy with it alone.
const CHUNK = 1_000;

export default async function connect({ redisUrl, concurrency, ran }) {
  const redis = () => new Redis(redisUrl, { maxRetriesPerRequest: null });
  const queue = new Queue("noop", { connection: redis() });
  await queue.waitUntilReady();
  let worker;
  return {
    prepare: async () => {},
    fill: async (count, data) => {
      for (const jobs of chunks(count, CHUNK, { name: "noop", data })) await queue.addBulk(jobs);
    },
    one: (data) => queue.add("noop", data),
    start: async () => {
      worker = new Worker("noop", async () => ran(), {
        connection: redis(),
        concurrency: Math.min(concurrency, CONCURRENCY),
        removeOnComplete: { count: 0 },
      });
      worker.on("error", (error) => console.error(error));
    },
    stop: () => worker.close(),
  };
}
