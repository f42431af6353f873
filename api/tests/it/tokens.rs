//! Tokens of workspaces and of organisations: issued, used, listed, revoked, and how many there may be.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{ADMIN, Options, TestApp, expect, expect_error};

#[tokio::test]
async fn a_second_token_takes_over_before_the_first_is_revoked() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let path = format!("/workspaces/{}/tokens", agent.id);
    // Without a body, as the canvas sends it.
    let issued = app.admin(Method::POST, &path).send().await.unwrap();
    let issued = expect(issued, StatusCode::CREATED).await;
    let token = issued["auth_token"].as_str().unwrap();
    assert_eq!(token.len(), 43);
    assert_eq!(issued["workspace_id"], agent.id.to_string());
    assert_eq!(
        issued["message"],
        "Save this token now — it cannot be retrieved again."
    );
    let list = app.get(&path).bearer_auth(token).send().await.unwrap();
    let list = expect(list, StatusCode::OK).await;
    assert_eq!(list["count"], 2);
    let [new, old] = list["tokens"].as_array().unwrap().as_slice() else {
        panic!("{list}");
    };
    assert_eq!(new["prefix"], token[..8]);
    assert!(new["last_used_at"].is_string(), "{list}");
    assert_eq!(old["last_used_at"], Value::Null, "{list}");
    assert!(!list.to_string().contains(token));

    let one = format!("{path}/{}", old["id"].as_str().unwrap());
    let revoked = app.operate(Method::DELETE, &one, Value::Null).await;
    assert_eq!(revoked, json!({ "status": "revoked" }));
    let again = app.refusal(Method::DELETE, &one, Value::Null).await;
    assert_eq!(
        again,
        (404, "token not found or already revoked".to_owned())
    );
    let refused = app.get(&path).bearer_auth(&agent.token).send().await;
    expect(refused.unwrap(), StatusCode::UNAUTHORIZED).await;
    // Another workspace's token is not found under this one.
    let other = app.insert_named("b").await;
    let foreign = format!(
        "/workspaces/{}/tokens/{}",
        other.id,
        new["id"].as_str().unwrap()
    );
    let got = app.refusal(Method::DELETE, &foreign, Value::Null).await;
    assert_eq!(got.0, 404);
}

#[tokio::test]
async fn a_workspace_has_at_most_fifty_live_tokens_and_lists_them_in_parts() {
    let app = TestApp::start().await;
    let agent = app.insert_named("a").await;
    let path = format!("/workspaces/{}/tokens", agent.id);
    for _ in 1..50 {
        let answer = app.admin(Method::POST, &path).send().await.unwrap();
        expect(answer, StatusCode::CREATED).await;
    }
    let got = app.refusal(Method::POST, &path, json!({})).await;
    assert_eq!(
        got,
        (429, "maximum 50 active tokens per workspace".to_owned())
    );
    for (query, count) in [
        ("", 50),
        ("?limit=20", 20),
        ("?limit=20&offset=45", 5),
        // Out of range, or no number: as if it were not there.
        ("?limit=0", 50),
        ("?limit=many&offset=-1", 50),
    ] {
        let list = app
            .operate(Method::GET, &format!("{path}{query}"), Value::Null)
            .await;
        assert_eq!(list["count"], count, "{query}");
    }
}

#[tokio::test]
async fn an_organisation_token_is_minted_does_what_the_admin_does_and_is_revoked() {
    let app = TestApp::start().await;
    let minted = app
        .operate(Method::POST, "/org/tokens", json!({ "name": "ci" }))
        .await;
    let token = minted["auth_token"].as_str().unwrap().to_owned();
    assert_eq!(minted["name"], "ci");
    assert_eq!(minted["prefix"], token[..8]);
    assert_eq!(
        minted["warning"],
        "copy this token now; it will not be shown again"
    );
    let nameless = app.request(Method::POST, "/org/tokens").bearer_auth(&token);
    let nameless = expect(nameless.send().await.unwrap(), StatusCode::OK).await;
    assert!(nameless.get("name").is_none(), "{nameless}");

    let list = app.operate(Method::GET, "/org/tokens", Value::Null).await;
    assert_eq!(list["count"], 2);
    let [newest, first] = list["tokens"].as_array().unwrap().as_slice() else {
        panic!("{list}");
    };
    assert_eq!(
        newest["created_by"],
        format!("org-token:{}", &token[..8]),
        "{list}"
    );
    assert_eq!(first["created_by"], "admin-token");
    assert!(newest.get("last_used_at").is_none() && newest.get("org_id").is_none());
    assert!(first["last_used_at"].is_string());

    let one = format!("/org/tokens/{}", first["id"].as_str().unwrap());
    let revoked = app.operate(Method::DELETE, &one, Value::Null).await;
    assert_eq!(revoked, json!({ "revoked": first["id"] }));
    let again = app.refusal(Method::DELETE, &one, Value::Null).await;
    assert_eq!(
        again,
        (404, "token not found or already revoked".to_owned())
    );
    let refused = app.get("/org/tokens").bearer_auth(&token).send().await;
    expect(refused.unwrap(), StatusCode::UNAUTHORIZED).await;
    let long = json!({ "name": "é".repeat(101) });
    let got = app.refusal(Method::POST, "/org/tokens", long).await;
    assert_eq!(got, (400, "name too long (max 100 chars)".to_owned()));
}

