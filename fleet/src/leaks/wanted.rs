//! Whether a workspace wants what runs or lies there in its name: plain decisions over its row.
//!
//! Only what is certain is unwanted. What a row neither wants nor disowns is left alone: a failed workspace keeps its
//! container for those who look why, and one that is being stopped has somebody who stops it. What runs for a failed
//! workspace whose row names no container is nobody's: its start was given up before it was on record, so no agent in it
//! can come in any more.

use longshore_base::WorkspaceId;
use sqlx::PgConnection;

use crate::FleetError;
use crate::status::WorkspaceStatus;
use crate::workspace::EXTERNAL;

/// What a row says of what may be there for its workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The workspace.
    pub id: WorkspaceId,
    /// Where it stands.
    pub status: WorkspaceStatus,
    /// Its generation: what is newer is another's business.
    pub generation: i64,
    /// The engine it is on, if it is on one.
    pub engine_id: Option<String>,
    /// Its container is on record.
    pub has_container: bool,
    /// Its instance, if it has one.
    pub instance_id: Option<String>,
    /// It runs on a machine the platform does not control: nothing of it is ever swept.
    pub is_external: bool,
}

/// Something that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing<'a> {
    /// A container.
    Container {
        /// It has the workspace's name.
        is_named: bool,
        /// The (re)provision that made it; none for what never was to run an agent.
        generation: Option<i64>,
        /// It runs.
        is_running: bool,
        /// The engine it is on.
        engine_id: &'a str,
    },
    /// A volume.
    Volume {
        /// With the workspace's work.
        is_work: bool,
    },
    /// An instance.
    Instance {
        /// Its id.
        id: &'a str,
    },
}

/// Whether it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Its workspace runs in it, or would come back to it.
    Yes,
    /// Nobody does, for this reason, in words fit for the public.
    No(&'static str),
    /// The row does not say.
    Unsure,
}

const NO_ROW: &str = "no workspace has it";
const REMOVED: &str = "its workspace is removed";
const STOPPED: &str = "its workspace is stopped";
const MOVED: &str = "its workspace has moved to another engine";
const PROBE: &str = "it was made to look into a volume, and left behind";
const UNRECORDED: &str = "its workspace failed before it was on record";
const UNNAMED: &str = "no workspace names it";

impl Thing<'_> {
    /// Judges it by the row of its workspace, if there is one.
    #[must_use]
    pub fn wanted(self, claim: Option<&Claim>) -> Wanted {
        match self {
            Self::Container {
                is_named,
                generation,
                is_running,
                engine_id,
            } => container(is_named, generation, is_running, engine_id, claim),
            Self::Volume { is_work } => match claim.map(|claim| claim.status) {
                None => Wanted::No(NO_ROW),
                // What was removed may be wanted back; only a purge takes the work.
                Some(WorkspaceStatus::Removed) if !is_work => Wanted::No(REMOVED),
                Some(_) => Wanted::Yes,
            },
            Self::Instance { id } => match claim {
                Some(claim) if claim.instance_id.as_deref() == Some(id) => runs(claim),
                Some(_) | None => Wanted::No(UNNAMED),
            },
        }
    }
}

fn container(
    is_named: bool,
    generation: Option<i64>,
    is_running: bool,
    engine_id: &str,
    claim: Option<&Claim>,
) -> Wanted {
    let Some(claim) = claim else {
        return Wanted::No(NO_ROW);
    };
    if generation.is_some_and(|generation| generation > claim.generation) {
        return Wanted::Unsure;
    }
    if generation.is_none() && !is_named {
        return Wanted::No(PROBE);
    }
    if is_running
        && claim.status == WorkspaceStatus::Failed
        && !claim.has_container
        && !claim.is_external
    {
        return Wanted::No(UNRECORDED);
    }
    match runs(claim) {
        Wanted::Yes if claim.engine_id.as_deref().is_some_and(|on| on != engine_id) => {
            match generation {
                Some(generation) if generation < claim.generation => Wanted::No(MOVED),
                _ => Wanted::Unsure,
            }
        }
        // Renamed by hand: somebody's special case, as long as its workspace is to run.
        Wanted::Yes if !is_named => Wanted::Unsure,
        wanted => wanted,
    }
}

fn runs(claim: &Claim) -> Wanted {
    match claim.status {
        WorkspaceStatus::Removed => Wanted::No(REMOVED),
        _ if claim.is_external => Wanted::Unsure,
        WorkspaceStatus::Paused | WorkspaceStatus::Hibernated => Wanted::No(STOPPED),
        WorkspaceStatus::Provisioning
        | WorkspaceStatus::Online
        | WorkspaceStatus::Degraded
        | WorkspaceStatus::Offline => Wanted::Yes,
        WorkspaceStatus::Failed | WorkspaceStatus::Hibernating | WorkspaceStatus::AwaitingAgent => {
            Wanted::Unsure
        }
    }
}

/// What the rows of these workspaces say; those without a row are missing.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_claims(
    conn: &mut PgConnection,
    ids: &[WorkspaceId],
) -> Result<Vec<Claim>, FleetError> {
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    Ok(sqlx::query_as!(
        Claim,
        r#"SELECT id AS "id: WorkspaceId", status AS "status: WorkspaceStatus", provision_generation AS generation, engine_id,
                  container_id IS NOT NULL AS "has_container!", nullif(instance_id, '') AS instance_id, runtime = $2 AS "is_external!"
           FROM workspaces WHERE id = ANY (ARRAY(SELECT unnest($1::uuid[])))"#,
        &ids,
        EXTERNAL,
    )
    .fetch_all(conn)
    .await?)
}

