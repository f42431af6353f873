//! Why an operator changes something, for those who will wonder.

use poem_openapi::Object;
use serde::Deserialize;

use crate::body::JsonRequest;
use crate::problem::{ApiError, ApiResult};

const MOST: usize = 500;

/// A change with its reason.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeRequest {
    /// Why; at most 500 characters.
    reason: Option<String>,
}

impl JsonRequest for ChangeRequest {
    const MAY_BE_ABSENT: bool = true;
}

impl ChangeRequest {
    /// The reason, if one is given.
    ///
    /// # Errors
    /// 400 for one that is too long.
    pub(crate) fn reason(self) -> ApiResult<Option<String>> {
        check(self.reason)
    }
}

/// A reason as it is kept: blank is none.
///
/// # Errors
/// 400 for one that is too long.
pub(crate) fn check(reason: Option<String>) -> ApiResult<Option<String>> {
    let reason = reason.filter(|reason| !reason.trim().is_empty());
    if reason
        .as_ref()
        .is_some_and(|reason| reason.chars().count() > MOST)
    {
        return Err(ApiError::bad_request(
            "reason must be at most 500 characters",
        ));
    }
    Ok(reason)
}
