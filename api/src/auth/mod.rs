//! Who is asking. Every class fails closed: no credential, a wrong one, or a datastore that does not answer, and the
//! request ends here (`spec: rest-api` §2). Lenience exists in dev mode only.
//!
//! Session cookies of a hosted control plane are not looked at: they are never accepted.

mod access;
mod classes;
mod credentials;

pub(crate) use access::{
    AdminAccess, CallerAccess, JobAccess, MessageAccess, OwnAccess, RegistryAccess, RelatedAccess,
    SocketAccess, StateAccess, TestTokenAccess, WorkspaceAccess,
};
pub(crate) use classes::{Verdict, authenticate, may_talk};
pub(crate) use credentials::{
    bearer, bearer_subject, find_bearer_owner, named_caller, same_origin_canvas,
};

use longshore_base::WorkspaceId;
use uuid::Uuid;

use crate::rate_limit::Subject;
use crate::routes::Class;

/// Who a request turned out to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// The bootstrap admin token.
    Admin,
    /// An organisation's token.
    Org {
        /// Its id.
        id: Uuid,
    },
    /// A workspace, by its own token.
    Workspace(WorkspaceId),
    /// The canvas behind this server, trusted by its origin.
    Canvas,
    /// Somebody without a credential, in dev mode.
    Developer,
}

impl Principal {
    /// How jobs and events name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Admin => "admin".to_owned(),
            Self::Org { id } => format!("org-token:{id}"),
            Self::Workspace(id) => format!("workspace:{id}"),
            Self::Canvas => "canvas".to_owned(),
            Self::Developer => "developer".to_owned(),
        }
    }

    /// May do what operators do.
    pub(crate) const fn is_operator(&self) -> bool {
        match self {
            Self::Admin | Self::Org { .. } | Self::Canvas | Self::Developer => true,
            Self::Workspace(_) => false,
        }
    }
}

/// A request that may go on.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    /// Who sends it.
    pub(crate) principal: Principal,
    /// By which class it was judged.
    pub(crate) class: Class,
    /// The credential that proved good, for the rate limit.
    pub(crate) subject: Option<Subject>,
}
