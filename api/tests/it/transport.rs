//! What every answer has, whoever asks for whatever.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::app::{CANVAS_ORIGIN, DEADLINE, Options, TestApp, expect, expect_error, until};
use crate::workspaces::write_engine_directly;

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer
        .headers()
        .get(name)
        .map(|value| value.to_str().unwrap())
        .unwrap_or_default()
}

#[tokio::test]
async fn every_answer_has_its_headers() {
    let app = TestApp::start().await;
    for (request, status) in [
        (app.get("/health"), 200),
        (app.get("/nowhere"), 404),
        (app.get("/workspaces"), 401),
        (app.get("/workspaces/x"), 400),
        (app.admin(Method::GET, "/workspaces"), 200),
        (app.admin(Method::HEAD, "/workspaces"), 200),
    ] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            (
                "strict-transport-security",
                "max-age=31536000; includeSubDomains",
            ),
            ("referrer-policy", "strict-origin-when-cross-origin"),
            (
                "permissions-policy",
                "camera=(), microphone=(), geolocation=()",
            ),
            ("content-security-policy", "default-src 'self'"),
            ("x-ratelimit-limit", "100000"),
        ] {
            assert_eq!(header(&answer, name), value, "{name} of {status}");
        }
        assert_eq!(header(&answer, "x-request-id").len(), 32);
        for name in [
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
            "ratelimit",
            "ratelimit-policy",
        ] {
            assert!(!header(&answer, name).is_empty(), "{name} of {status}");
        }
    }
}

#[tokio::test]
async fn a_listed_origin_may_read_and_another_may_not() {
    let app = TestApp::start().await;
    let preflight = async |origin: &str| {
        app.request(Method::OPTIONS, "/workspaces")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization")
            .send()
            .await
            .unwrap()
    };
    let answer = preflight(CANVAS_ORIGIN).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        header(&answer, "access-control-allow-origin"),
        CANVAS_ORIGIN
    );
    assert_eq!(header(&answer, "access-control-allow-credentials"), "true");
    assert_eq!(
        header(&answer, "access-control-allow-methods"),
        "GET, POST, PUT, PATCH, DELETE, OPTIONS"
    );
    for name in [
        "Authorization",
        "X-Workspace-ID",
        "Idempotency-Key",
        "Last-Event-ID",
        "traceparent",
    ] {
        assert!(header(&answer, "access-control-allow-headers").contains(name));
    }
    for origin in ["http://localhost:30000", "https://localhost:3000", "null"] {
        let answer = preflight(origin).await;
        assert_eq!(
            header(&answer, "access-control-allow-origin"),
            "",
            "{origin}"
        );
    }
    // Refusals too, or the canvas could not read why.
    let answer = app
        .get("/workspaces")
        .header("origin", CANVAS_ORIGIN)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        header(&answer, "access-control-allow-origin"),
        CANVAS_ORIGIN
    );
    assert!(header(&answer, "access-control-expose-headers").contains("Retry-After"));
    assert_eq!(header(&answer, "vary"), "Origin");
    assert_eq!(header(&answer, "www-authenticate"), "Bearer");
    // The credential decides, not the origin.
    let answer = app
        .admin(Method::GET, "/workspaces")
        .header("origin", "https://elsewhere.example")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(header(&answer, "access-control-allow-origin"), "");
}

fn limited(limit: u32) -> Options {
    let mut options = Options::default();
    options.api.rate_limit_per_minute = limit;
    options.api.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    options
}

