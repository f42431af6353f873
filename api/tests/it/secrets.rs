//! Secrets, model and provider: set, listed, read by their agent, deleted, and what is refused.

use longshore_base::WorkspaceId;
use longshore_fleet::status::WorkspaceStatus;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{ADMIN, Agent, TestApp, expect, expect_error};

impl TestApp {
    /// What a change answers, its job apart.
    async fn change(&self, method: Method, path: &str, body: Value) -> (Value, Option<String>) {
        let answer = self.admin(method, path).json(&body).send().await.unwrap();
        let location = answer.headers().get("location").cloned();
        let mut body = expect(answer, StatusCode::OK).await;
        let job = body.as_object_mut().unwrap().remove("job_id");
        let job = job.map(|job| job.as_str().unwrap().to_owned());
        let location = location.map(|location| location.to_str().unwrap().to_owned());
        assert_eq!(location, job.as_ref().map(|job| format!("/jobs/{job}")));
        (body, job)
    }

    async fn put(&self, path: &str, body: Value) -> Value {
        self.change(Method::PUT, path, body).await.0
    }

    async fn delete(&self, path: &str) -> Value {
        self.change(Method::DELETE, path, Value::Null).await.0
    }

    /// The arguments and the delay of waiting jobs of a kind, by workspace.
    async fn waiting(&self, kind: &str) -> Vec<Value> {
        let path = format!("/jobs?kind={kind}");
        let jobs = self.operate(Method::GET, &path, Value::Null).await;
        jobs["items"].as_array().unwrap().clone()
    }

    async fn values(&self, agent: &Agent) -> Value {
        let path = format!("/workspaces/{}/secrets/values", agent.id);
        let answer = self.get(&path).bearer_auth(&agent.token).send().await;
        expect(answer.unwrap(), StatusCode::OK).await
    }

