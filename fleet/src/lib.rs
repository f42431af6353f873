//! What the control plane knows of workspaces.
