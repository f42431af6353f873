//! Workspaces as containers of a Docker engine (spec: lifecycle §2).
//!
//! **Who owns a name.** A container is `ws-<id12>`, and creating it by that name is the compare-and-set between
//! workers: one create wins, the other gets 409, looks at the labels of what is there and removes it *by id* only if
//! it is of this installation, engine and workspace and of no higher generation. Nothing is ever removed by name, so a
//! worker that was stopped for an hour between two calls cannot hit its successor's container.
//!
//! **The exact calls of a fresh start** (generation 1, image present, platform outside a container), which the
//! bench replays raw:
//!
//! 1. `POST /volumes/create` for `ws-<id12>-configs`, and at the same time for `ws-<id>-workspace` (not in tier 1 nor
//!    with a mounted directory) and `ws-<id12>-claude-sessions` (runtime `claude-code`, not in tier 1)
//! 2. `POST /containers/create?name=ws-<id12>` with the body of [`Docker::container_body`]
//! 3. `PUT /containers/<id>/archive?path=/configs` with the archive of [`files_archive`] (not when there are no files)
//! 4. `POST /containers/<id>/start`
//! 5. `GET /containers/<id>/json`, for the host port
//!
//! Before the first of them, once in the process: `GET /version`, `GET /info`, `GET /networks/<network>` and, when that
//! is missing, `POST /networks/create`; and per image reference at most every 30 s `GET /images/<image>/json`, with a
//! `POST /images/create` before it when the tag moves, or after it when the image is missing. A generation above 1, or a
//! session reset, adds `GET /containers/ws-<id12>/json` before call 2 and, if something is there,
//! `DELETE /containers/<id>`. Tier 4 leaves out call 5, and so does a platform inside a container.
//!
//! **What is remembered, and what makes it forgotten:** the engine's id (for the process; it is the identity in
//! labels), that the network exists (until a start says that it does not), and that an image is present (30 s, or
//! until a create says that it is not). The engine may be away when the process starts and whenever it likes
//! afterwards: contact is made by the first call that succeeds, and every call has a connection of its own.

mod backend;
mod config;
mod container;
mod engine;
mod files;
mod image;
mod inventory;
mod labels;
mod list;
mod logs;
mod names;
mod network;
mod probe;
mod pull;
mod reference_image;
mod start;
mod stop;
mod volumes;

pub use config::{DockerConfig, RegistryAuth, TierLimit, TierLimits};
pub use engine::{Docker, Engine};
pub use files::files_archive;
