//! Who wins when two starts of one workspace meet, and what a dead one leaves behind.

use std::collections::{HashMap, HashSet};

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::future::join_all;
use longshore_backends::{Backend as _, BackendError, Docker, StopTarget, steps};
use longshore_base::brand;

use crate::room::{IMAGE, Room, fetch, room};
use crate::watches::{Allow, GiveUpAfter, StoppedAt};

#[tokio::test]
async fn an_older_generation_is_replaced() {
    let Some(room) = room().await else { return };
    let first = room
        .docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let spec = room.spec_of_generation(2);
    let second = room
        .docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap();
    assert_ne!(first.container_id, second.container_id);
    assert_eq!(room.containers().await, [second.container_id]);
    fetch(&second.url, "env").await;
}

#[tokio::test]
async fn a_dead_run_of_the_same_generation_is_replaced() {
    let Some(room) = room().await else { return };
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    // Without looking first: a first generation learns of it by the create's refusal.
    let again = room.spec();
    let second = room
        .docker
        .bring_up(&again, &Allow::default())
        .await
        .unwrap();
    assert_eq!(room.containers().await, [second.container_id]);
    assert_eq!(room.labels().await[brand::LABEL_RUN], again.run.to_string());
}

#[tokio::test]
async fn a_newer_generation_is_respected() {
    let Some(room) = room().await else { return };
    let spec = room.spec_of_generation(3);
    let newer = room
        .docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap();
    for stale in [1, 2] {
        let spec = room.spec_of_generation(stale);
        let error = room
            .docker
            .bring_up(&spec, &Allow::default())
            .await
            .unwrap_err();
        assert!(
            matches!(error, BackendError::StaleGeneration { ours, theirs: 3 } if ours == stale),
            "{error:?}"
        );
    }
    assert_eq!(room.containers().await, [newer.container_id]);
    fetch(&newer.url, "env").await;
}

/// Starts generation 2 in another process and answers its container.
async fn successor(room: &Room) -> String {
    let spec = room.spec_of_generation(2);
    let docker = room.another_process();
    docker
        .bring_up(&spec, &Allow::default())
        .await
        .unwrap()
        .container_id
}

#[tokio::test]
async fn a_run_stopped_between_remove_and_create_leaves_its_successor_alone() {
    let Some(room) = room().await else { return };
    let stopped = StoppedAt::new(steps::CREATE, "container", async {
        successor(&room).await;
    });
    let error = room
        .docker
        .bring_up(&room.spec(), &stopped)
        .await
        .unwrap_err();
    assert!(stopped.was_there());
    assert!(
        matches!(error, BackendError::StaleGeneration { ours: 1, theirs: 2 }),
        "{error:?}"
    );
    assert_eq!(room.containers().await.len(), 1);
    assert_eq!(room.generation().await, "2");
}

#[tokio::test]
async fn a_run_stopped_before_it_removes_leaves_its_successor_alone() {
    let Some(room) = room().await else { return };
    room.docker
        .bring_up(&room.spec_of_generation(0), &Allow::default())
        .await
        .unwrap();
    // It has seen generation 0 and is about to remove it.
    let stopped = StoppedAt::new(steps::CREATE, "removing the old container", async {
        successor(&room).await;
    });
    let error = room
        .docker
        .bring_up(&room.spec(), &stopped)
        .await
        .unwrap_err();
    assert!(stopped.was_there());
    assert!(
        matches!(error, BackendError::StaleGeneration { .. }),
        "{error:?}"
    );
    assert_eq!(room.containers().await.len(), 1);
    assert_eq!(room.generation().await, "2");
}

#[tokio::test]
async fn a_run_whose_container_was_taken_away_does_not_touch_its_successors() {
    for (step, message) in [(steps::CONFIGURE, ""), (steps::START, "")] {
        let Some(room) = room().await else { return };
        let stopped = StoppedAt::new(step, message, async {
            successor(&room).await;
        });
        room.docker
            .bring_up(&room.spec(), &stopped)
            .await
            .unwrap_err();
        assert!(stopped.was_there());
        assert_eq!(room.containers().await.len(), 1);
        assert_eq!(room.generation().await, "2");
        assert!(room.docker.is_running(room.id, None).await.unwrap());
    }
}

