//! Settings at start: what does not parse refuses, in one sentence, without showing secrets.

use crate::process::{longshore, run};

const KEY: &str = "01234567890123456789012345678901";
const TOKEN: &str = "a-token-of-enough-characters";

/// Runs a server command that must refuse to start because of its settings; answers the sentence.
fn refusal(command: &str, settings: &[(&str, &str)]) -> String {
    let (code, out, err) = run(longshore().arg(command).envs(settings.iter().copied()));
    assert_eq!(code, Some(2), "{out}{err}");
    assert_eq!(out, "");
    err
}

#[test]
fn an_api_does_not_start_without_an_admin_token_or_a_sealing_key() {
    let err = refusal("api", &[("SECRETS_ENCRYPTION_KEY", KEY)]);
    assert!(err.starts_with("longshore: ADMIN_TOKEN: not set"), "{err}");
    let err = refusal("api", &[("ADMIN_TOKEN", TOKEN)]);
    assert!(
        err.starts_with("longshore: SECRETS_ENCRYPTION_KEY: not set"),
        "{err}"
    );
    let err = refusal("worker", &[]);
    assert!(
        err.starts_with("longshore: SECRETS_ENCRYPTION_KEY: not set"),
        "{err}"
    );
    // The production environment changes nothing of that, and an empty variable is an unset one.
    let err = refusal(
        "api",
        &[
            ("SECRETS_ENCRYPTION_KEY", KEY),
            ("ADMIN_TOKEN", ""),
            ("LONGSHORE_ENV", "production"),
        ],
    );
    assert!(err.starts_with("longshore: ADMIN_TOKEN: not set"), "{err}");
}

#[test]
fn a_liveness_ttl_shorter_than_beats_are_stored_is_refused_where_no_test_wants_it() {
    let name = "LONGSHORE_LIVENESS_TTL_SECONDS";
    let with = |seconds| {
        refusal(
            "api",
            &[
                (name, seconds),
                ("ADMIN_TOKEN", TOKEN),
                ("SECRETS_ENCRYPTION_KEY", KEY),
                ("REDIS_URL", "nonsense"),
            ],
        )
    };
    let (short, enough) = (with("29"), with("30"));
    let refused = short.contains("must be 30 or more");
    assert_eq!(refused, cfg!(not(feature = "failpoints")), "{short}");
    assert!(enough.contains("REDIS_URL"), "{enough}");
}

#[test]
fn a_setting_that_does_not_parse_is_named_and_a_secret_one_is_not_shown() {
    for (name, value) in [
        ("LONGSHORE_MAX_TIER", "9"),
        ("RATE_LIMIT", "0"),
        ("LONGSHORE_LIVENESS_TTL_SECONDS", "soon"),
        ("TRUSTED_PROXIES", "proxy"),
        ("PLATFORM_URL", "localhost:8080"),
        ("LONGSHORE_IN_DOCKER", "maybe"),
        ("LONGSHORE_LISTEN", "somewhere"),
        ("LONGSHORE_LOG_FORMAT", "xml"),
        ("LONGSHORE_LOG", "info,,=,"),
        ("LONGSHORE_ENV", "devel"),
    ] {
        let err = refusal(
            "api",
            &[
                (name, value),
                ("ADMIN_TOKEN", TOKEN),
                ("SECRETS_ENCRYPTION_KEY", KEY),
            ],
        );
        let flag = name
            .trim_start_matches("LONGSHORE_")
            .trim_end_matches("_SECONDS")
            .to_lowercase()
            .replace('_', "-");
        assert!(
            err.contains(name) || err.contains(&flag),
            "{name} is not named: {err}"
        );
    }
    let err = refusal(
        "migrate",
        &[("DATABASE_URL", "mysql://me:hunter2-hunter2@host/db")],
    );
    assert!(err.contains("DATABASE_URL"), "{err}");
    assert!(!err.contains("hunter2"), "{err}");
}

