//! A remote control plane of one test: the simulation, in a process of its own.

use std::path::Path;
use std::process::Command;

use longshore_base::random;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use uuid::Uuid;

use crate::caller::{Answer, client};
use crate::leftovers::one_at_a_time;
use crate::process::Process;
use crate::wait::{PATIENCE, wait_until};

/// The organisation of every test that has one.
pub(crate) const ORG: &str = "tenant-of-a-test";

/// A control plane. Its instances carry the test's installation and go with its containers.
pub struct ControlPlane {
    /// The simulation.
    pub process: Process,
    pub(crate) url: String,
    pub(crate) bearer: String,
    pub(crate) console_bearer: String,
}

impl ControlPlane {
    /// Starts the simulation as this command, which says which image and where, for the holder of this admin token and
    /// with its containers of this installation.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(
        mut command: Command,
        admin_token: &str,
        installation: Uuid,
        place: &Path,
    ) -> Self {
        let (bearer, console_bearer) = (random::token(), random::token());
        // The first of them makes the network.
        let _one = one_at_a_time().await;
        command
            .args(["--installation", &installation.to_string()])
            .args(["--org", ORG, "--bearer", &bearer])
            .args(["--admin-bearer", &console_bearer])
            .args(["--tenant-token", admin_token]);
        let mut process = Process::start("control-plane", &mut command, place);
        let looked_at = std::cell::RefCell::new(&mut process);
        let port = wait_until("the control plane to listen", PATIENCE, || {
            let mut process = looked_at.borrow_mut();
            if let Some(status) = process.status() {
                panic!(
                    "the control plane did not start: {status}: {}",
                    process.log()
                );
            }
            let log = process.log();
            async move {
                let line = log
                    .lines()
                    .find_map(|line| line.strip_prefix("listens on "));
                line.and_then(|port| port.parse::<u16>().ok()).ok_or(log)
            }
        })
        .await;
        Self {
            process,
            url: format!("http://127.0.0.1:{port}"),
            bearer,
            console_bearer,
        }
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What the processes of its organisation are given.
    #[must_use]
    pub fn settings(&self) -> [(String, String); 4] {
        [
            ("LONGSHORE_ORG_ID", ORG),
            ("CP_PROVISION_URL", self.url.as_str()),
            ("LONGSHORE_CP_SHARED_SECRET", self.bearer.as_str()),
            ("CP_ADMIN_API_TOKEN", self.console_bearer.as_str()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
    }

    /// Makes things go wrong from now on, or right again: shares from 0 to 1 of `starts`, `stops`, `statuses` and
    /// `lost_starts`, and `latency_ms`.
    pub async fn set_faults(&self, faults: &Value) {
        let request = client()
            .put(format!("{}/sim/faults", self.url))
            .header(CONTENT_TYPE, "application/json")
            .body(faults.to_string());
        Answer::of(request).await.expect(200);
    }

    /// The calls of a kind for a workspace so far, oldest first: `start`, `stop`, `status`, `console`.
    pub async fn calls(&self, call: &str, workspace: &str) -> Vec<Value> {
        let calls = Answer::of(client().get(format!("{}/sim/calls", self.url))).await;
        let calls = calls.expect(200);
        let of = |noted: &&Value| noted["call"] == call && noted["workspace_id"] == workspace;
        calls
            .as_array()
            .unwrap()
            .iter()
            .filter(of)
            .cloned()
            .collect()
    }

    /// The instances of a workspace that run.
    pub async fn instances(&self, workspace: &str) -> Vec<String> {
        let running = self.all_instances().await.into_iter();
        running
            .filter(|(_, of)| of == workspace)
            .map(|(instance, _)| instance)
            .collect()
    }

    /// All that run, each with its workspace.
    pub async fn all_instances(&self) -> Vec<(String, String)> {
        let running = Answer::of(client().get(format!("{}/sim/instances", self.url))).await;
        let running = running.expect(200);
        let running = running.as_object().unwrap().iter();
        running
            .map(|(instance, of)| (instance.clone(), of.as_str().unwrap().to_owned()))
            .collect()
    }
}