    /// Names and scopes.
    async fn listed(&self, path: &str) -> Vec<(String, String)> {
        let list = self.operate(Method::GET, path, Value::Null).await;
        let text = |entry: &Value, member: &str| entry[member].as_str().unwrap().to_owned();
        let entries = list.as_array().unwrap().iter();
        entries
            .map(|entry| {
                assert_eq!(entry["has_value"], true, "{entry}");
                assert!(entry["created_at"].is_string() && entry["updated_at"].is_string());
                assert!(entry.get("value").is_none(), "{entry}");
                (text(entry, "key"), text(entry, "scope"))
            })
            .collect()
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(key, scope)| ((*key).to_owned(), (*scope).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_workspaces_own_secret_takes_the_place_of_a_global_one() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let path = format!("/workspaces/{}/secrets", agent.id);
    let saved = app
        .put(
            "/settings/secrets",
            json!({ "key": "SHARED", "value": "for-all" }),
        )
        .await;
    assert_eq!(
        saved,
        json!({ "status": "saved", "key": "SHARED", "scope": "global" })
    );
    let admin = app.post(
        "/admin/secrets",
        &json!({ "key": "ANOTHER", "value": "too" }),
    );
    let admin = admin.bearer_auth(ADMIN).send().await.unwrap();
    expect(admin, StatusCode::OK).await;
    // The agent may set its own.
    let own = app.post(&path, &json!({ "key": "OWN", "value": "mine" }));
    let own = own.bearer_auth(&agent.token).send().await.unwrap();
    let own = expect(own, StatusCode::OK).await;
    assert_eq!(
        (&own["status"], &own["key"]),
        (&json!("saved"), &json!("OWN"))
    );
    assert_eq!(
        app.values(&agent).await,
        json!({ "ANOTHER": "too", "OWN": "mine", "SHARED": "for-all" })
    );
    assert_eq!(
        app.listed(&path).await,
        pairs(&[
            ("OWN", "workspace"),
            ("ANOTHER", "global"),
            ("SHARED", "global")
        ])
    );

    app.put(&path, json!({ "key": "SHARED", "value": "over it" }))
        .await;
    assert_eq!(app.values(&agent).await["SHARED"], "over it");
    assert_eq!(
        app.listed(&path).await,
        pairs(&[
            ("OWN", "workspace"),
            ("SHARED", "workspace"),
            ("ANOTHER", "global")
        ])
    );
    for path in ["/settings/secrets", "/admin/secrets"] {
        assert_eq!(
            app.listed(path).await,
            pairs(&[("ANOTHER", "global"), ("SHARED", "global")])
        );
    }

    let one = format!("{path}/SHARED");
    let deleted = app.delete(&one).await;
    assert_eq!(deleted, json!({ "status": "deleted", "key": "SHARED" }));
    assert_eq!(app.values(&agent).await["SHARED"], "for-all");
    let again = app.refusal(Method::DELETE, &one, Value::Null).await;
    assert_eq!(again, (404, "secret not found".to_owned()));
    let deleted = app.delete("/settings/secrets/SHARED").await;
    assert_eq!(
        deleted,
        json!({ "status": "deleted", "key": "SHARED", "scope": "global" })
    );
    app.delete("/admin/secrets/ANOTHER").await;
    assert_eq!(app.values(&agent).await, json!({ "OWN": "mine" }));
}

#[tokio::test]
async fn names_of_the_identity_and_incomplete_secrets_are_refused() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let own = format!("/workspaces/{}/secrets", agent.id);
    for path in [own.as_str(), "/settings/secrets"] {
        for (body, detail) in [
            (
                json!({ "key": "PLATFORM_URL", "value": "v" }),
                "secret name PLATFORM_URL is reserved",
            ),
            (
                json!({ "key": "A=B", "value": "v" }),
                "secret names must be non-empty",
            ),
            (
                json!({ "key": "", "value": "v" }),
                "key and value are required",
            ),
            (
                json!({ "key": "K", "value": "" }),
                "key and value are required",
            ),
            (json!({ "key": "K" }), "missing field"),
            (json!({ "key": "K", "value": 1 }), "value: invalid type"),
        ] {
            for method in [Method::POST, Method::PUT] {
                let answer = app.admin(method, path).json(&body).send().await.unwrap();
                let answer = expect(answer, StatusCode::BAD_REQUEST).await;
                assert_eq!(answer["error"], "invalid request body", "{body}");
                let told = answer["detail"].as_str().unwrap();
                assert!(told.contains(detail), "{told}");
            }
        }
    }
    assert_eq!(app.count("workspace_secrets").await, 0);
    assert_eq!(app.count("global_secrets").await, 0);

    let nobody = WorkspaceId::random();
    app.set_status(agent.id, WorkspaceStatus::Removed).await;
    for (id, refused) in [
        (nobody, (404, "workspace not found".to_owned())),
        (agent.id, (410, "workspace removed".to_owned())),
    ] {
        let path = format!("/workspaces/{id}/secrets");
        let secret = json!({ "key": "K", "value": "v" });
        for method in [Method::GET, Method::POST, Method::PUT] {
            let got = app.refusal(method, &path, secret.clone()).await;
            assert_eq!(got, refused);
        }
        let got = app
            .refusal(Method::DELETE, &format!("{path}/K"), Value::Null)
            .await;
        assert_eq!(got, refused);
        let path = format!("/workspaces/{id}/model");
        let got = app
            .refusal(Method::PUT, &path, json!({ "model": "m" }))
            .await;
        assert_eq!(got, refused);
    }
}

#[tokio::test]
async fn one_secret_that_does_not_open_withholds_all_values() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let path = format!("/workspaces/{}/secrets", agent.id);
    app.put(&path, json!({ "key": "GOOD", "value": "readable-value" }))
        .await;
    app.put(&path, json!({ "key": "BAD", "value": "v" })).await;
    app.put("/settings/secrets", json!({ "key": "WORSE", "value": "v" }))
        .await;
    for table in ["workspace_secrets WHERE key = 'BAD'", "global_secrets"] {
        let (table, only) = table.split_once(" WHERE ").unwrap_or((table, "true"));
        let sql = format!("UPDATE {table} SET encrypted_value = '\\x00'::bytea WHERE {only}");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(app.database.pool())
            .await
            .unwrap();
    }
    let answer = app
        .get(&format!("{path}/values"))
        .bearer_auth(&agent.token)
        .send()
        .await
        .unwrap();
    let answer = expect(answer, StatusCode::INTERNAL_SERVER_ERROR).await;
    assert_eq!(
        answer["error"],
        "one or more secrets failed to decrypt; refusing to return partial bundle"
    );
    assert_eq!(
        answer["failed_keys"],
        json!(["global:WORSE", "workspace:BAD"])
    );
    assert!(!answer.to_string().contains("readable-value"));
}