#[tokio::test]
async fn wherever_a_run_ends_its_successor_converges_to_one_container() {
    let Some(room) = room().await else { return };
    let mut ends = 0;
    for steps in 0.. {
        // Generations rise, so that each abandoned start also meets what the one before it left.
        let generation = 10 * i64::try_from(steps).unwrap() + 1;
        let spec = room.spec_of_generation(generation);
        let abandoned = room.docker.bring_up(&spec, &GiveUpAfter::new(steps)).await;
        let spec = room.spec_of_generation(generation + 1);
        let started = room
            .docker
            .bring_up(&spec, &Allow::default())
            .await
            .unwrap();
        assert_eq!(room.containers().await, [started.container_id.as_str()]);
        fetch(&started.url, "env").await;
        match abandoned {
            Err(BackendError::Abandoned(_)) => ends += 1,
            Ok(_) => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(ends >= 4, "only {ends} places to end at");
}

#[tokio::test]
async fn processes_that_make_the_network_at_once_make_one() {
    let Some(room) = room().await else { return };
    let processes: Vec<_> = (0..8).map(|_| room.another_process()).collect();
    let made = join_all(processes.iter().map(Docker::network_gateway)).await;
    let gateways: HashSet<_> = made.into_iter().map(Result::unwrap).collect();
    assert_eq!(gateways.len(), 1, "{gateways:?}");
    assert_eq!(room.networks().await, [room.config.network.as_str()]);
}

#[tokio::test]
async fn of_starts_that_run_at_once_the_newest_generation_stays() {
    let Some(room) = room().await else { return };
    // First with nothing there, then on top of what the first four left.
    for generations in [1..=4, 5..=8] {
        let processes: Vec<_> = generations
            .map(|generation| (room.another_process(), room.spec_of_generation(generation)))
            .collect();
        let watch = Allow::default();
        let starts = processes
            .iter()
            .map(|(docker, spec)| docker.bring_up(spec, &watch));
        let results = join_all(starts).await;
        let newest = results[3].as_ref().unwrap();
        assert_eq!(room.containers().await, [newest.container_id.as_str()]);
        let generation = processes[3].1.generation;
        assert_eq!(room.generation().await, generation.to_string());
        fetch(&newest.url, "env").await;
    }
}

/// Puts a container that is not ours under the workspace's name.
async fn stranger(room: &Room, labels: HashMap<String, String>) -> String {
    let name = room.id.container_name();
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(IMAGE.into()),
        labels: Some(labels),
        ..Default::default()
    };
    room.raw
        .create_container(Some(options), body)
        .await
        .unwrap()
        .id
}

#[tokio::test]
async fn what_is_not_ours_is_never_touched() {
    let Some(room) = room().await else { return };
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let ours = room.labels().await;
    room.docker
        .stop(&StopTarget::any_generation(room.id))
        .await
        .unwrap();
    let with = |label: &str, value: &str| {
        let mut labels = ours.clone();
        labels.insert(label.to_owned(), value.to_owned());
        labels
    };
    let elsewhere = with(brand::LABEL_ENGINE, "another");
    for (labels, stop_is_refused) in [
        (HashMap::new(), false),
        (with(brand::LABEL_INSTALLATION, "another"), false),
        (with(brand::LABEL_WORKSPACE, "another"), false),
        (elsewhere, true),
    ] {
        let id = stranger(&room, labels).await;
        for generation in [1, 5] {
            let spec = room.spec_of_generation(generation);
            let error = room
                .docker
                .bring_up(&spec, &Allow::default())
                .await
                .unwrap_err();
            assert!(matches!(error, BackendError::NameTaken { .. }), "{error:?}");
            assert!(error.to_string().contains(&id), "{error}");
        }
        let stopped = room.docker.stop(&StopTarget::any_generation(room.id)).await;
        assert_eq!(stopped.is_err(), stop_is_refused);
        assert_eq!(room.inspect().await.unwrap().id.unwrap(), id);
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        room.raw.remove_container(&id, Some(options)).await.unwrap();
    }
}

#[tokio::test]
async fn another_installations_volume_is_not_mounted() {
    let Some(room) = room().await else { return };
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    room.docker
        .stop(&StopTarget::any_generation(room.id))
        .await
        .unwrap();
    let Some(mut copy) = crate::room::room().await else {
        return;
    };
    copy.id = room.id;
    let error = copy
        .docker
        .bring_up(&copy.spec(), &Allow::default())
        .await
        .unwrap_err();
    assert!(matches!(error, BackendError::NameTaken { .. }), "{error:?}");
    assert_eq!(room.volumes().await.len(), 2);
}
