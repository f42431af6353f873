//! The rules of each class, in the order the specification gives them.

use longshore_base::WorkspaceId;
use longshore_fleet::access::can_communicate;
use longshore_fleet::tokens::find_former_owner;
use poem::Request;
use poem::http::StatusCode;
use poem::http::header::ORIGIN;
use sqlx::PgConnection;

use super::credentials::{
    bearer, bearer_subject, find_bearer_owner, is_admin_token, is_same_origin, named_caller,
    same_origin_canvas,
};
use super::{Granted, Principal};
use crate::cors;
use crate::problem::{ApiError, ApiResult};
use crate::routes::{Class, Matched};
use crate::state::ApiState;

const MISSING_WORKSPACE: &str = "missing workspace auth token";
const INVALID_WORKSPACE: &str = "invalid workspace auth token";
const MISSING_CALLER: &str = "missing caller auth token";
const INVALID_CALLER: &str = "invalid caller auth token";
const MISSING_ADMIN: &str = "admin auth required";
const INVALID_ADMIN: &str = "invalid admin auth token";
const UNRELATED: &str = "access denied: workspaces cannot communicate per hierarchy rules";
/// Callers of these kinds exist only inside the platform.
const INTERNAL_CALLERS: [&str; 4] = ["webhook:", "system:", "test:", "channel:"];

/// What the rules of a class say of a request.
pub(crate) enum Verdict {
    /// Nothing was asked for.
    Open,
    /// The handler decides, since it needs the body.
    Later,
    /// It may go on.
    Granted(Granted),
}

/// Judges a request by the class of its route.
///
/// # Errors
/// 401, 403 or 400 by the rules; 503 when the datastore does not answer.
pub(crate) async fn authenticate(
    state: &ApiState,
    matched: &Matched,
    request: &Request,
) -> ApiResult<Verdict> {
    let asker = Asker { state, request };
    let class = matched.route.class;
    let (principal, token) = match class {
        Class::Open => return Ok(Verdict::Open),
        Class::Registry => return Ok(Verdict::Later),
        Class::Admin => asker.admin().await?,
        Class::Workspace => asker.workspace(path_id(matched)?).await?,
        Class::Related => asker.related(path_id(matched)?).await?,
        Class::State => asker.state(path_id(matched)?).await?,
        Class::Own => asker.own(path_id(matched)?).await?,
        Class::Job => asker.job().await?,
        Class::Caller => asker.caller().await?,
        Class::Message => asker.message(path_id(matched)?).await?,
        Class::Socket => asker.socket().await?,
        Class::TestToken => asker.test_token()?,
    };
    Ok(Verdict::Granted(Granted {
        principal,
        class,
        subject: token.as_deref().map(bearer_subject),
    }))
}

fn path_id(matched: &Matched) -> ApiResult<WorkspaceId> {
    matched
        .workspace_id
        .ok_or_else(|| ApiError::internal("internal error", "a class without its workspace id"))
}

/// A principal with the token that proved it.
type Proved = (Principal, Option<String>);

struct Asker<'a> {
    state: &'a ApiState,
    request: &'a Request,
}