#[tokio::test]
async fn requests_are_counted_by_credential_and_before_it_by_address() {
    let app = TestApp::with(limited(5)).await;
    let agent = app.insert_named("a").await;
    let status = async |token: Option<&str>, address: &str, path: &str| {
        let mut request = app.get(path).header("x-forwarded-for", address);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap().status().as_u16()
    };
    // Guessing is counted by address.
    for n in 0..5 {
        let guess = format!("guess-{n}");
        assert_eq!(status(Some(&guess), "1.1.1.1", "/workspaces").await, 401);
    }
    assert_eq!(status(Some("guess"), "1.1.1.1", "/workspaces").await, 429);
    assert_eq!(status(None, "1.1.1.1", "/nowhere").await, 429);
    assert_eq!(status(None, "1.1.1.2", "/nowhere").await, 404);
    // Probes get through.
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(status(None, "1.1.1.1", path).await, 200, "{path}");
    }
    // A good credential counts for itself, wherever it comes from.
    let own = format!("/workspaces/{}", agent.id);
    for n in 0..5 {
        let address = if n == 0 { "2.2.2.2" } else { "1.1.1.1" };
        assert_eq!(status(Some(&agent.token), address, &own).await, 200, "{n}");
    }
    assert_eq!(status(Some(&agent.token), "3.3.3.3", &own).await, 429);
    // Its uses were not charged to the address as well.
    for _ in 0..5 {
        assert_eq!(status(None, "2.2.2.2", "/nowhere").await, 404);
    }
    let answer = app
        .get("/workspaces")
        .header("x-forwarded-for", "2.2.2.2")
        .send()
        .await
        .unwrap();
    let wait: u64 = header(&answer, "retry-after").parse().unwrap();
    assert!((1..=60).contains(&wait));
    assert_eq!(header(&answer, "x-ratelimit-remaining"), "0");
    let body = expect(answer, StatusCode::TOO_MANY_REQUESTS).await;
    assert_eq!(body["error"], "rate limit exceeded");
    assert_eq!(body["retry_after"], wait);
}

#[tokio::test]
async fn a_fleet_behind_one_address_stays_online() {
    let app = TestApp::with(limited(3)).await;
    for n in 0..12 {
        let agent = app.insert_named(&format!("agent {n}")).await;
        for _ in 0..2 {
            let answer = app
                .post("/registry/heartbeat", &json!({ "workspace_id": agent.id }))
                .bearer_auth(&agent.token)
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), StatusCode::OK, "{n}");
        }
    }
    // One that beats too often is slowed down, alone.
    let agent = app.insert_named("eager").await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let answer = app
            .post("/registry/heartbeat", &json!({ "workspace_id": agent.id }))
            .bearer_auth(&agent.token)
            .send()
            .await
            .unwrap();
        statuses.push(answer.status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 429]);
}

#[tokio::test]
async fn only_proxies_of_ours_are_believed() {
    let app = TestApp::start().await;
    let send = async |app: &TestApp| {
        app.admin(Method::POST, "/workspaces")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "fleet.example")
            .header("x-request-id", "from-outside")
            .json(&json!({ "name": "a", "external": true }))
            .send()
            .await
            .unwrap()
    };
    let answer = send(&app).await;
    assert_ne!(header(&answer, "x-request-id"), "from-outside");
    let created = expect(answer, StatusCode::CREATED).await;
    assert_eq!(created["connection"]["platform_url"], app.address);

    let behind = TestApp::with(limited(100)).await;
    let answer = send(&behind).await;
    assert_eq!(header(&answer, "x-request-id"), "from-outside");
    let created = expect(answer, StatusCode::CREATED).await;
    assert_eq!(
        created["connection"]["platform_url"],
        "https://fleet.example"
    );
}