#[tokio::test]
async fn one_address_mints_ten_organisation_tokens_an_hour() {
    let app = TestApp::start().await;
    let mint = || {
        app.post("/org/tokens", &json!({}))
            .bearer_auth(ADMIN)
            .send()
    };
    for _ in 0..10 {
        expect(mint().await.unwrap(), StatusCode::OK).await;
    }
    let refused = mint().await.unwrap();
    let body = expect(refused, StatusCode::TOO_MANY_REQUESTS).await;
    assert_eq!(body["error"], "rate limit exceeded");
    let after = body["retry_after"].as_u64().unwrap();
    assert!((3000..=3600).contains(&after), "{body}");
    assert_eq!(app.count("org_api_tokens").await, 10);
}

#[tokio::test]
async fn a_test_token_is_the_admins_and_only_where_it_is_open() {
    let mut options = Options::default();
    options.api.test_tokens = true;
    let app = TestApp::with(options).await;
    let agent = app.insert_named("a").await;
    let org = app.insert_org_token().await;
    let path = format!("/admin/workspaces/{}/test-token", agent.id);
    let nobody = app.get(&path).send().await.unwrap();
    assert_eq!(
        expect_error(nobody, StatusCode::UNAUTHORIZED).await,
        "admin auth required"
    );
    for bearer in [&org, &agent.token] {
        let refused = app.get(&path).bearer_auth(bearer).send().await.unwrap();
        assert_eq!(
            expect_error(refused, StatusCode::UNAUTHORIZED).await,
            "admin auth required"
        );
    }
    let answer = app.admin(Method::GET, &path).send().await.unwrap();
    let issued = expect(answer, StatusCode::OK).await;
    assert_eq!(issued["workspace_id"], json!(agent.id));
    let token = issued["auth_token"].as_str().unwrap();
    let own = format!("/workspaces/{}/tokens", agent.id);
    let listed = app.get(&own).bearer_auth(token).send().await.unwrap();
    assert_eq!(expect(listed, StatusCode::OK).await["count"], 2);
    let unknown = format!(
        "/admin/workspaces/{}/test-token",
        longshore_base::WorkspaceId::random()
    );
    let answer = app.admin(Method::GET, &unknown).send().await.unwrap();
    assert_eq!(
        expect_error(answer, StatusCode::NOT_FOUND).await,
        "workspace not found"
    );

    let head = app.admin(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::METHOD_NOT_ALLOWED);
    let listed = app.get(&own).bearer_auth(token).send().await.unwrap();
    assert_eq!(expect(listed, StatusCode::OK).await["count"], 2);

    // It has no more tokens than it may have through the other route.
    for _ in 2..50 {
        let answer = app.admin(Method::GET, &path).send().await.unwrap();
        expect(answer, StatusCode::OK).await;
    }
    let answer = app.admin(Method::GET, &path).send().await.unwrap();
    assert_eq!(
        expect_error(answer, StatusCode::TOO_MANY_REQUESTS).await,
        "maximum 50 active tokens per workspace"
    );

    let closed = TestApp::start().await;
    for (method, path) in [
        (Method::GET, path.as_str()),
        (Method::POST, &path),
        (Method::GET, "/admin/workspaces/none/test-token"),
    ] {
        let answer = closed.admin(method, path).send().await.unwrap();
        assert_eq!(
            expect_error(answer, StatusCode::NOT_FOUND).await,
            "not found"
        );
    }
}