impl Asker<'_> {
    /// §2.4.
    async fn admin(&self) -> ApiResult<Proved> {
        if self.state.config.dev_mode {
            return Ok((Principal::Developer, None));
        }
        let token = bearer(self.request).ok_or_else(|| ApiError::unauthorized(MISSING_ADMIN))?;
        self.operator_by(token)
            .await?
            .ok_or_else(|| ApiError::unauthorized(INVALID_ADMIN))
    }

    /// §2.3.
    async fn workspace(&self, id: WorkspaceId) -> ApiResult<Proved> {
        let Some(token) = bearer(self.request) else {
            return self.without_bearer(MISSING_WORKSPACE);
        };
        match self.owner(token).await? {
            Some(Principal::Workspace(owner)) if owner != id => {
                Err(ApiError::unauthorized(INVALID_WORKSPACE))
            }
            Some(principal) => Ok((principal, Some(token.to_owned()))),
            None => Err(ApiError::unauthorized(INVALID_WORKSPACE)),
        }
    }

    /// Class `ws`, or the token that the workspace had when it was removed: its agent is to hear that it is gone, and a
    /// removal revokes every token.
    async fn state(&self, id: WorkspaceId) -> ApiResult<Proved> {
        let refusal = match self.workspace(id).await {
            Err(error) if error.status() == StatusCode::UNAUTHORIZED => error,
            other => return other,
        };
        let Some(token) = bearer(self.request) else {
            return Err(refusal);
        };
        let mut conn = self.connection().await?;
        let former = find_former_owner(&mut conn, token)
            .await
            .map_err(ApiError::datastore)?;
        match former {
            Some(owner) if owner == id => Ok((Principal::Workspace(owner), Some(token.to_owned()))),
            _ => Err(refusal),
        }
    }

    /// §6.10: an operator has other ways to what is asked for here, so this is for the agent alone. Dev mode changes nothing.
    async fn own(&self, id: WorkspaceId) -> ApiResult<Proved> {
        let token =
            bearer(self.request).ok_or_else(|| ApiError::unauthorized(MISSING_WORKSPACE))?;
        match self.owner(token).await? {
            Some(Principal::Workspace(owner)) if owner == id => {
                Ok((Principal::Workspace(owner), Some(token.to_owned())))
            }
            _ => Err(ApiError::unauthorized(INVALID_WORKSPACE)),
        }
    }

    /// Class `ws`, or another workspace that names itself, proves it, and may talk to this one.
    async fn related(&self, id: WorkspaceId) -> ApiResult<Proved> {
        let caller = named_caller(self.request)?.filter(|caller| *caller != id);
        let (Some(caller), Some(token)) = (caller, bearer(self.request)) else {
            return self.workspace(id).await;
        };
        match self.owner(token).await? {
            Some(Principal::Workspace(owner)) if owner == caller => {
                self.require_relation(caller, id).await?;
                Ok((Principal::Workspace(owner), Some(token.to_owned())))
            }
            Some(Principal::Workspace(_)) | None => Err(ApiError::unauthorized(INVALID_WORKSPACE)),
            Some(operator) => Ok((operator, Some(token.to_owned()))),
        }
    }

    /// Whoever could own a job; whether it is theirs, the handler sees when it has the job.
    async fn job(&self) -> ApiResult<Proved> {
        let Some(token) = bearer(self.request) else {
            return self.without_bearer(MISSING_WORKSPACE);
        };
        let owner = self.owner(token).await?;
        owner
            .map(|principal| (principal, Some(token.to_owned())))
            .ok_or_else(|| ApiError::unauthorized(INVALID_WORKSPACE))
    }

    /// §2.5 `caller`.
    async fn caller(&self) -> ApiResult<Proved> {
        let Some(token) = bearer(self.request) else {
            if self.state.config.dev_mode {
                return Ok((Principal::Developer, None));
            }
            return Err(ApiError::unauthorized(MISSING_WORKSPACE));
        };
        let caller = named_caller(self.request)?;
        match self.owner(token).await? {
            Some(Principal::Workspace(owner)) if caller.is_some_and(|caller| caller != owner) => {
                Err(ApiError::unauthorized(INVALID_WORKSPACE))
            }
            Some(principal) => Ok((principal, Some(token.to_owned()))),
            None => Err(ApiError::unauthorized(INVALID_WORKSPACE)),
        }
    }

    /// §6.5.1.
    async fn message(&self, target: WorkspaceId) -> ApiResult<Proved> {
        let internal = self
            .request
            .header("x-workspace-id")
            .is_some_and(|name| INTERNAL_CALLERS.iter().any(|kind| name.starts_with(kind)));
        if internal {
            return Err(ApiError::forbidden("invalid caller ID"));
        }
        let caller = named_caller(self.request)?;
        let Some(token) = bearer(self.request) else {
            if caller.is_some() {
                return Err(ApiError::unauthorized(MISSING_CALLER));
            }
            return self.without_bearer(MISSING_CALLER);
        };
        let owner = match (self.owner(token).await?, caller) {
            (Some(Principal::Workspace(owner)), None) => owner,
            (Some(Principal::Workspace(owner)), Some(caller)) if owner == caller => owner,
            (Some(operator), None) => return Ok((operator, Some(token.to_owned()))),
            // Who names a workspace must be it: not even the admin speaks in another's name.
            (_, _) => return Err(ApiError::unauthorized(INVALID_CALLER)),
        };
        if owner != target {
            self.require_relation(owner, target).await?;
        }
        Ok((Principal::Workspace(owner), Some(token.to_owned())))
    }

    /// §5.2.
    async fn socket(&self) -> ApiResult<Proved> {
        if let Some(agent) = named_caller(self.request)? {
            let token =
                bearer(self.request).ok_or_else(|| ApiError::unauthorized(MISSING_WORKSPACE))?;
            return match self.owner(token).await? {
                Some(Principal::Workspace(owner)) if owner == agent => {
                    Ok((Principal::Workspace(owner), Some(token.to_owned())))
                }
                _ => Err(ApiError::unauthorized(INVALID_WORKSPACE)),
            };
        }
        let config = &self.state.config;
        if config.dev_mode {
            return Ok((Principal::Developer, None));
        }
        // Browsers always name their origin on a WebSocket; whoever names none is no page of a stranger.
        let foreign = self.request.headers().contains_key(ORIGIN)
            && cors::allowed_origin(self.request, &config.cors_origins).is_none()
            && !is_same_origin(self.request);
        if foreign {
            return Err(ApiError::forbidden("origin not allowed"));
        }
        let in_query = query_token(self.request);
        let Some(token) = bearer(self.request).map(str::to_owned).or(in_query) else {
            if same_origin_canvas(config, self.request) {
                return Ok((Principal::Canvas, None));
            }
            return Err(ApiError::unauthorized(MISSING_ADMIN));
        };
        self.operator_by(&token)
            .await?
            .ok_or_else(|| ApiError::unauthorized(INVALID_ADMIN))
    }

    /// §6.14.3. Neither organisation tokens nor sessions count: this is for whoever set the installation up.
    fn test_token(&self) -> ApiResult<Proved> {
        let config = &self.state.config;
        match bearer(self.request) {
            _ if config.dev_mode => Ok((Principal::Developer, None)),
            Some(token) if is_admin_token(config, token) => {
                Ok((Principal::Admin, Some(token.to_owned())))
            }
            _ => Err(ApiError::unauthorized(MISSING_ADMIN)),
        }
    }

    async fn operator_by(&self, token: &str) -> ApiResult<Option<Proved>> {
        let owner = self.owner(token).await?;
        Ok(owner
            .filter(Principal::is_operator)
            .map(|principal| (principal, Some(token.to_owned()))))
    }

    fn without_bearer(&self, refusal: &'static str) -> ApiResult<Proved> {
        let config = &self.state.config;
        if same_origin_canvas(config, self.request) {
            Ok((Principal::Canvas, None))
        } else if config.dev_mode {
            Ok((Principal::Developer, None))
        } else {
            Err(ApiError::unauthorized(refusal))
        }
    }

    async fn owner(&self, token: &str) -> ApiResult<Option<Principal>> {
        let config = &self.state.config;
        // The admin gets in without a database: an operator must be able to look when it is away.
        if is_admin_token(config, token) {
            return Ok(Some(Principal::Admin));
        }
        let mut conn = self.connection().await?;
        find_bearer_owner(config, &mut conn, token).await
    }

    async fn require_relation(&self, caller: WorkspaceId, target: WorkspaceId) -> ApiResult<()> {
        let mut conn = self.connection().await?;
        if may_talk(&mut conn, caller, target).await {
            Ok(())
        } else {
            Err(ApiError::forbidden(UNRELATED))
        }
    }

    async fn connection(&self) -> ApiResult<sqlx::pool::PoolConnection<sqlx::Postgres>> {
        self.state
            .pools
            .work
            .acquire()
            .await
            .map_err(ApiError::datastore)
    }
}

/// A lookup that fails says no.
pub(crate) async fn may_talk(
    conn: &mut PgConnection,
    caller: WorkspaceId,
    target: WorkspaceId,
) -> bool {
    can_communicate(conn, caller, target).await
}

/// Browsers cannot set headers on a WebSocket, so their token may stand in the query. It is not logged anywhere.
fn query_token(request: &Request) -> Option<String> {
    let query = request.uri().query()?;
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "access_token")
        .map(|(_, value)| value.into_owned())
        .filter(|token| !token.is_empty())
}