#[tokio::test]
async fn a_secret_sent_again_with_its_key_is_set_once() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let path = format!("/workspaces/{}/secrets", agent.id);
    let send = |value: &str| {
        app.admin(Method::POST, &path)
            .header("Idempotency-Key", "\"once\"")
            .json(&json!({ "key": "K", "value": value }))
            .send()
    };
    expect(send("first").await.unwrap(), StatusCode::OK).await;
    app.put(&path, json!({ "key": "K", "value": "second" }))
        .await;
    let replay = send("first").await.unwrap();
    assert_eq!(replay.headers()["idempotent-replayed"], "true");
    assert_eq!(app.values(&agent).await, json!({ "K": "second" }));
    let other = send("third").await.unwrap();
    expect_error(other, StatusCode::UNPROCESSABLE_ENTITY).await;
}

#[tokio::test]
async fn the_provider_follows_the_model_until_somebody_chooses_it() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let (model, provider) = (
        format!("/workspaces/{}/model", agent.id),
        format!("/workspaces/{}/provider", agent.id),
    );
    let none = app.operate(Method::GET, &model, Value::Null).await;
    assert_eq!(none, json!({ "model": "", "source": "default" }));
    let none = app.operate(Method::GET, &provider, Value::Null).await;
    assert_eq!(none, json!({ "provider": "", "source": "default" }));

    for (slug, stored) in [
        ("minimax/MiniMax-M2", Some("minimax")),
        ("unknown/x", None),
        ("openai/gpt-4o", Some("openrouter")),
        ("MiniMax-M2", None),
        ("grok/4", Some("xai")),
    ] {
        let saved = app.put(&model, json!({ "model": slug })).await;
        assert_eq!(saved, json!({ "status": "saved", "model": slug }));
        let got = app.operate(Method::GET, &model, Value::Null).await;
        assert_eq!(got, json!({ "model": slug, "source": "workspace_secrets" }));
        let got = app.operate(Method::GET, &provider, Value::Null).await;
        assert_eq!(got["provider"], stored.unwrap_or_default(), "{slug}");
    }
    let saved = app.put(&provider, json!({ "provider": "custom" })).await;
    assert_eq!(saved, json!({ "status": "saved", "provider": "custom" }));
    app.put(&model, json!({ "model": "gemini/pro" })).await;
    assert_eq!(
        app.values(&agent).await,
        json!({ "MODEL_PROVIDER": "gemini/pro", "LLM_PROVIDER": "custom" })
    );
    let cleared = app.put(&provider, json!({ "provider": "" })).await;
    assert_eq!(cleared, json!({ "status": "cleared" }));
    app.put(&model, json!({ "model": "zai/glm" })).await;
    assert_eq!(app.values(&agent).await["LLM_PROVIDER"], "zai");
    let cleared = app.put(&model, json!({ "model": "" })).await;
    assert_eq!(cleared, json!({ "status": "cleared" }));
    assert_eq!(app.values(&agent).await, json!({}));

    for (path, body, text) in [
        (
            &model,
            json!({ "model": "é".repeat(101) }),
            "model must be at most 100 characters",
        ),
        (
            &model,
            json!({ "model": "a\nb" }),
            "model must not contain newline characters",
        ),
        (
            &provider,
            json!({ "provider": "a\rb" }),
            "provider must not contain newline characters",
        ),
        (&model, json!({}), "invalid request body"),
    ] {
        let got = app.refusal(Method::PUT, path, body).await;
        assert_eq!(got, (400, text.to_owned()));
    }
}