/// An instance on file of a workspace that is not to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwantedInstance {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The instance.
    pub instance_id: String,
}

/// The instances at a place whose workspaces are removed or stopped. Most of them have a job that stops them.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn list_unwanted_instances(
    conn: &mut PgConnection,
    place: &str,
) -> Result<Vec<UnwantedInstance>, FleetError> {
    let stopped = [
        WorkspaceStatus::Removed,
        WorkspaceStatus::Paused,
        WorkspaceStatus::Hibernated,
    ];
    Ok(sqlx::query_as!(
        UnwantedInstance,
        r#"SELECT id AS "workspace_id: WorkspaceId", instance_id AS "instance_id!" FROM workspaces
           WHERE instance_id <> '' AND engine_id = $1 AND status = ANY($2) ORDER BY id"#,
        place,
        &stopped as &[WorkspaceStatus],
    )
    .fetch_all(conn)
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(status: WorkspaceStatus) -> Claim {
        Claim {
            id: WorkspaceId::random(),
            status,
            generation: 7,
            engine_id: Some("here".into()),
            has_container: true,
            instance_id: Some("i-1".into()),
            is_external: false,
        }
    }

    fn named(generation: i64) -> Thing<'static> {
        Thing::Container {
            is_named: true,
            generation: Some(generation),
            is_running: true,
            engine_id: "here",
        }
    }

    #[test]
    fn a_container_is_unwanted_only_where_its_row_says_so() {
        use WorkspaceStatus as S;
        for (status, wanted) in [
            (S::Provisioning, Wanted::Yes),
            (S::Online, Wanted::Yes),
            (S::Degraded, Wanted::Yes),
            (S::Offline, Wanted::Yes),
            (S::Failed, Wanted::Unsure),
            (S::Hibernating, Wanted::Unsure),
            (S::AwaitingAgent, Wanted::Unsure),
            (S::Paused, Wanted::No(STOPPED)),
            (S::Hibernated, Wanted::No(STOPPED)),
            (S::Removed, Wanted::No(REMOVED)),
        ] {
            let claim = claim(status);
            assert_eq!(named(7).wanted(Some(&claim)), wanted, "{status}");
            assert_eq!(named(8).wanted(Some(&claim)), Wanted::Unsure, "{status}");
            let instance = Thing::Instance { id: "i-1" };
            assert_eq!(instance.wanted(Some(&claim)), wanted, "{status}");
        }
        assert_eq!(named(7).wanted(None), Wanted::No(NO_ROW));
    }

    #[test]
    fn what_was_moved_renamed_or_left_by_a_probe_is_judged_by_its_labels() {
        let online = claim(WorkspaceStatus::Online);
        let elsewhere = Claim {
            engine_id: Some("there".into()),
            ..online.clone()
        };
        assert_eq!(named(6).wanted(Some(&elsewhere)), Wanted::No(MOVED));
        assert_eq!(named(7).wanted(Some(&elsewhere)), Wanted::Unsure);
        let other_name = |generation| Thing::Container {
            is_named: false,
            generation,
            is_running: true,
            engine_id: "here",
        };
        assert_eq!(other_name(Some(7)).wanted(Some(&online)), Wanted::Unsure);
        assert_eq!(other_name(None).wanted(Some(&online)), Wanted::No(PROBE));
        let outside = Claim {
            is_external: true,
            ..online
        };
        assert_eq!(named(7).wanted(Some(&outside)), Wanted::Unsure);
    }

    #[test]
    fn what_runs_for_a_failed_workspace_that_never_knew_of_it_is_nobodys() {
        let known = claim(WorkspaceStatus::Failed);
        let unknown = Claim {
            has_container: false,
            ..known.clone()
        };
        let stopped = Thing::Container {
            is_named: true,
            generation: Some(7),
            is_running: false,
            engine_id: "here",
        };
        assert_eq!(named(7).wanted(Some(&unknown)), Wanted::No(UNRECORDED));
        assert_eq!(named(8).wanted(Some(&unknown)), Wanted::Unsure);
        assert_eq!(named(7).wanted(Some(&known)), Wanted::Unsure);
        assert_eq!(stopped.wanted(Some(&unknown)), Wanted::Unsure);
        let coming = Claim {
            status: WorkspaceStatus::Provisioning,
            ..unknown
        };
        assert_eq!(named(7).wanted(Some(&coming)), Wanted::Yes);
    }

    #[test]
    fn only_a_purge_takes_the_work_and_only_the_row_names_an_instance() {
        let (work, config) = (
            Thing::Volume { is_work: true },
            Thing::Volume { is_work: false },
        );
        let removed = claim(WorkspaceStatus::Removed);
        assert_eq!(work.wanted(Some(&removed)), Wanted::Yes);
        assert_eq!(config.wanted(Some(&removed)), Wanted::No(REMOVED));
        let paused = claim(WorkspaceStatus::Paused);
        assert_eq!(config.wanted(Some(&paused)), Wanted::Yes);
        assert_eq!(work.wanted(None), Wanted::No(NO_ROW));
        let other = Thing::Instance { id: "i-2" };
        let online = claim(WorkspaceStatus::Online);
        assert_eq!(other.wanted(Some(&online)), Wanted::No(UNNAMED));
        assert_eq!(other.wanted(None), Wanted::No(UNNAMED));
    }
}