#[test]
fn a_url_of_redis_that_is_none_is_refused_before_anything_is_connected_to() {
    for (url, right) in [
        ("redis://me:hunter2-hunter2@host:port", "redis://"),
        (
            "redis+sentinel://me:hunter2-hunter2@host:1,host:2",
            "master-name",
        ),
    ] {
        for command in ["api", "worker", "up"] {
            let err = refusal(
                command,
                &[
                    ("REDIS_URL", url),
                    ("ADMIN_TOKEN", TOKEN),
                    ("SECRETS_ENCRYPTION_KEY", KEY),
                ],
            );
            assert!(
                err.starts_with("longshore: REDIS_URL: must be redis"),
                "{err}"
            );
            assert!(err.contains(right), "{err}");
            assert!(!err.contains("hunter2"), "{err}");
        }
    }
}

#[test]
fn what_a_control_plane_is_called_with_is_checked_before_anything_is_connected_to() {
    let hidden = "hunter2-hunter2\u{e4}";
    for (name, value) in [
        ("LONGSHORE_ORG_ID", "two words"),
        ("CP_PROVISION_URL", "cp.example"),
        ("CP_PROVISION_URL", "http://me:hunter2-hunter2@cp.example"),
        ("LONGSHORE_CP_URL", "http://cp.example/?x=hunter2-hunter2"),
        ("LONGSHORE_CP_SHARED_SECRET", hidden),
        ("PROVISION_SHARED_SECRET", hidden),
        ("CP_ADMIN_API_TOKEN", hidden),
        ("PROVISION_CONCURRENCY_REMOTE", "6"),
    ] {
        for command in ["api", "worker", "up"] {
            let settings = [
                (name, value),
                ("ADMIN_TOKEN", TOKEN),
                ("SECRETS_ENCRYPTION_KEY", KEY),
            ];
            let err = refusal(command, &settings);
            let flag = name
                .trim_start_matches("LONGSHORE_")
                .trim_end_matches("_URL")
                .to_lowercase()
                .replace('_', "-");
            assert!(
                err.contains(name) || err.contains(&flag) || err.contains("provision-concurrency"),
                "{name} is not named: {err}"
            );
            assert!(!err.contains("hunter2"), "{err}");
        }
    }
}

#[test]
fn values_in_force_are_logged_without_secrets() {
    let (code, _, err) = run(longshore()
        .arg("migrate")
        .env("LONGSHORE_LOG", "debug")
        .env("LONGSHORE_DATABASE_CONNECTIONS", "7")
        .env(
            "DATABASE_URL",
            "postgres://me:hunter2-hunter2@127.0.0.1:1/db",
        ));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("LONGSHORE_DATABASE_CONNECTIONS"), "{err}");
    assert!(err.contains("nothing listens at 127.0.0.1:1"), "{err}");
    assert!(!err.contains("hunter2"), "{err}");
}

#[test]
fn the_reference_names_every_setting_with_its_default() {
    let (code, out, _) = run(longshore().args(["config", "--json"]));
    assert_eq!(code, Some(0));
    let settings: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    let find = |name: &str| {
        settings
            .iter()
            .find(|setting| setting["env"] == name)
            .unwrap_or_else(|| panic!("{name} is not in the reference"))
    };
    assert_eq!(find("LONGSHORE_MAX_TIER")["default"], "2");
    assert_eq!(find("ADMIN_TOKEN")["secret"], true);
    assert_eq!(
        find("LONGSHORE_DATA")["commands"],
        serde_json::json!(["up"])
    );
    assert_eq!(
        find("DATABASE_URL")["commands"].as_array().unwrap().len(),
        4
    );

    let (code, page, _) = run(longshore().args(["config", "--markdown"]));
    assert_eq!(code, Some(0));
    for setting in &settings {
        let env = setting["env"].as_str().unwrap();
        assert!(
            page.contains(&format!("`{env}`")),
            "{env} is not in the page"
        );
    }
}

#[test]
fn a_value_in_the_environment_does_not_change_the_reference() {
    let (_, plain, _) = run(longshore().args(["config", "--markdown"]));
    let (_, set, _) = run(longshore()
        .args(["config", "--markdown"])
        .env("LONGSHORE_MAX_TIER", "4")
        .env("ADMIN_TOKEN", TOKEN));
    assert_eq!(plain, set);
}