#[tokio::test]
async fn a_change_restarts_the_workspace_and_many_changes_do_so_once() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    app.set_status(agent.id, WorkspaceStatus::Online).await;
    let at = |part: &str| format!("/workspaces/{}/{part}", agent.id);
    let secret = json!({ "key": "K", "value": "v" });
    let model = json!({ "model": "minimax/M2" });
    let provider = json!({ "provider": "custom" });
    let mut jobs = std::collections::BTreeSet::new();
    for (method, path, body) in [
        (Method::PUT, at("secrets"), secret.clone()),
        (Method::POST, at("secrets"), secret.clone()),
        (Method::DELETE, at("secrets/K"), Value::Null),
        (Method::PUT, at("model"), model),
        (Method::PUT, at("provider"), provider),
    ] {
        let (_, job) = app.change(method, &path, body).await;
        jobs.insert(job.unwrap());
    }
    assert_eq!(jobs.len(), 1, "they are added to the one that waits");
    let waiting = app.waiting("restart").await;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0]["args"]["source"], "provider");

    // Who is not restarted gets it with the next start.
    for status in [WorkspaceStatus::Paused, WorkspaceStatus::Hibernated] {
        let other = app.insert_named("other").await;
        app.set_status(other.id, status).await;
        let path = format!("/workspaces/{}/secrets", other.id);
        let (body, job) = app.change(Method::PUT, &path, secret.clone()).await;
        assert_eq!((body["status"].as_str(), job), (Some("saved"), None));
    }
    assert_eq!(app.waiting("restart").await.len(), 1);
}

#[tokio::test]
async fn a_global_secret_is_spread_by_a_job_of_its_own() {
    let app = TestApp::start().await;
    let path = "/settings/secrets";
    let secret = json!({ "key": "SHARED", "value": "v" });
    let (_, first) = app.change(Method::PUT, path, secret.clone()).await;
    let (_, second) = app.change(Method::POST, path, secret).await;
    assert!(first.is_some());
    assert_eq!(first, second, "one that waits spreads the newest value");
    let other = json!({ "key": "OTHER", "value": "v" });
    let (_, other) = app.change(Method::PUT, path, other).await;
    assert_ne!(first, other);
    let waiting = app.waiting("secret-fanout").await;
    let keys: Vec<_> = waiting.iter().map(|job| &job["args"]).collect();
    assert_eq!(
        keys,
        [&json!({ "key": "OTHER" }), &json!({ "key": "SHARED" })]
    );
}

#[tokio::test]
async fn the_dependents_of_a_secret_are_those_that_its_change_restarts() {
    let app = TestApp::start().await;
    let without = app.insert_named("without").await;
    let with_own = app.insert_named("with-own").await;
    let paused = app.insert_named("paused").await;
    let own = format!("/workspaces/{}/secrets", with_own.id);
    let body = json!({ "key": "K", "value": "v" });
    app.operate(Method::PUT, &own, body).await;
    app.set_status(paused.id, WorkspaceStatus::Paused).await;
    let dependents = async |path: &str| {
        let answer = app.operate(Method::GET, path, Value::Null).await;
        answer["dependents"].clone()
    };
    assert_eq!(
        dependents("/settings/secrets/K/dependents").await,
        json!([without.id])
    );
    let of = |id| format!("/workspaces/{id}/secrets/K/dependents");
    assert_eq!(dependents(&of(with_own.id)).await, json!([with_own.id]));
    assert_eq!(dependents(&of(paused.id)).await, json!([]));
    let body = json!({ "provider": "minimax", "key": "k" });
    let validity = app.operate(Method::POST, "/secrets/validate", body).await;
    assert_eq!(
        validity,
        json!({ "valid": false, "error": "validation is not available for this provider" })
    );
}
