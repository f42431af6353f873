//! What a started workspace is.

use std::sync::Mutex;

use bollard::models::ContainerInspectResponse;
use longshore_backends::{Backend as _, BackendError, StartSpec, WorkspaceAccess, steps};
use longshore_base::{Secret, brand};

use crate::room::{Room, fetch, file, room, shout};
use crate::watches::{Allow, StoppedAt};

#[tokio::test]
async fn a_fresh_workspace_is_reachable_labelled_and_finds_its_files() {
    let Some(room) = room().await else { return };
    let mut spec = room.spec();
    spec.files.push(file("skills/a/SKILL.md", 0o640, "skill"));
    spec.env = [("A", "first"), ("B", "b"), ("A", "last")]
        .map(|(name, value)| (name.to_owned(), Secret::from(value)))
        .to_vec();
    let watch = Allow::default();
    let started = room.docker.bring_up(&spec, &watch).await.unwrap();

    assert_eq!(
        watch.names(),
        [steps::IMAGE, steps::CREATE, steps::CONFIGURE, steps::START]
    );
    assert!(started.url.starts_with("http://127.0.0.1:"), "{started:?}");
    assert_eq!(started.internal_url, room.id.internal_url());
    assert_eq!(started.image_digest, None);
    assert_eq!(room.containers().await, [started.container_id.as_str()]);
    assert_eq!(room.docker.engine_id(), Some(started.engine_id.as_str()));

    // The first process wrote these before it served anything, so the files were there before it.
    assert_eq!(
        fetch(&started.url, "files")
            .await
            .lines()
            .collect::<Vec<_>>(),
        [
            "./.auth_token 600 0",
            "./config.yaml 644 0",
            "./skills 755 0",
            "./skills/a 755 0",
            "./skills/a/SKILL.md 640 0",
        ]
    );
    let env = fetch(&started.url, "env").await;
    assert!(env.contains("A=last\n") && env.contains("B=b\n"), "{env}");
    assert!(!env.contains("first"), "{env}");
    let host = fetch(&started.url, "hostname").await;
    assert_eq!(host.trim(), room.id.container_name());

    let labels = room.labels().await;
    for (label, value) in [
        (brand::LABEL_MANAGED, "true"),
        (
            brand::LABEL_INSTALLATION,
            &room.config.installation.to_string(),
        ),
        (brand::LABEL_ENGINE, &started.engine_id),
        (brand::LABEL_WORKSPACE, &room.id.to_string()),
        (brand::LABEL_GENERATION, "1"),
        (brand::LABEL_RUN, &spec.run.to_string()),
    ] {
        assert_eq!(
            labels.get(label).map(String::as_str),
            Some(value),
            "{label}"
        );
    }
    assert_eq!(
        room.volumes().await,
        [
            format!("{}-configs", room.id.container_name()),
            format!("ws-{}-workspace", room.id),
        ]
    );
}

#[tokio::test]
async fn workspaces_reach_each_other_by_name_on_their_network() {
    let Some(room) = room().await else { return };
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let found = room.inspect().await.unwrap();
    let networks = found.network_settings.unwrap().networks.unwrap();
    assert_eq!(networks.keys().collect::<Vec<_>>(), [&room.config.network]);
    let aliases = networks[&room.config.network].aliases.clone().unwrap();
    assert!(aliases.contains(&room.id.container_name()), "{aliases:?}");
    let host = found.host_config.unwrap();
    assert_eq!(
        host.extra_hosts.unwrap(),
        ["host.docker.internal:host-gateway"]
    );

    let gateway = room.docker.network_gateway().await.unwrap().unwrap();
    let engine_says = networks[&room.config.network].gateway.clone().unwrap();
    assert_eq!(gateway.to_string(), engine_says);
}

