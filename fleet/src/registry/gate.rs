//! Who may speak for a workspace (`spec: rest-api` §6.4.1).

use longshore_base::{Secret, WorkspaceId};
use sqlx::PgConnection;

use crate::status::WorkspaceStatus::{self, Failed, Provisioning, Removed};
use crate::workspace::{Workspace, find_workspace};
use crate::{Fleet, FleetError, tokens};

/// The credential of a call.
#[derive(Clone, Debug)]
pub enum Presented {
    /// None.
    Nothing,
    /// A bearer, still to be judged.
    Bearer(Secret<String>),
    /// The caller has already been found to have more rights than the workspace. Only a card is taken from it.
    Operator,
}

impl Presented {
    /// From the bearer of a request.
    #[must_use]
    pub fn bearer(bearer: Option<&str>) -> Self {
        bearer.map_or(Self::Nothing, |text| Self::Bearer(Secret::from(text)))
    }
}

/// Why a call is not served.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No such workspace.
    #[error("workspace not found")]
    NotFound,
    /// It is deleted.
    #[error("workspace removed")]
    Removed,
    /// It wants a token, or this kind of call is not open to anybody without one.
    #[error("missing workspace auth token")]
    MissingToken,
    /// The token is not a live one of this workspace.
    #[error("invalid workspace auth token")]
    InvalidToken,
    /// Nobody's mistake.
    #[error("the caller could not be judged")]
    Fleet(#[from] FleetError),
}

impl From<sqlx::Error> for GateError {
    fn from(error: sqlx::Error) -> Self {
        Self::Fleet(error.into())
    }
}

/// What a call wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Register,
    Other,
}

/// What the judgement of a call without the workspace's own token depends on.
#[derive(Clone, Copy, Debug)]
struct Facts {
    status: WorkspaceStatus,
    has_live: bool,
    ever_issued: bool,
    dev_mode: bool,
    /// It came with a bearer, which is not a live token of this workspace.
    wrong_bearer: bool,
}

/// A call that is served.
pub(super) struct Passed {
    pub(super) workspace: Workspace,
    /// There is a live token already.
    pub(super) has_live: bool,
}

/// Judges a call and loads its workspace. Unknown and removed workspaces are told before the credential is looked at.
pub(super) async fn pass(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    presented: &Presented,
    call: Call,
) -> Result<Passed, GateError> {
    let workspace = find_workspace(conn, id).await?.ok_or(GateError::NotFound)?;
    if workspace.status == Removed {
        return Err(GateError::Removed);
    }
    // The usual case first: one query tells all.
    if let Presented::Bearer(token) = presented
        && tokens::verify_workspace_token(conn, token.expose()).await? == Some(id)
    {
        return Ok(Passed {
            workspace,
            has_live: true,
        });
    }
    let has_live = tokens::has_live(conn, id).await?;
    let wrong_bearer = match presented {
        Presented::Operator => {
            return Ok(Passed {
                workspace,
                has_live,
            });
        }
        Presented::Nothing => false,
        Presented::Bearer(_) => true,
    };
    let facts = Facts {
        status: workspace.status,
        has_live,
        ever_issued: has_live || tokens::ever_issued(conn, id).await?,
        dev_mode: fleet.config.dev_mode,
        wrong_bearer,
    };
    judge(call, facts)?;
    Ok(Passed {
        workspace,
        has_live,
    })
}

fn judge(call: Call, facts: Facts) -> Result<(), GateError> {
    // A first registration has nothing to show. A running workspace whose tokens were all revoked has had its first, or
    // revoking would be a way to take it over.
    let first = matches!(facts.status, Provisioning | Failed) || !facts.ever_issued;
    match (facts.has_live, facts.wrong_bearer) {
        (true, true) => Err(GateError::InvalidToken),
        (true, false) if facts.dev_mode => Ok(()),
        (true, false) => Err(GateError::MissingToken),
        (false, _) if facts.dev_mode || (call == Call::Register && first) => Ok(()),
        (false, _) => Err(GateError::MissingToken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::WorkspaceStatus::{Offline, Online};

    fn verdict(call: Call, facts: Facts) -> &'static str {
        match judge(call, facts) {
            Ok(()) => "ok",
            Err(GateError::MissingToken) => "missing",
            Err(GateError::InvalidToken) => "invalid",
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn only_a_first_registration_comes_without_a_token() {
        use Call::{Other, Register};
        let table = [
            // Call, status, live, ever issued, wrong bearer → verdict, and in dev mode.
            (Register, Provisioning, false, false, false, "ok", "ok"),
            (Register, Provisioning, false, true, false, "ok", "ok"),
            (Register, Failed, false, true, true, "ok", "ok"),
            (Register, Online, false, false, false, "ok", "ok"),
            (Register, Online, false, true, false, "missing", "ok"),
            (Register, Offline, false, true, true, "missing", "ok"),
            (Register, Provisioning, true, true, false, "missing", "ok"),
            (
                Register,
                Provisioning,
                true,
                true,
                true,
                "invalid",
                "invalid",
            ),
            (Other, Provisioning, false, false, false, "missing", "ok"),
            (Other, Online, false, true, true, "missing", "ok"),
            (Other, Online, true, true, true, "invalid", "invalid"),
            (Other, Online, true, true, false, "missing", "ok"),
        ];
        for (call, status, has_live, ever_issued, wrong_bearer, strict, relaxed) in table {
            for (dev_mode, expected) in [(false, strict), (true, relaxed)] {
                let facts = Facts {
                    status,
                    has_live,
                    ever_issued,
                    dev_mode,
                    wrong_bearer,
                };
                assert_eq!(verdict(call, facts), expected, "{call:?} {facts:?}");
            }
        }
    }
}
