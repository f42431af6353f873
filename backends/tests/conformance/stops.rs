//! Stopping, removing volumes, and whether something runs.

use std::os::unix::net::UnixListener;
use std::path::Path;

use bollard::models::VolumeCreateRequest;
use longshore_backends::{
    Backend as _, BackendError, Docker, DockerConfig, KeptConfig, StopTarget, VolumeScope,
};
use longshore_base::{WorkspaceId, ids};

use crate::room::{IMAGE, file, room, until};
use crate::watches::Allow;

#[tokio::test]
async fn a_stop_may_be_repeated_and_keeps_the_volumes() {
    let Some(room) = room().await else { return };
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let target = StopTarget {
        workspace_id: room.id,
        generation: 1,
        instance_id: None,
    };
    for _ in 0..2 {
        room.docker.stop(&target).await.unwrap();
        assert!(room.inspect().await.is_none());
    }
    assert_eq!(room.volumes().await.len(), 2);
}

#[tokio::test]
async fn a_stop_spares_a_newer_generation() {
    let Some(room) = room().await else { return };
    let spec = room.spec_of_generation(2);
    room.docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap();
    let target = StopTarget {
        workspace_id: room.id,
        generation: 1,
        instance_id: None,
    };
    let error = room.docker.stop(&target).await.unwrap_err();
    assert!(
        matches!(error, BackendError::StaleGeneration { ours: 1, theirs: 2 }),
        "{error:?}"
    );
    assert!(room.docker.is_running(room.id, None).await.unwrap());
}

#[tokio::test]
async fn what_was_never_there_stops_and_is_removed() {
    let Some(room) = room().await else { return };
    let nobody = WorkspaceId::random();
    room.docker
        .stop(&StopTarget::any_generation(nobody))
        .await
        .unwrap();
    room.docker
        .remove_volumes(nobody, VolumeScope::All)
        .await
        .unwrap();
    assert!(!room.docker.is_running(nobody, None).await.unwrap());
}

/// As an engine leaves it that was killed while it made the volume.
#[tokio::test]
async fn a_volume_without_any_labels_is_the_workspaces_whose_name_it_has() {
    let Some(room) = room().await else { return };
    let name = format!("{}-configs", room.id.container_name());
    let request = VolumeCreateRequest {
        name: Some(name.clone()),
        ..VolumeCreateRequest::default()
    };
    room.raw.create_volume(request).await.unwrap();
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let target = StopTarget::any_generation(room.id);
    room.docker.stop(&target).await.unwrap();
    let scope = VolumeScope::ConfigAndSessions;
    room.docker.remove_volumes(room.id, scope).await.unwrap();
    assert!(room.raw.inspect_volume(&name).await.is_err());
}

#[tokio::test]
async fn two_stops_at_once_both_succeed() {
    let Some(room) = room().await else { return };
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let target = StopTarget::any_generation(room.id);
    let other = room.another_process();
    let (one, two) = tokio::join!(room.docker.stop(&target), other.stop(&target));
    one.unwrap();
    two.unwrap();
    assert!(room.inspect().await.is_none());
}

#[tokio::test]
async fn volumes_go_by_scope_and_not_while_they_are_used() {
    let Some(room) = room().await else { return };
    let mut spec = room.spec();
    spec.runtime = "claude-code".into();
    room.docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap();
    assert_eq!(room.volumes().await.len(), 3);
    let used = room.docker.remove_volumes(room.id, VolumeScope::All).await;
    assert!(matches!(used, Err(BackendError::InTheWay(_))), "{used:?}");

    room.docker
        .stop(&StopTarget::any_generation(room.id))
        .await
        .unwrap();
    let scope = VolumeScope::ConfigAndSessions;
    room.docker.remove_volumes(room.id, scope).await.unwrap();
    assert_eq!(room.volumes().await, [format!("ws-{}-workspace", room.id)]);
    for _ in 0..2 {
        room.docker
            .remove_volumes(room.id, VolumeScope::All)
            .await
            .unwrap();
        assert_eq!(room.volumes().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn running_is_what_the_engine_says_of_our_container() {
    let Some(room) = room().await else { return };
    assert!(!room.docker.is_running(room.id, None).await.unwrap());
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    assert!(room.docker.is_running(room.id, None).await.unwrap());
    let name = room.id.container_name();
    room.raw.stop_container(&name, None).await.unwrap();
    assert!(!room.docker.is_running(room.id, None).await.unwrap());
}

fn at_socket(path: &Path) -> Docker {
    let config = DockerConfig {
        host: Some(format!("unix://{}", path.display())),
        ..DockerConfig::new(ids::random_uuid())
    };
    Docker::connect(config).unwrap()
}

#[tokio::test]
async fn an_engine_that_is_away_makes_errors_and_never_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let missing = at_socket(&dir.path().join("missing.sock"));
    let dead_path = dir.path().join("dead.sock");
    // A socket file that nobody listens at any more, as a killed engine leaves it.
    drop(UnixListener::bind(&dead_path).unwrap());
    let dead = at_socket(&dead_path);
    let id = WorkspaceId::random();
    for docker in [missing, dead] {
        assert_eq!(docker.engine_id(), None);
        let running = docker.is_running(id, None).await;
        assert!(
            matches!(running, Err(BackendError::NotAvailable(_))),
            "{running:?}"
        );
        let stopped = docker
            .stop(&StopTarget::any_generation(id))
            .await
            .unwrap_err();
        assert!(stopped.retryable(), "{stopped:?}");
    }
}

#[tokio::test]
async fn an_engine_that_comes_late_is_used_without_a_restart() {
    let Some(room) = room().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("engine.sock");
    let docker = at_socket(&path);
    docker.check().await.unwrap_err();
    std::os::unix::fs::symlink("/var/run/docker.sock", &path).unwrap();
    docker.check().await.unwrap();
    assert_eq!(docker.engine_id(), room.docker.engine_id());
    // Gone again, and back: nothing but the calls in between fails.
    std::fs::remove_file(&path).unwrap();
    docker.is_running(room.id, None).await.unwrap_err();
    std::os::unix::fs::symlink("/var/run/docker.sock", &path).unwrap();
    assert!(!docker.is_running(room.id, None).await.unwrap());
}

#[tokio::test]
async fn a_kept_config_is_read_with_and_without_a_container() {
    let Some(room) = room().await else { return };
    let kept = async || room.docker.read_config(room.id, IMAGE).await.unwrap();
    assert_eq!(kept().await, KeptConfig::Missing);
    let mut spec = room.spec();
    spec.files = vec![file("other", 0o644, "x")];
    room.docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap();
    assert_eq!(kept().await, KeptConfig::Missing);
    let mut spec = room.spec_of_generation(2);
    spec.files = vec![file("config.yaml", 0o644, "runtime: hermes\n")];
    room.docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap();
    let found = KeptConfig::Found("runtime: hermes\n".to_owned());
    assert_eq!(kept().await, found);
    room.docker
        .stop(&StopTarget::any_generation(room.id))
        .await
        .unwrap();
    assert_eq!(kept().await, found);
    until("the probes to be gone", async || {
        match room.containers().await {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
}