/// Starts a workspace of a tier that keeps off its port. Answers its address and what the engine made of it, seen
/// just before its first process runs: engines inside a sandbox create privileged containers but cannot run them.
async fn of_tier(room: &Room, tier: i32) -> (Option<String>, ContainerInspectResponse) {
    let spec = StartSpec {
        tier,
        runtime: "claude-code".into(),
        env: vec![("IDLE".into(), Secret::from("1"))],
        ..room.spec()
    };
    let seen = Mutex::new(None);
    let watch = StoppedAt::new(steps::START, "", async {
        *seen.lock().unwrap() = room.inspect().await;
    });
    let started = room.docker.bring_up(&spec, &watch).await;
    drop(watch);
    let found = seen.into_inner().unwrap().unwrap();
    match started {
        Ok(started) => (Some(started.url), found),
        Err(error) if tier > 2 && error.chain().contains("operation not permitted") => {
            shout(&format!(
                "this engine cannot run tier {tier}, only create it: {}",
                error.chain()
            ));
            (None, found)
        }
        Err(error) => panic!("{}", error.chain()),
    }
}

fn destinations(found: &ContainerInspectResponse) -> Vec<String> {
    let mounts = found.mounts.iter().flatten();
    let mut places: Vec<_> = mounts
        .filter_map(|mount| mount.destination.clone())
        .collect();
    places.sort();
    places
}

#[tokio::test]
async fn tier_one_can_write_to_its_configs_and_a_small_tmp_only() {
    let Some(room) = room().await else { return };
    let (_, found) = of_tier(&room, 1).await;
    assert_eq!(destinations(&found), ["/configs"]);
    let host = found.host_config.unwrap();
    assert_eq!(host.readonly_rootfs, Some(true));
    assert_eq!(host.tmpfs.unwrap()["/tmp"], "rw,noexec,nosuid,size=64m");
    assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
    assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
    assert_eq!((host.memory, host.nano_cpus), (Some(0), Some(0)));
    assert_eq!(room.volumes().await.len(), 1);
}

#[tokio::test]
async fn tier_two_is_confined_and_limited() {
    let Some(room) = room().await else { return };
    let started = room
        .docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let status = fetch(&started.url, "status").await;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, SETGID 6, SETUID 7.
    assert_eq!(
        u64::from_str_radix(&field("CapBnd:"), 16).unwrap(),
        0b1100_1011
    );
    assert_eq!(field("NoNewPrivs:"), "1");
    let host = room.inspect().await.unwrap().host_config.unwrap();
    assert_eq!(host.memory, Some(512 << 20));
    assert_eq!(host.nano_cpus, Some(1_000_000_000));
    assert_eq!(host.privileged, Some(false));
    assert_eq!(host.pid_mode.as_deref(), Some(""));
    let port = &host.port_bindings.unwrap()["8000/tcp"].clone().unwrap()[0];
    assert_eq!(port.host_ip.as_deref(), Some("127.0.0.1"));
    let policy = host.restart_policy.unwrap().name.unwrap();
    assert_eq!(policy.to_string(), "unless-stopped");
}

#[tokio::test]
async fn tier_three_is_privileged_and_stays_on_the_network() {
    let Some(room) = room().await else { return };
    let (url, found) = of_tier(&room, 3).await;
    let sessions = ["/root", ".claude", "sessions"].join("/");
    assert_eq!(destinations(&found), ["/configs", &sessions, "/workspace"]);
    let host = found.host_config.unwrap();
    assert_eq!(host.privileged, Some(true));
    assert_eq!(host.pid_mode.as_deref(), Some("host"));
    assert_eq!(
        host.network_mode.as_deref(),
        Some(room.config.network.as_str())
    );
    assert_eq!(host.memory, Some(2048 << 20));
    if let Some(url) = url {
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    }
}

#[tokio::test]
async fn tier_four_is_the_host() {
    let Some(room) = room().await else { return };
    let (url, found) = of_tier(&room, 4).await;
    assert!(url.is_none_or(|url| url == "http://127.0.0.1:8000"));
    assert!(destinations(&found).contains(&"/var/run/docker.sock".to_owned()));
    let networks = found.network_settings.unwrap().networks.unwrap();
    assert_eq!(networks.keys().collect::<Vec<_>>(), ["host"]);
    let host = found.host_config.unwrap();
    assert_eq!(host.network_mode.as_deref(), Some("host"));
    assert_eq!(host.pid_mode.as_deref(), Some("host"));
    assert_eq!(host.privileged, Some(true));
    assert!(host.port_bindings.unwrap_or_default().is_empty());
    assert_eq!(host.memory, Some(4096 << 20));
}

