// pg-boss. Settings follow:
//   https://pgboss.io/api/workers      batchSize, localConcurrency, polling, bursts while batches come full
//   https://pgboss.io/api/constructor  useListenNotify, max
//   https://pgboss.io/api/queues       notify; what is done stays for its default of seven days
//   https://pgboss.io/api/jobs         insert, for many jobs at once

import { PgBoss } from "pg-boss";
import chunks from "./chunks.mjs";

// Jobs one insert writes, as with ours.
const CHUNK = 5_000;
// Fetches at the same time in a process: one batch is fetched while the other runs.
const FETCHERS = 2;

export default async function connect({ databaseUrl, concurrency, ran }) {
  const boss = new PgBoss({ connectionString: databaseUrl, max: 10, useListenNotify: true, schedule: false });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  return {
    prepare: () => boss.createQueue("noop", { notify: true }),
    fill: async (count, data) => {
      for (const jobs of chunks(count, CHUNK, { data })) await boss.insert("noop", jobs);
    },
    one: (data) => boss.send("noop", data),
    start: () =>
      boss.work(
        "noop",
        {
          batchSize: Math.ceil(concurrency / FETCHERS),
          localConcurrency: FETCHERS,
          burstWhenBatchFull: true,
          pollingIntervalSeconds: 0.5,
          notifyPollingIntervalSeconds: 0.5,
        },
        async (jobs) => jobs.forEach(ran),
      ),
    stop: () => boss.offWork("noop"),
  };
}
