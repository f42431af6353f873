//! What is on the engine under names of workspaces, for the sweeps (spec: lifecycle §6.4, jobs §12).

use std::collections::HashMap;

use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;
use longshore_base::WorkspaceId;

use super::engine::{Docker, LOOK_LIMIT, call_within};
use super::labels::{Holder, Labels, Mark, workspace};
use crate::{BackendError, ListedContainer};

/// How the names of workspaces' containers begin.
pub(super) const START: &str = "ws-";

impl Docker {
    pub(super) async fn list_named(&self) -> Result<Vec<ListedContainer>, BackendError> {
        let engine = self.engine().await?;
        // The engine looks for the text anywhere in a name; whether it begins so is seen below.
        let filters = HashMap::from([("name", vec![START])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let listed = engine.client.list_containers(Some(options));
        let listed = call_within(LOOK_LIMIT, "container_list", listed).await?;
        let mark = self.mark(engine);
        Ok(listed
            .into_iter()
            .filter_map(|summary| read(mark, summary))
            .collect())
    }
}

fn read(mark: Mark<'_>, summary: ContainerSummary) -> Option<ListedContainer> {
    let names = summary.names.unwrap_or_default();
    let mut names = names.iter().map(|name| name.trim_start_matches('/'));
    let name = names.find(|name| name.starts_with(START))?.to_owned();
    let labels = summary.labels.unwrap_or_default();
    Some(ListedContainer {
        container_id: summary.id.unwrap_or_default(),
        workspace_id: owner(mark, &name, &labels),
        name,
    })
}

/// The workspace of a container that is ours by every label, and that has that workspace's name: a renamed one is somebody's
/// special case.
fn owner(mark: Mark<'_>, name: &str, labels: &Labels) -> Option<WorkspaceId> {
    let id = workspace(labels)?;
    let ours = matches!(mark.holder(id, labels), Holder::Ours { .. });
    (ours && id.container_name() == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use longshore_base::ids::random_uuid;

    use super::*;

    #[test]
    fn only_what_has_all_our_labels_and_its_own_name_is_ours() {
        let mark = Mark {
            installation: random_uuid(),
            engine_id: "ENGINE",
        };
        let id = WorkspaceId::random();
        let listed = |mark: Mark<'_>, name: &str, labels: &Labels| {
            let summary = ContainerSummary {
                id: Some("c".into()),
                names: Some(vec![format!("/{name}")]),
                labels: Some(labels.clone()),
                ..ContainerSummary::default()
            };
            read(mark, summary).map(|container| container.workspace_id)
        };
        let (name, labels) = (id.container_name(), mark.of_workspace(id));
        assert_eq!(listed(mark, &name, &labels), Some(Some(id)));
        assert_eq!(listed(mark, "ws-renamed", &labels), Some(None));
        assert_eq!(listed(mark, "my-ws-thing", &labels), None);
        assert_eq!(listed(mark, &name, &Labels::new()), Some(None));
        let other = Mark {
            installation: random_uuid(),
            ..mark
        };
        assert_eq!(listed(other, &name, &labels), Some(None));
        let elsewhere = Mark {
            engine_id: "OTHER",
            ..mark
        };
        assert_eq!(listed(elsewhere, &name, &labels), Some(None));
    }
}
