//! Where images come from.

use std::path::Path;

use bollard::query_parameters::{RemoveImageOptionsBuilder, TagImageOptionsBuilder};
use futures_util::TryStreamExt as _;
use longshore_backends::docker::RegistryAuth;
use longshore_backends::{Backend as _, BackendError, StartSpec, StopTarget, steps};
use longshore_base::{Secret, ids};

use crate::registry::Registry;
use crate::room::{IMAGE, Room, fetch, room};
use crate::watches::Allow;

async fn remove_image(room: &Room, reference: &str) {
    let options = RemoveImageOptionsBuilder::default().force(true).build();
    room.raw
        .remove_image(reference, Some(options), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_missing_image_is_named_with_its_runtime_and_nothing_is_left() {
    let Some(room) = room().await else { return };
    let spec = StartSpec {
        // Nobody listens there, so the pull fails at once.
        image: "localhost:1/absent:1".into(),
        ..room.spec()
    };
    let error = room
        .docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, BackendError::NoSuchImage { pull: Some(_), .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.contains("localhost:1/absent:1") && text.contains("hermes"),
        "{text}"
    );
    assert!(!error.retryable());
    assert_eq!(error.public(), "workspace start failed");
    assert_eq!(room.containers().await, Vec::<String>::new());
    assert_eq!(room.volumes().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_moving_tag_that_cannot_be_pulled_starts_from_the_local_copy() {
    let Some(room) = room().await else { return };
    let repository = format!("localhost:1/moving-{}", room.id.id12());
    let options = TagImageOptionsBuilder::default()
        .repo(&repository)
        .tag("latest")
        .build();
    room.raw.tag_image(IMAGE, Some(options)).await.unwrap();
    let spec = StartSpec {
        image: format!("{repository}:latest"),
        pull_always: true,
        ..room.spec()
    };
    let watch = Allow::default();
    room.sweep_image(&spec.image);
    let started = room.docker.bring_up(&spec, &watch).await.unwrap();
    fetch(&started.url, "env").await;
    assert!(watch.names().contains(&steps::PULL));
}

#[tokio::test]
async fn an_image_that_vanished_since_it_was_seen_is_pulled() {
    let Some(mut room) = room().await else { return };
    let registry = Registry::serve("me", "s3cret").await;
    room.config.registry_auth = Some(RegistryAuth {
        registry: registry.host(),
        username: "me".into(),
        token: Secret::from("s3cret"),
    });
    let docker = room.another_process();
    let spec = StartSpec {
        image: format!("{}/own/img:1", registry.host()),
        ..room.spec()
    };
    room.sweep_image(&spec.image);
    let watch = Allow::default();
    let started = docker.bring_up(&spec, &watch).await.unwrap();
    fetch(&started.url, "env").await;
    assert_eq!(started.image_digest, Some(registry.digest()));
    assert_eq!(
        watch.names(),
        [
            steps::IMAGE,
            steps::PULL,
            steps::CREATE,
            steps::CONFIGURE,
            steps::START
        ]
    );

    // Pinned and seen: the second start asks the registry nothing, and the image's absence shows at the create.
    let asked = registry.requests();
    docker
        .stop(&StopTarget::any_generation(room.id))
        .await
        .unwrap();
    docker
        .bring_up(&by_another_run(&spec), &Allow::default())
        .await
        .unwrap();
    assert_eq!(registry.requests(), asked);
    docker
        .stop(&StopTarget::any_generation(room.id))
        .await
        .unwrap();
    remove_image(&room, &spec.image).await;
    docker
        .bring_up(&by_another_run(&spec), &Allow::default())
        .await
        .unwrap();
    assert!(registry.requests() > asked);

    // A tag that moves is asked for although it is here.
    let asked = registry.requests();
    docker
        .stop(&StopTarget::any_generation(room.id))
        .await
        .unwrap();
    let moving = StartSpec {
        pull_always: true,
        ..by_another_run(&spec)
    };
    docker.bring_up(&moving, &Allow::default()).await.unwrap();
    assert!(registry.requests() > asked);

    docker
        .stop(&StopTarget::any_generation(room.id))
        .await
        .unwrap();
    remove_image(&room, &spec.image).await;
    let anonymous = room
        .docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap_err();
    assert!(
        matches!(anonymous, BackendError::NoSuchImage { .. }),
        "{anonymous:?}"
    );
}

fn by_another_run(spec: &StartSpec) -> StartSpec {
    StartSpec {
        run: ids::random_uuid(),
        ..spec.clone()
    }
}

#[tokio::test]
async fn the_reference_image_is_made_from_its_binary_once() {
    let Some(room) = room().await else { return };
    let tag = format!("longshore-test/agent:{}", room.id);
    room.sweep_image(&tag);
    let binary = Path::new("/bin/busybox");
    let ensured = async || {
        room.docker
            .ensure_reference_image(&tag, binary)
            .await
            .unwrap()
    };
    assert!(ensured().await);
    assert!(!ensured().await);

    let found = room.raw.inspect_image(&tag).await.unwrap();
    let config = found.config.unwrap();
    assert_eq!(config.entrypoint.unwrap(), ["/longshore-agent"]);
    assert_eq!(config.working_dir.as_deref(), Some("/workspace"));
    assert_eq!(config.exposed_ports.unwrap(), ["8000/tcp"]);

    let body = bollard::models::ContainerCreateBody {
        image: Some(tag.clone()),
        labels: Some(room.label()),
        ..Default::default()
    };
    let created = room.raw.create_container(None, body).await.unwrap();
    let exported = room.raw.export_container(&created.id);
    let pieces: Vec<_> = exported.try_collect().await.unwrap();
    let exported = pieces.concat();
    let mut tar = tar::Archive::new(&exported[..]);
    let seen: Vec<_> = tar
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            let path = entry.path().unwrap().display().to_string();
            format!(
                "{path} {:o} {}",
                header.mode().unwrap() & 0o7777,
                header.uid().unwrap()
            )
        })
        .collect();
    for wanted in [
        "configs/ 755 0",
        "workspace/ 755 0",
        "tmp/ 1777 0",
        "root/ 700 0",
        "home/agent/ 755 1000",
        "etc/passwd 644 0",
        "etc/group 644 0",
        "longshore-agent 755 0",
    ] {
        assert!(
            seen.iter().any(|line| line == wanted),
            "{wanted} in {seen:#?}"
        );
    }

    let missing = Path::new("/no/such/agent");
    let absent = format!("{tag}-absent");
    let error = room
        .docker
        .ensure_reference_image(&absent, missing)
        .await
        .unwrap_err();
    assert!(
        matches!(error, BackendError::AgentBinary { .. }),
        "{error:?}"
    );
}
