// graphile-worker. Settings follow https://worker.graphile.org/docs/performance: the configuration of its own fastest
// figures, local queue and batched completion included, and like the performance test behind these no line of log a job.
// More processes for more cores, as that page does.

import pg from "pg";
import chunks from "./chunks.mjs";

// Read while the module loads.
process.env.NO_LOG_SUCCESS = "1";
const { makeWorkerUtils, run, WorkerPreset } = await import("graphile-worker");

// Jobs one add_jobs call enqueues, as with ours.
const CHUNK = 5_000;

export default async function connect({ databaseUrl, ran }) {
  const pgPool = new pg.Pool({ connectionString: databaseUrl, max: 25 });
  pgPool.on("error", (error) => console.error(error));
  pgPool.on("connect", (client) => client.on("error", (error) => console.error(error)));
  const utils = await makeWorkerUtils({ pgPool });
  let runner;
  return {
    prepare: () => utils.migrate(),
    fill: async (count, payload) => {
      for (const jobs of chunks(count, CHUNK, { identifier: "noop", payload })) await utils.addJobs(jobs);
    },
    one: (payload) => utils.addJob("noop", payload),
    start: async () => {
      runner = await run({
        pgPool,
        noHandleSignals: true,
        parsedCronItems: [],
        taskList: { noop: async () => ran() },
        preset: {
          extends: [WorkerPreset],
          worker: {
            concurrentJobs: 24,
            maxPoolSize: 25,
            localQueue: { size: 500 },
            completeJobBatchDelay: 0,
            failJobBatchDelay: 0,
          },
        },
      });
    },
    stop: () => runner.stop(),
  };
}
