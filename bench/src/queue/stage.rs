//! One system set up on the servers: its database, its processes, and what is done with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{select_all, try_join_all};
use redis::aio::MultiplexedConnection;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::process::{Answer, PATIENCE, Process};
use super::systems::{Programs, System};
use crate::resources::{cpu_time, now};
use crate::servers::{Servers, redis_memory};
use crate::stats::percentile;

const DATABASE: &str = "bench";
/// Jobs that run before anything counts: code is compiled, plans are made, connections opened.
const WARM_UP: usize = 2_000;
/// Samples of the idle pick-up before any counts.
const WARM_UP_IDLE: usize = 20;

/// What is told to the programs of all systems alike.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) backlog: usize,
    pub(crate) slots: usize,
    pub(crate) concurrency: usize,
    pub(crate) idle_samples: usize,
    pub(crate) hold_transaction: bool,
}

/// One system's numbers of one round.
#[derive(Clone, Copy, Default)]
pub(crate) struct Measured {
    pub(crate) run_rate: f64,
    pub(crate) enqueue_rate: f64,
    /// Nothing where no samples were asked for.
    pub(crate) idle_p50: Option<Duration>,
    pub(crate) idle_p99: Option<Duration>,
    /// CPU seconds of a thousand jobs.
    pub(crate) enqueue_cpu: f64,
    pub(crate) run_cpu: f64,
    /// Bytes a job.
    pub(crate) redis_peak: f64,
    pub(crate) redis_left: f64,
    pub(crate) postgres_left: f64,
    pub(crate) wal: f64,
}

pub(crate) struct Stage<'a> {
    servers: &'a mut Servers,
    system: &'a System,
    load: Load,
    postgres: PgConnection,
    holder: Option<PgConnection>,
    producer: Process,
    workers: Vec<Process>,
    enqueued: u64,
}

/// Sizes of what a system keeps, in bytes.
struct Sizes {
    database: i64,
    wal: i64,
    redis: u64,
}

impl<'a> Stage<'a> {
    /// Measures one system once, from an empty server to an empty server.
    pub(crate) async fn measure(
        servers: &'a mut Servers,
        system: &'a System,
        programs: &Programs,
        load: Load,
    ) -> anyhow::Result<Measured> {
        servers.drop_database(DATABASE).await?;
        servers.reset_redis(system.appendfsync).await?;
        let mut stage = Self::set_up(servers, system, programs, load).await?;
        stage.warm_up().await?;
        let mut measured = stage.backlog().await?;
        if load.idle_samples > 0 {
            stage.idle(&mut measured).await?;
        }
        stage.clear().await?;
        Ok(measured)
    }

    async fn set_up(
        servers: &'a mut Servers,
        system: &'a System,
        programs: &Programs,
        load: Load,
    ) -> anyhow::Result<Self> {
        let database = servers.create_database(DATABASE).await?;
        let jobs = if system.is_ours() {
            load.slots
        } else {
            load.concurrency
        };
        let share = jobs.div_ceil(system.processes);
        let spawn = || -> anyhow::Result<Process> {
            let mut command = system.command(programs)?;
            command
                .env("BENCH_DATABASE_URL", database.as_str())
                .env("BENCH_REDIS_URL", &servers.redis_url)
                .env("BENCH_CONCURRENCY", share.to_string());
            Process::spawn(command)
        };
        let mut producer = spawn()?;
        producer.call("prepare", 0).await?;
        let workers = (0..system.processes)
            .map(|_| spawn())
            .collect::<anyhow::Result<_>>()?;
        let postgres = PgConnection::connect(database.as_str()).await?;
        let holder = if load.hold_transaction {
            let mut holder = PgConnection::connect(database.as_str()).await?;
            holder
                .execute(sqlx::raw_sql(
                    "SET idle_in_transaction_session_timeout = 0;
                     BEGIN ISOLATION LEVEL REPEATABLE READ;
                     SELECT pg_current_xact_id()",
                ))
                .await?;
            Some(holder)
        } else {
            None
        };
        Ok(Self {
            servers,
            system,
            load,
            postgres,
            holder,
            producer,
            workers,
            enqueued: 0,
        })
    }

