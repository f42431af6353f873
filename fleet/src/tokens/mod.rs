//! Bearer tokens: 256 random bits, shown once, stored as SHA-256 of their text.
//!
//! They are looked up by that hash, so nothing about a token can be learned from how long a lookup takes: who does not
//! know the token cannot choose its hash. A wrong, a revoked and an unknown token look alike, and so does a token of
//! a removed workspace.

mod org;
mod workspace;

use longshore_base::{Secret, random, secret};

pub use org::{
    OrgToken, OrgTokenRow, find_org_token, list_org_tokens, mint_org_token, revoke_org_token,
    verify_org_token,
};
pub use workspace::{
    MAX_LIVE, TokenRow, count_live, ever_issued, find_former_owner, has_live, issue, list_tokens,
    revoke, revoke_all, revoke_others, rotate, verify_workspace_token,
};

const LENGTH: usize = 43;
const PREFIX: usize = 8;

/// A token just made, and what of it is stored.
struct Fresh {
    token: Secret<String>,
    hash: Vec<u8>,
    prefix: String,
}

impl Fresh {
    fn new() -> Self {
        let token = random::token();
        Self {
            hash: secret::sha256(token.as_bytes()).to_vec(),
            prefix: token[..PREFIX].to_owned(),
            token: Secret::new(token),
        }
    }
}

/// The hash of a presented text; `None` for what cannot be a token and needs no query.
fn hash_of(presented: &str) -> Option<Vec<u8>> {
    (presented.len() == LENGTH).then(|| secret::sha256(presented.as_bytes()).to_vec())
}
