//! Secrets of workspaces and of the whole installation: sealed at rest, opened only for their agent.
//!
//! | version | stored bytes | written | read |
//! |---|---|---|---|
//! | 0 | the plain text | only without a key, which only dev mode allows | always |
//! | 1 | `nonce ‖ ciphertext ‖ tag`, AES-256-GCM without associated data | never | with a key of the ring |
//! | 2 | the same, bound to its owner and name | always | with a key of the ring |
//!
//! Version 2 binds a value to its place: a row copied to another workspace or another name does not open there.
//! Values, keys and tokens appear in no log line and no error; errors name the secret and the version.

mod list;
mod rotation;
mod sealer;
mod store;

pub use list::{
    SecretEntry, list_affected_workspaces, list_global_secrets, list_workspace_secrets,
};
pub use rotation::{
    Prospect, Rotation, RotationError, check_rotation, count_sealed_otherwise, rotate_part,
};
pub use sealer::{KeyError, Owner, Sealed, Sealer, UnsealError};
pub use store::{
    FailedSecret, InvalidSecretName, OpenedSecrets, RESERVED_NAMES, check_secret_name,
    delete_global_secret, delete_workspace_secret, find_workspace_secret, list_secret_names,
    load_secrets, open_secrets, save_global_secret, save_workspace_secret,
};