#[tokio::test]
async fn a_hosted_installation_answers_its_organisation_only() {
    let mut options = Options::default();
    options.api.org_id = Some("org-7".to_owned());
    let app = TestApp::with(options).await;
    let stranger = app.admin(Method::GET, "/workspaces").send().await.unwrap();
    assert_eq!(stranger.status(), StatusCode::NOT_FOUND);
    assert_eq!(stranger.text().await.unwrap(), "");
    for (name, value, status) in [
        ("x-longshore-org-id", "org-7", 200),
        ("x-longshore-org-id", "org-8", 404),
        ("fly-replay-src", "instance=x;region=y;state=org-7", 200),
        ("fly-replay-src", "state=org-77", 404),
    ] {
        let answer = app
            .admin(Method::GET, "/workspaces")
            .header(name, value)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status, "{name}: {value}");
    }
    for path in ["/health", "/livez", "/readyz"] {
        let answer = app.get(path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
    let answer = app.get("/cp/auth/me").send().await.unwrap();
    expect_error(answer, StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_the_server_leaves() {
    let mut options = Options::default();
    options.api.removal_wait = Duration::from_secs(1);
    let mut app = TestApp::with(options).await;
    let agent = app.insert_named("a").await;
    write_engine_directly(&app, agent.id).await;
    // A delete waits for its job, which nobody runs.
    let path = format!("/workspaces/{}", agent.id);
    let waiting = tokio::spawn(app.admin(Method::DELETE, &path).send());
    let started = Stopwatch::start();
    while app.count("jobs").await == 0 {
        assert!(started.elapsed() < DEADLINE);
    }
    app.shutdown.cancel();
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    drop(answer);
    let left = tokio::time::timeout(DEADLINE, &mut app.server).await;
    assert!(left.unwrap().unwrap().is_ok());
    let refused = app.get("/health").send().await;
    assert!(refused.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn one_client_may_send_anything_and_the_others_are_served() {
    let app = TestApp::start().await;
    let address = app.address.strip_prefix("http://").unwrap().to_owned();
    for rubbish in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /workspaces/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /workspaces HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(rubbish).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        // Refused or hung up on, whichever; but not left waiting.
        assert!(read.is_ok(), "{rubbish:?}");
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"), "{rubbish:?}");
    }
    assert_eq!(
        app.get("/health").send().await.unwrap().status(),
        StatusCode::OK
    );
}

/// A Redis server of one test; killed with this value.
struct RedisServer {
    child: Child,
    port: u16,
}

impl RedisServer {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("tests need redis-server in the PATH");
        Self { child, port }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.child.kill().expect("redis-server is our child");
        self.child.wait().expect("redis-server is our child");
    }
}

#[tokio::test]
async fn a_stopped_redis_slows_no_request() {
    let redis = RedisServer::start();
    let options = Options {
        redis_url: Some(format!("redis://127.0.0.1:{}", redis.port)),
        ..Options::default()
    };
    let app = TestApp::with(options).await;
    app.events_flow().await;
    let agent = app.insert_named("a").await;
    redis.signal(Signal::SIGSTOP);
    let mut took = Vec::new();
    for n in 0..100 {
        let started = Stopwatch::start();
        let request = match n % 3 {
            0 => app
                .admin(Method::POST, "/workspaces")
                .json(&json!({ "name": format!("w {n}") })),
            1 => app
                .post("/registry/heartbeat", &json!({ "workspace_id": agent.id }))
                .bearer_auth(&agent.token),
            _ => app.admin(Method::GET, "/workspaces"),
        };
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
        took.push(started.elapsed());
    }
    took.sort_unstable();
    let slow = took[98];
    assert!(slow <= Duration::from_millis(500), "{slow:?}");
    let named = || async {
        let answer = app.get("/readyz").send().await.unwrap();
        expect(answer, StatusCode::OK).await["degraded"].clone()
    };
    let started = Stopwatch::start();
    while !named().await.as_array().unwrap().contains(&json!("redis")) {
        assert!(started.elapsed() < DEADLINE, "nobody noticed");
    }
    redis.signal(Signal::SIGCONT);
    until("Redis to be used again", || app.bus.health().up).await;
}

#[tokio::test]
async fn clients_that_send_nothing_or_half_a_request_hold_no_shutdown() {
    let mut app = TestApp::start().await;
    let address = app.address.strip_prefix("http://").unwrap().to_owned();
    let mut held = Vec::new();
    for part in [&b""[..], b"GET /health HTTP/1.1\r\nHos"] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(part).await.unwrap();
        held.push(stream);
    }
    // An idle kept connection as well.
    assert!(
        app.get("/health")
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
    app.shutdown.cancel();
    let left = tokio::time::timeout(Duration::from_secs(3), &mut app.server).await;
    assert!(left.expect("the server leaves at once").unwrap().is_ok());
}
