//! Whose a container or volume is (spec: lifecycle §2.1, jobs §6 and §12).

use std::collections::HashMap;

use longshore_base::{WorkspaceId, brand};
use uuid::Uuid;

use crate::StartSpec;

pub(super) type Labels = HashMap<String, String>;

/// The two facts that make a thing ours: which installation made it, and on which engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark<'a> {
    pub(super) installation: Uuid,
    pub(super) engine_id: &'a str,
}

/// What holds a workspace's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// This workspace's container, of that generation.
    Ours { generation: i64 },
    /// This workspace's and this installation's, but made when the engine had another id. Not removed by itself, and
    /// not to be passed over in silence either.
    OursElsewhere,
    /// Somebody else's.
    Stranger,
}

impl Mark<'_> {
    /// Labels of whatever belongs to a workspace.
    pub(super) fn of_workspace(&self, id: WorkspaceId) -> Labels {
        let mut labels = self.of_installation();
        labels.insert(brand::LABEL_WORKSPACE.into(), id.to_string());
        labels
    }

    /// Labels of what all workspaces share.
    pub(super) fn of_installation(&self) -> Labels {
        Labels::from([
            (brand::LABEL_MANAGED.into(), "true".into()),
            (
                brand::LABEL_INSTALLATION.into(),
                self.installation.to_string(),
            ),
            (brand::LABEL_ENGINE.into(), self.engine_id.into()),
        ])
    }

    /// Labels of a workspace's container.
    pub(super) fn of_container(&self, spec: &StartSpec) -> Labels {
        let mut labels = self.of_workspace(spec.workspace_id);
        labels.insert(brand::LABEL_GENERATION.into(), spec.generation.to_string());
        labels.insert(brand::LABEL_RUN.into(), spec.run.to_string());
        labels
    }

    /// Whether this installation made it on this engine, for whatever workspace.
    pub(super) fn is_on(&self, labels: &Labels) -> bool {
        let ours = self.of_installation();
        ours.iter()
            .all(|(label, value)| labels.get(label) == Some(value))
    }

    /// Judges the labels of what was found under a workspace's name.
    pub(super) fn holder(&self, id: WorkspaceId, labels: &Labels) -> Holder {
        let has = |label: &str, value: &str| labels.get(label).is_some_and(|held| held == value);
        // The workspace is compared too: two ids may share the first twelve characters, which make the name.
        if !has(brand::LABEL_MANAGED, "true")
            || !has(brand::LABEL_INSTALLATION, &self.installation.to_string())
            || !has(brand::LABEL_WORKSPACE, &id.to_string())
        {
            return Holder::Stranger;
        }
        if !has(brand::LABEL_ENGINE, self.engine_id) {
            return Holder::OursElsewhere;
        }
        // Ours without a readable generation was damaged by hand; older than anything is the reading that heals.
        Holder::Ours {
            generation: generation(labels).unwrap_or(i64::MIN),
        }
    }
}

/// Which (re)provision made it, if that can be read.
pub(super) fn generation(labels: &Labels) -> Option<i64> {
    labels.get(brand::LABEL_GENERATION)?.parse().ok()
}

/// Whose it is, if that can be read.
pub(super) fn workspace(labels: &Labels) -> Option<WorkspaceId> {
    labels.get(brand::LABEL_WORKSPACE)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use longshore_base::ids::random_uuid;

    use super::*;

    #[test]
    fn a_container_is_ours_only_if_every_label_says_so() {
        let installation = random_uuid();
        let mark = Mark {
            installation,
            engine_id: "ENGINE",
        };
        let id = WorkspaceId::random();
        let mut labels = mark.of_workspace(id);
        let generation = |text: &str, labels: &Labels| {
            let mut labels = labels.clone();
            labels.insert(brand::LABEL_GENERATION.into(), text.into());
            mark.holder(id, &labels)
        };
        assert_eq!(generation("7", &labels), Holder::Ours { generation: 7 });
        assert_eq!(
            generation("?", &labels),
            Holder::Ours {
                generation: i64::MIN
            }
        );
        assert_eq!(mark.holder(id, &Labels::new()), Holder::Stranger);
        assert_eq!(
            mark.holder(WorkspaceId::random(), &labels),
            Holder::Stranger
        );
        let other = Mark {
            installation: random_uuid(),
            ..mark
        };
        assert_eq!(other.holder(id, &labels), Holder::Stranger);
        assert!(mark.is_on(&labels) && !other.is_on(&labels) && !mark.is_on(&Labels::new()));
        labels.insert(brand::LABEL_ENGINE.into(), "BEFORE".into());
        assert_eq!(generation("7", &labels), Holder::OursElsewhere);
        assert!(!mark.is_on(&labels));
    }
}