    async fn fill(&mut self, jobs: usize) -> anyhow::Result<Answer> {
        let answer = self.producer.call("fill", jobs).await?;
        self.enqueued += u64::try_from(jobs)?;
        Ok(answer)
    }

    /// Lets the workers begin; when the first of them did.
    async fn start(&mut self) -> anyhow::Result<u64> {
        let starts = self
            .workers
            .iter_mut()
            .map(|worker| worker.call("start", 0));
        let answers = try_join_all(starts).await?;
        Ok(answers
            .iter()
            .map(|answer| answer.begin)
            .min()
            .unwrap_or_default())
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        try_join_all(self.workers.iter_mut().map(|worker| worker.call("stop", 0))).await?;
        Ok(())
    }

    fn ran(&self) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.ran.borrow().count)
            .sum()
    }

    /// Waits until as many runs were told of as jobs were enqueued.
    async fn wait_ran(&mut self) -> anyhow::Result<()> {
        let all_ran = async {
            while self.ran() < self.enqueued {
                let changes = self
                    .workers
                    .iter_mut()
                    .map(|worker| Box::pin(worker.ran.changed()));
                select_all(changes).await.0?;
            }
            anyhow::Ok(())
        };
        match timeout(PATIENCE, all_ran).await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => anyhow::bail!("{} of {} jobs ran in time", self.ran(), self.enqueued),
        }
    }

    /// Waits until all jobs have run and the system itself counts none of them as unfinished; when that was seen.
    async fn wait_finished(&mut self) -> anyhow::Result<u64> {
        self.wait_ran().await?;
        let deadline = Instant::now() + PATIENCE;
        while self
            .system
            .holds_jobs(&mut self.postgres, &mut self.servers.redis)
            .await?
        {
            anyhow::ensure!(Instant::now() < deadline, "jobs ran and do not finish");
            sleep(Duration::from_millis(2)).await;
        }
        now()
    }

    async fn warm_up(&mut self) -> anyhow::Result<()> {
        self.fill(WARM_UP).await?;
        self.start().await?;
        self.wait_finished().await?;
        self.stop().await
    }

    /// Builds the backlog with no worker about, then lets them drain it.
    async fn backlog(&mut self) -> anyhow::Result<Measured> {
        let jobs = self.load.backlog as f64;
        self.settle().await?;
        let before = self.sizes().await?;
        let peak = Peak::watch(&self.servers.redis);
        let cpu = self.cpu()?;
        let filled = self.fill(self.load.backlog).await?;
        let enqueue_cpu = self.cpu()?.saturating_sub(cpu);
        self.settle().await?;
        let cpu = self.cpu()?;
        let begin = self.start().await?;
        let end = self.wait_finished().await?;
        let run_cpu = self.cpu()?.saturating_sub(cpu);
        let peak = peak.end();
        self.stop().await?;
        let wal = self.sizes().await?.wal;
        self.settle().await?;
        let after = self.sizes().await?;
        self.check().await?;
        let each = |bytes: i64| bytes as f64 / jobs;
        Ok(Measured {
            run_rate: jobs / seconds(begin, end),
            enqueue_rate: jobs / seconds(filled.begin, filled.end),
            enqueue_cpu: enqueue_cpu.as_secs_f64() / jobs * 1e3,
            run_cpu: run_cpu.as_secs_f64() / jobs * 1e3,
            redis_peak: (peak as f64 - before.redis as f64) / jobs,
            redis_left: (after.redis as f64 - before.redis as f64) / jobs,
            postgres_left: each(after.database - before.database),
            wal: each(wal - before.wal),
            ..Measured::default()
        })
    }

    /// One job at a time on idle workers: from the return of the enqueue to the first line of the job.
    async fn idle(&mut self, measured: &mut Measured) -> anyhow::Result<()> {
        self.start().await?;
        let mut waits = Vec::with_capacity(self.load.idle_samples);
        for sample in 0..WARM_UP_IDLE + self.load.idle_samples {
            // Not in step with anything that polls.
            sleep(Duration::from_millis(5 + (sample as u64 * 37) % 50)).await;
            let enqueued = self.producer.call("one", 1).await?.end;
            self.enqueued += 1;
            self.wait_ran().await?;
            let began = self.workers.iter().map(|worker| worker.ran.borrow().last);
            let began = began.max().unwrap_or_default();
            if sample >= WARM_UP_IDLE {
                waits.push(Duration::from_nanos(began.saturating_sub(enqueued)));
            }
        }
        self.wait_finished().await?;
        self.stop().await?;
        measured.idle_p50 = Some(percentile(&mut waits, 0.5));
        measured.idle_p99 = Some(percentile(&mut waits, 0.99));
        Ok(())
    }

    /// Every job ran, and, as far as the system tells, none twice.
    async fn check(&mut self) -> anyhow::Result<()> {
        let (ran, enqueued) = (self.ran(), self.enqueued);
        anyhow::ensure!(
            ran == enqueued,
            "{enqueued} jobs were enqueued, {ran} ran: some ran twice"
        );
        let succeeded = self.system.succeeded(&mut self.postgres).await?;
        anyhow::ensure!(
            succeeded.is_none_or(|succeeded| succeeded == enqueued),
            "{enqueued} jobs were enqueued, {succeeded:?} succeeded"
        );
        Ok(())
    }

    /// Leaves nothing to be done from what was before: dead rows, statistics, dirty pages.
    async fn settle(&mut self) -> anyhow::Result<()> {
        for statement in ["VACUUM ANALYZE", "CHECKPOINT"] {
            self.postgres.execute(sqlx::raw_sql(statement)).await?;
        }
        Ok(())
    }

    async fn sizes(&mut self) -> anyhow::Result<Sizes> {
        let (database, wal) = sqlx::query_as(
            "SELECT pg_database_size(current_database()),
                    (pg_current_wal_insert_lsn() - '0/0')::bigint",
        )
        .fetch_one(&mut self.postgres)
        .await?;
        let redis = redis_memory(&mut self.servers.redis).await?;
        Ok(Sizes {
            database,
            wal,
            redis,
        })
    }

    /// CPU time of everything that takes part: producer, workers, both servers.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let processes = self.workers.iter().chain([&self.producer]);
        let mut pids: Vec<u32> = processes.filter_map(Process::pid).collect();
        pids.extend(self.servers.pids);
        cpu_time(&pids)
    }

    async fn clear(self) -> anyhow::Result<()> {
        for process in self.workers.into_iter().chain([self.producer]) {
            process.end().await?;
        }
        for connection in self.holder.into_iter().chain([self.postgres]) {
            connection.close().await?;
        }
        self.servers.drop_database(DATABASE).await
    }
}

/// The most memory Redis was seen to use.
struct Peak {
    most: Arc<AtomicU64>,
    watcher: JoinHandle<()>,
}

impl Peak {
    fn watch(redis: &MultiplexedConnection) -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let (mut redis, seen) = (redis.clone(), Arc::clone(&most));
        let watcher = tokio::spawn(async move {
            while let Ok(used) = redis_memory(&mut redis).await {
                seen.fetch_max(used, Ordering::Relaxed);
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { most, watcher }
    }

    fn end(self) -> u64 {
        self.watcher.abort();
        self.most.load(Ordering::Relaxed)
    }
}

fn seconds(begin: u64, end: u64) -> f64 {
    Duration::from_nanos(end.saturating_sub(begin)).as_secs_f64()
}
