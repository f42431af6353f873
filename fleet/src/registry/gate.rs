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

/// What the judgement depends on.
#[derive(Clone, Copy, Debug)]
struct Facts {
    status: WorkspaceStatus,
    has_live: bool,
    ever_issued: bool,
    dev_mode: bool,
    bearer: Bearer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bearer {
    Absent,
    Own,
    Foreign,
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
    let has_live = tokens::has_live(conn, id).await?;
    let bearer = match presented {
        Presented::Operator => {
            return Ok(Passed {
                workspace,
                has_live,
            });
        }
        Presented::Nothing => Bearer::Absent,
        Presented::Bearer(token) => {
            let owner = tokens::verify_workspace_token(conn, token.expose()).await?;
            if owner == Some(id) {
                Bearer::Own
            } else {
                Bearer::Foreign
            }
        }
    };
    let ever_issued = has_live || tokens::ever_issued(conn, id).await?;
    judge(
        call,
        Facts {
            status: workspace.status,
            has_live,
            ever_issued,
            dev_mode: fleet.config.dev_mode,
            bearer,
        },
    )?;
    Ok(Passed {
        workspace,
        has_live,
    })
}

fn judge(call: Call, facts: Facts) -> Result<(), GateError> {
    // A first registration has nothing to show. A running workspace whose tokens were all revoked has had its first, or
    // revoking would be a way to take it over.
    let first = matches!(facts.status, Provisioning | Failed) || !facts.ever_issued;
    match (facts.has_live, facts.bearer) {
        (true, Bearer::Own) => Ok(()),
        (true, Bearer::Foreign) => Err(GateError::InvalidToken),
        (true, Bearer::Absent) if facts.dev_mode => Ok(()),
        (true, Bearer::Absent) => Err(GateError::MissingToken),
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
        use Bearer::{Absent, Foreign, Own};
        use Call::{Other, Register};
        let table = [
            // call, status, live, ever issued, bearer → verdict, and in dev mode
            (Register, Provisioning, false, false, Absent, "ok", "ok"),
            (Register, Provisioning, false, true, Absent, "ok", "ok"),
            (Register, Failed, false, true, Foreign, "ok", "ok"),
            (Register, Online, false, false, Absent, "ok", "ok"),
            (Register, Online, false, true, Absent, "missing", "ok"),
            (Register, Offline, false, true, Foreign, "missing", "ok"),
            (Register, Provisioning, true, true, Absent, "missing", "ok"),
            (
                Register,
                Provisioning,
                true,
                true,
                Foreign,
                "invalid",
                "invalid",
            ),
            (Register, Provisioning, true, true, Own, "ok", "ok"),
            (Other, Provisioning, false, false, Absent, "missing", "ok"),
            (Other, Online, false, true, Foreign, "missing", "ok"),
            (Other, Online, true, true, Own, "ok", "ok"),
            (Other, Online, true, true, Foreign, "invalid", "invalid"),
            (Other, Online, true, true, Absent, "missing", "ok"),
        ];
        for (call, status, has_live, ever_issued, bearer, strict, relaxed) in table {
            for (dev_mode, expected) in [(false, strict), (true, relaxed)] {
                let facts = Facts {
                    status,
                    has_live,
                    ever_issued,
                    dev_mode,
                    bearer,
                };
                assert_eq!(verdict(call, facts), expected, "{call:?} {facts:?}");
            }
        }
    }
}
