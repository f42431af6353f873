//! The one place that knows the product's name. Names the ecosystem fixes (`WORKSPACE_ID`, `PLATFORM_URL`, …) carry no brand.

/// Prefix of containers, labels, metrics and data directories.
pub const NAME: &str = "longshore";
/// How people read it.
pub const PRODUCT: &str = "Longshore";
/// The label every container and volume of ours carries.
pub const LABEL_MANAGED: &str = "longshore.platform.managed";
/// Which installation made it: the uuid of the database.
pub const LABEL_INSTALLATION: &str = "longshore.installation";
/// Which engine it was made on: the engine's own id.
pub const LABEL_ENGINE: &str = "longshore.engine";
/// The workspace it belongs to.
pub const LABEL_WORKSPACE: &str = "longshore.workspace";
/// Which (re)provision made it.
pub const LABEL_GENERATION: &str = "longshore.generation";
/// Which run of that provision made it: the run's token.
pub const LABEL_RUN: &str = "longshore.run";
