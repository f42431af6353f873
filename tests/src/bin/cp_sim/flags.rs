//! What the simulation is told.

use std::str::FromStr;

use crate::faults::Faults;

/// Flags, each with a value, in any order.
#[derive(Clone, Debug)]
pub(crate) struct Flags {
    /// `--listen`, address and port.
    pub(crate) listen: String,
    /// `--image`, of the agent.
    pub(crate) image: String,
    /// `--network`, made with a subnet of its own if it is not there.
    pub(crate) network: String,
    /// `--installation`, a label of every container.
    pub(crate) installation: String,
    /// `--org`: whose workspaces are started; any if empty.
    pub(crate) org: String,
    /// `--bearer`, of start, stop and status; not asked for if empty.
    pub(crate) bearer: String,
    /// `--admin-bearer`, of the console.
    pub(crate) admin_bearer: String,
    /// `--tenant-token`, of everything.
    pub(crate) tenant_token: String,
    /// `--forget-keys true`: a repeated start starts again.
    pub(crate) forget_keys: bool,
    /// `--config NAME=VALUE`, which may be given more than once: what it keeps for its tenant.
    pub(crate) config: Vec<(String, String)>,
    /// `--latency-ms`, `--fail-starts`, `--fail-stops`, `--fail-statuses`, `--lose-starts`.
    pub(crate) faults: Faults,
}

impl Flags {
    /// Reads them.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut flags = Self {
            listen: "127.0.0.1:0".to_owned(),
            image: String::new(),
            network: "longshore-cp-sim".to_owned(),
            installation: String::new(),
            org: String::new(),
            bearer: String::new(),
            admin_bearer: String::new(),
            tenant_token: String::new(),
            forget_keys: false,
            config: Vec::new(),
            faults: Faults::default(),
        };
        while let Some(flag) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--listen" => flags.listen = value,
                "--image" => flags.image = value,
                "--network" => flags.network = value,
                "--installation" => flags.installation = value,
                "--org" => flags.org = value,
                "--bearer" => flags.bearer = value,
                "--admin-bearer" => flags.admin_bearer = value,
                "--tenant-token" => flags.tenant_token = value,
                "--forget-keys" => flags.forget_keys = parse(&flag, &value)?,
                "--config" => {
                    let (name, kept) = value
                        .split_once('=')
                        .ok_or_else(|| format!("{flag} cannot be {value}"))?;
                    flags.config.push((name.to_owned(), kept.to_owned()));
                }
                "--latency-ms" => flags.faults.latency_ms = parse(&flag, &value)?,
                "--fail-starts" => flags.faults.starts = parse(&flag, &value)?,
                "--fail-stops" => flags.faults.stops = parse(&flag, &value)?,
                "--fail-statuses" => flags.faults.statuses = parse(&flag, &value)?,
                "--lose-starts" => flags.faults.lost_starts = parse(&flag, &value)?,
                _ => return Err(format!("there is no flag {flag}")),
            }
        }
        if flags.image.is_empty() {
            return Err("--image is needed: that of the reference agent".to_owned());
        }
        Ok(flags)
    }
}

fn parse<T: FromStr>(flag: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{flag} cannot be {value}"))
}