#[tokio::test]
async fn a_directory_of_the_host_is_mounted_as_its_access_says() {
    let Some(room) = room().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let spec = StartSpec {
        workspace_dir: Some(dir.path().display().to_string()),
        workspace_access: WorkspaceAccess::ReadOnly,
        ..room.spec()
    };
    room.docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap();
    let mounts = room.inspect().await.unwrap().mounts.unwrap();
    let mount = mounts
        .iter()
        .find(|mount| mount.destination.as_deref() == Some("/workspace"))
        .unwrap();
    assert_eq!(mount.source, Some(dir.path().display().to_string()));
    assert_eq!(mount.rw, Some(false));
    assert_eq!(room.volumes().await.len(), 1);
}

#[tokio::test]
async fn inside_a_container_the_platform_is_given_the_internal_address() {
    let Some(mut room) = room().await else { return };
    room.config.in_docker = true;
    let docker = room.another_process();
    let started = docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    assert_eq!(started.url, room.id.internal_url());
}

#[tokio::test]
async fn a_restart_keeps_the_volumes_and_a_reset_forgets_the_sessions() {
    let Some(room) = room().await else { return };
    let claude = |generation, reset_session, files| StartSpec {
        runtime: "claude-code".into(),
        reset_session,
        files,
        ..room.spec_of_generation(generation)
    };
    let session = format!("{}-claude-sessions", room.id.container_name());
    let made_at = async |name: &str| {
        let volume = room.raw.inspect_volume(name).await.unwrap();
        volume.created_at.unwrap()
    };
    let first = claude(1, false, vec![file("mine", 0o644, "edited")]);
    room.docker
        .bring_up(&first, &Allow::default())
        .await
        .unwrap();
    let made = made_at(&session).await;

    let second = room
        .docker
        .bring_up(&claude(2, false, vec![]), &Allow::default())
        .await
        .unwrap();
    assert_eq!(fetch(&second.url, "files").await, "./mine 644 0\n");
    assert_eq!(made_at(&session).await, made);

    // Volumes are dated to the second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let by_variable = StartSpec {
        env: vec![("WORKSPACE_RESET_SESSION".into(), Secret::from("true"))],
        ..claude(3, false, vec![])
    };
    let third = room
        .docker
        .bring_up(&by_variable, &Allow::default())
        .await
        .unwrap();
    assert_ne!(made_at(&session).await, made);
    assert_eq!(fetch(&third.url, "files").await, "./mine 644 0\n");
}

#[tokio::test]
async fn a_network_that_was_removed_behind_our_back_is_made_again() {
    let Some(room) = room().await else { return };
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let target = longshore_backends::StopTarget::any_generation(room.id);
    room.docker.stop(&target).await.unwrap();
    room.raw.remove_network(&room.config.network).await.unwrap();
    let started = room
        .docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    fetch(&started.url, "env").await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_container() {
    let Some(room) = room().await else { return };
    let spec = StartSpec {
        workspace_dir: Some("/proc/no/such/place".into()),
        workspace_access: WorkspaceAccess::ReadWrite,
        ..room.spec()
    };
    let error = room
        .docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, BackendError::Refused(_) | BackendError::Failed(_)),
        "{error:?}"
    );
    assert_eq!(error.public(), "workspace start failed");
    assert_eq!(room.containers().await, Vec::<String>::new());

    let spec = StartSpec {
        files: vec![file("../../etc/passwd", 0o644, "")],
        ..room.spec()
    };
    let error = room
        .docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap_err();
    assert!(matches!(error, BackendError::Unusable(_)), "{error:?}");
}

#[tokio::test]
async fn many_started_at_once_are_all_there() {
    let Some(room) = room().await else { return };
    let specs: Vec<_> = (0..7)
        .map(|_| StartSpec {
            workspace_id: longshore_base::WorkspaceId::random(),
            ..room.spec()
        })
        .collect();
    let watch = Allow::default();
    let starts = specs.iter().map(|spec| room.docker.bring_up(spec, &watch));
    let started = futures_util::future::try_join_all(starts).await.unwrap();
    assert_eq!(room.containers().await.len(), 7);
    for one in started {
        fetch(&one.url, "env").await;
    }
}
