//! Names of events (`spec: rest-api` §5.3). The canvas and the agent runtime match on them, so they are fixed.

/// A workspace is being brought up: `{name, tier, runtime}`.
pub const WORKSPACE_PROVISIONING: &str = "WORKSPACE_PROVISIONING";
/// A workspace can be talked to.
pub const WORKSPACE_ONLINE: &str = "WORKSPACE_ONLINE";
/// An external workspace waits for its first registration: `{name, external}`.
pub const WORKSPACE_AWAITING_AGENT: &str = "WORKSPACE_AWAITING_AGENT";
/// A workspace was up and is no longer seen: `{}`.
pub const WORKSPACE_OFFLINE: &str = "WORKSPACE_OFFLINE";
/// Alive but failing: `{error_rate?, sample_error, runtime_state?}`.
pub const WORKSPACE_DEGRADED: &str = "WORKSPACE_DEGRADED";
/// Could not be brought up: `{error, …}`.
pub const WORKSPACE_PROVISION_FAILED: &str = "WORKSPACE_PROVISION_FAILED";
/// Stopped by an operator: `{name}`.
pub const WORKSPACE_PAUSED: &str = "WORKSPACE_PAUSED";
/// Stopped for idleness: `{name, tier}`.
pub const WORKSPACE_HIBERNATED: &str = "WORKSPACE_HIBERNATED";
/// Deleted: `{}`, or `{cascade_deleted}` for the root of a delete.
pub const WORKSPACE_REMOVED: &str = "WORKSPACE_REMOVED";
/// A team was expanded: `{children}`.
pub const WORKSPACE_EXPANDED: &str = "WORKSPACE_EXPANDED";
/// A team was collapsed: `{removed_children}`.
pub const WORKSPACE_COLLAPSED: &str = "WORKSPACE_COLLAPSED";
/// A new agent card: `{agent_card}`.
pub const AGENT_CARD_UPDATED: &str = "AGENT_CARD_UPDATED";

/// Ephemeral. Every heartbeat: `{active_tasks, uptime_seconds}`.
pub const WORKSPACE_HEARTBEAT: &str = "WORKSPACE_HEARTBEAT";
/// Ephemeral. `current_task` changed: `{current_task, active_tasks}`.
pub const TASK_UPDATED: &str = "TASK_UPDATED";
/// Ephemeral. An agent speaks to the user.
pub const AGENT_MESSAGE: &str = "AGENT_MESSAGE";
/// Ephemeral. The answer to a message of the canvas: `{response_body, method, duration_ms}`.
pub const A2A_RESPONSE: &str = "A2A_RESPONSE";
/// Ephemeral. A row of the activity log was written.
pub const ACTIVITY_LOGGED: &str = "ACTIVITY_LOGGED";

/// Nothing of a queue starts any more: `{scope, value, by, reason}`, as all events about queues and holds.
pub const QUEUE_PAUSED: &str = "QUEUE_PAUSED";
/// Nothing of a queue starts any more, and somebody waits for the rest to end.
pub const QUEUE_DRAINING: &str = "QUEUE_DRAINING";
/// Nothing of a queue starts any more, and requests that would need it are refused.
pub const QUEUE_REJECTING: &str = "QUEUE_REJECTING";
/// A queue runs again.
pub const QUEUE_RESUMED: &str = "QUEUE_RESUMED";
/// The limits of a queue are others: `{…, limits}`.
pub const QUEUE_LIMITED: &str = "QUEUE_LIMITED";
/// Part of the work is held: `{…, hold_id, mode, until}`.
pub const HOLD_SET: &str = "HOLD_SET";
/// A hold is over: `{…, hold_id, mode}`.
pub const HOLD_LIFTED: &str = "HOLD_LIFTED";
/// An organisation has another weight: `{scope, value, weight, by, reason}`.
pub const WEIGHT_SET: &str = "WEIGHT_SET";
/// An organisation has no weight of its own any more: `{scope, value, was, by, reason}`.
pub const WEIGHT_CLEARED: &str = "WEIGHT_CLEARED";
/// A worker takes no more jobs: `{worker, by, reason}`.
pub const WORKER_DRAINING: &str = "WORKER_DRAINING";
/// A worker takes jobs again: `{worker, by, reason}`.
pub const WORKER_UNDRAINED: &str = "WORKER_UNDRAINED";
/// A finished job was put back to wait: `{job_id, kind, by}`.
pub const JOB_RETRIED: &str = "JOB_RETRIED";
/// A job was thrown away: `{job_id, kind, by, reason}`.
pub const JOB_DISCARDED: &str = "JOB_DISCARDED";
/// Something that was to be stopped may still run: `{leak_id, resource, resource_id, source}`.
pub const LEAK_SUSPECTED: &str = "LEAK_SUSPECTED";
/// It is known what became of it: `{leak_id, state}`.
pub const LEAK_RESOLVED: &str = "LEAK_RESOLVED";
/// A reconciler wanted to destroy more than it may, and destroyed nothing: `{name, scope, reason, wanted, budget}`.
pub const RECONCILER_BLOCKED: &str = "RECONCILER_BLOCKED";
/// A reconciler makes passes again: `{name, scopes, by, reason}`.
pub const RECONCILER_ENABLED: &str = "RECONCILER_ENABLED";
/// A reconciler makes no passes any more: `{name, scopes, by, reason}`.
pub const RECONCILER_DISABLED: &str = "RECONCILER_DISABLED";
/// A blocked pass may exceed its budget: `{name, scopes, by, reason}`.
pub const RECONCILER_APPROVED: &str = "RECONCILER_APPROVED";
/// Something on its way had stopped moving, and was given a way out: `{reason, what, way_out}`.
pub const STUCK: &str = "STUCK";
/// A runtime has an image pin: `{runtime, digest, was, by, reason}`.
pub const IMAGE_PINNED: &str = "IMAGE_PINNED";
/// A runtime follows its moving tag again: `{runtime, was, by, reason}`.
pub const IMAGE_UNPINNED: &str = "IMAGE_UNPINNED";
/// A digest goes to the workspaces of a runtime: `{rollout_id, runtime, digest, by, reason}`, as all events about rollouts.
pub const ROLLOUT_STARTED: &str = "ROLLOUT_STARTED";
/// Too much of a ring failed, and nothing else is touched: `{…, ring}`.
pub const ROLLOUT_HELD: &str = "ROLLOUT_HELD";
/// A held rollout goes on.
pub const ROLLOUT_RESUMED: &str = "ROLLOUT_RESUMED";
/// A rollout is over before its end; what it took stays as it is.
pub const ROLLOUT_ABORTED: &str = "ROLLOUT_ABORTED";
/// What a rollout took goes back to what it ran before.
pub const ROLLOUT_ROLLING_BACK: &str = "ROLLOUT_ROLLING_BACK";
/// All of it has: `{…, restored, lost}`.
pub const ROLLOUT_ROLLED_BACK: &str = "ROLLOUT_ROLLED_BACK";
/// The last ring has soaked and the pin is set.
pub const ROLLOUT_DONE: &str = "ROLLOUT_DONE";
