//! The fake of Severa's API keeps its word: what it lists, what it stores, what it refuses, how it fails.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/mod.rs"]
mod support;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant, SystemTime};
use support::severa::{Company, Fault, LastPage, Severa};

const ALL: &str = "users:read,customers:read,projects:read,settings:read,activities:read,activities:write,files:read,files:write";

const QUOTA: &str = "API calls quota exceeded! maximum admitted 10 per 1s.";

/// A company and somebody who has its token.
struct Caller {
    company: Company,
    url: String,
    token: String,
    http: Client,
}

impl Caller {
    async fn new(severa: &Severa) -> Self {
        Self::at(severa.company("id", "secret"), &severa.url()).await
    }

    async fn at(company: Company, url: &str) -> Self {
        let http = client();
        let body = json!({"client_id": company.client_id(), "client_secret": "secret", "scope": ALL});
        let answer = http.post(format!("{url}/v1/token")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let token = answer.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
        Self { company, url: url.to_owned(), token, http }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        request.bearer_auth(&self.token).header("Client_Id", self.company.client_id())
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    async fn list(&self, path: &str) -> Vec<Value> {
        let answer = self.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.unwrap()
    }

    async fn count(&self, path: &str) -> usize {
        self.list(path).await.len()
    }

    fn posting(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path).json(body)
    }

    async fn post(&self, path: &str, body: &Value) -> Response {
        self.posting(path, body).send().await.unwrap()
    }

    /// An activity that the schema allows.
    fn activity(&self, owner: &str) -> Value {
        json!({
            "name": "Re: offer", "notes": "text", "activityType": {"guid": self.company.activity_type("E-mail")},
            "ownerUser": {"guid": owner}, "isClosed": true,
            "startDateTime": "2025-01-15T10:30:00+02:00", "endDateTime": "2025-01-15T10:30:00+02:00",
        })
    }

    fn upload(&self, project: &str, body: &[u8]) -> RequestBuilder {
        let request = self.request(Method::POST, &format!("/v1/projects/{project}/files"));
        request.header("Content-Type", "multipart/related; boundary=\"b b\"").body(body.to_vec())
    }
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().timeout(Duration::from_secs(30)).build().unwrap()
}

fn severa() -> Severa {
    let severa = Severa::start();
    severa.set_rate_limit(None);
    severa
}

async fn kind(answer: Response) -> String {
    answer.json::<Value>().await.unwrap()["error"]["type"].as_str().unwrap().to_owned()
}

/// The only wrong so far.
#[track_caller]
fn assert_wrong(severa: &Severa, part: &str) {
    let wrongs = severa.wrongs();
    assert!(wrongs.len() == 1 && wrongs[0].contains(part), "{part}: {wrongs:#?}");
}

#[tokio::test]
async fn token_tells_life_and_scopes() {
    let severa = severa();
    let company = severa.company("id", "secret");
    company.grant(&["users:read", "files:read"]);
    company.token_life(100);
    let url = format!("{}/v1/token", severa.url());
    let ask = |secret, scope| {
        let body = json!({"client_id": "id", "client_secret": secret, "scope": scope});
        client().post(&url).json(&body).send()
    };
    let answer: Value = ask("secret", "users:read,activities:write").await.unwrap().json().await.unwrap();
    assert_eq!(answer["scope"], "users:read");
    assert_eq!(answer["access_token_expires_in"], 100);
    let expires = humantime::parse_rfc3339(answer["access_token_expires_utc"].as_str().unwrap()).unwrap();
    let left = expires.duration_since(SystemTime::now()).unwrap();
    assert!((90..=100).contains(&left.as_secs()), "{left:?}");
    let refused = ask("another", "users:read").await.unwrap();
    assert_eq!(
        (refused.status(), kind(refused).await.as_str()),
        (StatusCode::UNAUTHORIZED, "AuthenticationRequired")
    );
    severa.assert_nothing_wrong();
    assert_eq!(ask("secret", "users:read activities:write").await.unwrap().status(), 400);
    assert_wrong(&severa, "no such scope");
}

#[tokio::test]
async fn token_is_good_for_its_company_and_scopes_as_long_as_it_lives() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    assert_eq!(caller.get("/v1/users").await.status(), 200);
    severa.company("other", "secret");
    let foreign = caller.http.get(format!("{}/v1/users", caller.url)).bearer_auth(&caller.token);
    assert_eq!(foreign.header("Client_Id", "other").send().await.unwrap().status(), 401);
    caller.company.expire_tokens();
    let expired = caller.get("/v1/users").await;
    assert_eq!(
        (expired.status(), kind(expired).await.as_str()),
        (StatusCode::UNAUTHORIZED, "AuthenticationRequired")
    );
    caller.company.grant(&["users:read"]);
    let caller = Caller::at(caller.company, &severa.url()).await;
    assert_eq!(caller.get("/v1/users").await.status(), 200);
    let lacking = caller.get("/v1/projects").await;
    assert_eq!(
        (lacking.status(), kind(lacking).await.as_str()),
        (StatusCode::FORBIDDEN, "InsufficientApiScope")
    );
    caller.company.revoke_secret();
    assert_eq!(caller.get("/v1/users").await.status(), 401);
    caller.company.set_secret("secret");
    caller.company.token_life(0);
    let caller = Caller::at(caller.company, &severa.url()).await;
    assert_eq!(caller.get("/v1/users").await.status(), 401);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn what_the_schema_lacks_is_refused_and_a_wrong() {
    type Make = fn(&Caller, &str) -> RequestBuilder;
    fn changed(caller: &Caller, owner: &str, change: impl FnOnce(&mut Value)) -> RequestBuilder {
        let mut body = caller.activity(owner);
        change(&mut body);
        caller.posting("/v1/activities", &body)
    }
    let cases: &[(&str, u16, Make)] = &[
        ("no such method and path", 404, |c, _| c.request(Method::GET, "/v1/emails")),
        ("no such method and path", 404, |c, o| c.request(Method::DELETE, &format!("/v1/activities/{o}"))),
        ("no such query parameter: active", 400, |c, _| c.request(Method::GET, "/v1/users?active=true")),
        ("no such query parameter: isActive", 400, |c, _| {
            c.request(Method::GET, "/v1/contactpersons?isActive=true")
        }),
        ("no such query parameter: changedSince", 400, |c, _| {
            c.request(Method::GET, "/v1/salescases?changedSince=2025-01-15T10:30:00Z")
        }),
        ("numbers=x", 400, |c, _| c.request(Method::GET, "/v1/projects?numbers=x")),
        ("rowCount=9999999999", 400, |c, _| c.request(Method::GET, "/v1/projects?rowCount=9999999999")),
        ("isActive=1", 400, |c, _| c.request(Method::GET, "/v1/users?isActive=1")),
        ("changedSince=today", 400, |c, _| c.request(Method::GET, "/v1/users?changedSince=today")),
        ("changedSince=2025-01-15T10:30:00 02:00", 400, |c, _| {
            c.request(Method::GET, "/v1/users?changedSince=2025-01-15T10:30:00+02:00")
        }),
        ("query parameter twice: email", 400, |c, _| c.request(Method::GET, "/v1/users?email=a&email=b")),
        ("purpose=Owner", 400, |c, _| c.request(Method::GET, "/v1/users?purpose=Owner")),
        ("the fake does not know the filter hasHours", 400, |c, _| {
            c.request(Method::GET, "/v1/activities?hasHours=true")
        }),
        ("no header client_id", 401, |c, _| c.http.get(format!("{}/v1/users", c.url)).bearer_auth(&c.token)),
        ("no header authorization", 401, |c, _| {
            c.http.get(format!("{}/v1/users", c.url)).header("Client_Id", "id")
        }),
        ("a body where none belongs", 400, |c, _| c.request(Method::GET, "/v1/users").body("x")),
        ("'project' was unexpected", 400, |c, o| changed(c, o, |b| b["project"] = json!({"guid": "g"}))),
        ("'guid' was unexpected", 400, |c, o| changed(c, o, |b| b["guid"] = json!("g"))),
        ("'createdDateTime' was unexpected", 400, |c, o| {
            changed(c, o, |b| b["createdDateTime"] = json!("2025-01-15T10:30:00Z"))
        }),
        ("/ownerUser: ", 400, |c, o| changed(c, o, |b| b["ownerUser"]["name"] = json!("Anna"))),
        ("/phase: ", 400, |c, o| changed(c, o, |b| b["phase"] = json!({"guid": "g", "projectNumber": 1}))),
        ("\"name\" is a required property", 400, |c, o| {
            changed(c, o, |b| drop(b.as_object_mut().unwrap().remove("name")))
        }),
        ("/name: ", 400, |c, o| changed(c, o, |b| b["name"] = json!(""))),
        ("/name: null", 400, |c, o| changed(c, o, |b| b["name"] = Value::Null)),
        ("/isClosed: ", 400, |c, o| changed(c, o, |b| b["isClosed"] = json!("true"))),
        ("/startDateTime: ", 400, |c, o| changed(c, o, |b| b["startDateTime"] = json!("15 January"))),
        ("/type: ", 400, |c, o| {
            let body = json!({"activityGuid": "a", "participantGuid": o, "type": "External"});
            c.posting("/v1/activityparticipants", &body)
        }),
        ("'email' was unexpected", 400, |c, o| {
            c.posting(
                "/v1/activityparticipants",
                &json!({"activityGuid": "a", "participantGuid": o, "email": "a@b"}),
            )
        }),
        ("content type \"text/plain\"", 400, |c, o| {
            let body = c.activity(o).to_string();
            c.request(Method::POST, "/v1/activities").header("Content-Type", "text/plain").body(body)
        }),
        ("EOF while parsing", 400, |c, _| {
            c.request(Method::POST, "/v1/activities").header("Content-Type", "application/json").body("{")
        }),
    ];
    for (what, status, make) in cases {
        let severa = severa();
        let caller = Caller::new(&severa).await;
        let owner = caller.company.add_user("a@b.test", "A", "B");
        let answer = make(&caller, &owner).send().await.unwrap();
        assert_eq!(answer.status(), *status, "{what}");
        assert_wrong(&severa, what);
        assert_eq!(caller.company.activities().len(), 0, "{what}");
    }
}

#[tokio::test]
async fn null_is_taken_where_the_schema_has_it() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let owner = caller.company.add_user("a@b.test", "A", "B");
    let mut body = caller.activity(&owner);
    for field in ["customer", "phase", "notes", "endDateTime"] {
        body[field] = Value::Null;
    }
    assert_eq!(caller.post("/v1/activities", &body).await.status(), 201);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn pages_by_token() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let projects: Vec<_> = (1..=250).map(|number| caller.company.add_project(number, "p", None)).collect();
    for (last_page, tokens) in [
        (LastPage::Absent, vec![true, true, false]),
        (LastPage::Empty, vec![true, true, false]),
        (LastPage::Repeated, vec![true, true, true, true]),
    ] {
        caller.company.last_page(last_page);
        let (mut found, mut seen, mut token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let answer = caller.get(&format!("/v1/projects?rowCount=1000&pageToken={token}")).await;
            let next = answer.headers().get("NextPageToken").map(|next| next.to_str().unwrap().to_owned());
            assert_eq!(next.is_none(), last_page == LastPage::Absent && found.len() >= 150);
            let page: Vec<Value> = answer.json().await.unwrap();
            assert!(page.len() <= 100);
            found.extend(page.into_iter().map(|row| row["guid"].as_str().unwrap().to_owned()));
            let next = next.unwrap_or_default();
            seen.push(!next.is_empty());
            if next.is_empty() || next == token {
                break;
            }
            token = next;
        }
        assert_eq!(found, projects, "{last_page:?}");
        assert_eq!(seen, tokens, "{last_page:?}");
    }
    caller.company.last_page(LastPage::Absent);
    assert_eq!(caller.count("/v1/projects").await, 20);
    // Rows that come and go between two pages: what was there all the time is seen once.
    let first = caller.get("/v1/projects?rowCount=100").await;
    let token = first.headers()["NextPageToken"].to_str().unwrap().to_owned();
    caller.company.remove_project(&projects[0]);
    caller.company.add_project(251, "p", None);
    let second = caller.list(&format!("/v1/projects?rowCount=100&pageToken={token}")).await;
    assert_eq!(second[0]["guid"], json!(projects[100]));
    severa.assert_nothing_wrong();
    // Another list's token.
    assert_eq!(caller.get(&format!("/v1/users?rowCount=100&pageToken={token}")).await.status(), 400);
    assert_wrong(&severa, "is not of this list");
}

#[tokio::test]
async fn pages_by_row() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let customer = caller.company.add_customer("Acme");
    for number in 0..130 {
        caller.company.add_contact(&customer, "C", &number.to_string(), &["c@acme.test"]);
    }
    assert_eq!(caller.count("/v1/contactpersons").await, 20);
    assert_eq!(caller.count("/v1/contactpersons?rowCount=1000").await, 100);
    assert_eq!(caller.count("/v1/contactpersons?firstRow=100&rowCount=100").await, 30);
    assert_eq!(caller.count("/v1/contactcommunications?firstRow=130&rowCount=100").await, 0);
    caller.company.row_limit(50);
    assert_eq!(caller.list("/v1/contactpersons?firstRow=50&rowCount=100").await[0]["lastName"], "50");
    assert_eq!(caller.count("/v1/contactpersons?rowCount=100").await, 50);
    assert_eq!(caller.get("/v1/contactpersons?rowCount=0").await.status(), 400);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn filters_users_and_contacts() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let company = &caller.company;
    let anna = company.add_user("Anna@my.test", "Anna", "Aalto");
    let esa = company.add_user("esa@my.test", "Esa", "Eklund");
    company.set_user_active(&esa, false);
    assert_eq!(caller.list("/v1/users?isActive=true").await[0]["guid"], json!(anna));
    assert_eq!(caller.list("/v1/users?isActive=false").await[0]["guid"], json!(esa));
    assert_eq!(caller.count("/v1/users?email=anna%40my.test").await, 1);
    company.remove_user(&esa);
    assert_eq!(caller.count("/v1/users").await, 1);

    let acme = company.add_customer("Acme");
    let bo = company.add_contact(&acme, "Bo", "Berg", &["bo@acme.test", "b@acme.test"]);
    let dora = company.add_contact(&acme, "Dora", "Dahl", &["dora@acme.test"]);
    let found = caller.list("/v1/contactpersons?textToSearch=B%40ACME.test").await;
    assert_eq!(
        (found.len(), &found[0]["guid"], &found[0]["customer"]["guid"]),
        (1, &json!(bo), &json!(acme))
    );
    assert_eq!(found[0]["emails"], json!(["bo@acme.test", "b@acme.test"]));
    assert_eq!(caller.count("/v1/contactpersons?textToSearch=").await, 2);
    company.set_contact_active(&bo, false);
    assert_eq!(caller.count("/v1/contactpersons?active=true").await, 1);
    assert_eq!(caller.count("/v1/contactcommunications?active=true").await, 1);
    company.delete_contact(&dora);
    assert_eq!(caller.list("/v1/contactpersons?active=true").await[0]["isDeleted"], true);
    company.remove_contact(&dora);
    assert_eq!(caller.count("/v1/contactpersons?active=true").await, 0);
    let communications = caller.list("/v1/contactcommunications").await;
    assert_eq!(communications.len(), 2);
    assert_eq!(communications[1]["value"], "b@acme.test");
    assert_eq!(communications[1]["contact"]["guid"], json!(bo));
    assert_eq!(communications[1]["communicationType"]["type"], "EmailAddress");
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn changed_since() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let company = &caller.company;
    let acme = company.add_customer("Acme");
    let user = company.add_user("anna@my.test", "Anna", "Aalto");
    let contact = company.add_contact(&acme, "Bo", "Berg", &["bo@acme.test"]);
    let case = company.add_sales_case(1, "case", Some(&acme));
    company.clock_offset(1000);
    let since = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(900)).to_string();
    let counts = async || {
        let mut counts = Vec::new();
        for list in ["users", "contactpersons", "contactcommunications", "projects"] {
            counts.push(caller.count(&format!("/v1/{list}?changedSince={since}")).await);
        }
        counts
    };
    assert_eq!(counts().await, [0, 0, 0, 0]);
    company.add_address(&contact, "berg@acme.test", false);
    assert_eq!(counts().await, [0, 0, 1, 0]);
    company.add_address(&contact, "b@acme.test", true);
    assert_eq!(counts().await, [0, 1, 2, 0]);
    company.set_user_active(&user, false);
    company.win_case(&case);
    assert_eq!(counts().await, [1, 1, 2, 1]);
    // An offset, and equal.
    let row = &caller.list("/v1/projects").await[0];
    let stamp = humantime::parse_rfc3339(row["lastUpdatedDateTime"].as_str().unwrap()).unwrap();
    let local = humantime::format_rfc3339_millis(stamp + Duration::from_secs(7200))
        .to_string()
        .replace('Z', "%2B02:00");
    assert_eq!(caller.count(&format!("/v1/projects?changedSince={local}")).await, 1);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn projects_and_sales_cases() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let company = &caller.company;
    let acme = company.add_customer("Acme");
    let project = company.add_project(1001, "roll-out", Some(&acme));
    company.add_project(1002, "support", None);
    let case = company.add_sales_case(2001, "offer", Some(&acme));
    let found = caller.list("/v1/projects?numbers=1001&numbers=2001").await;
    assert_eq!((found.len(), &found[0]["guid"]), (1, &json!(project)));
    assert_eq!(found[0]["customer"]["guid"], json!(acme));
    let phase = company.root_phase(&project);
    let one: Value = caller.get(&format!("/v1/projects/{project}")).await.json().await.unwrap();
    assert_eq!(one["rootPhase"]["guid"], json!(phase));
    let found = caller.list("/v1/salescases?numbers=2001").await;
    assert_eq!((found.len(), &found[0]["guid"]), (1, &json!(case)));
    assert_eq!(caller.get(&format!("/v1/projects/{case}")).await.status(), 404);
    company.set_cases_are_projects(true);
    assert_eq!(caller.get(&format!("/v1/projects/{case}")).await.status(), 200);
    assert_eq!(caller.count("/v1/projects").await, 3);
    company.set_cases_are_projects(false);
    let before = company.root_phase(&case);
    company.win_case(&case);
    assert_ne!(company.root_phase(&case), before);
    assert_eq!(caller.count("/v1/salescases").await, 0);
    assert_eq!(caller.list("/v1/projects?numbers=2001").await[0]["guid"], json!(case));
    company.remove_project(&case);
    assert_eq!(caller.get(&format!("/v1/projects/{case}")).await.status(), 404);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn activities_are_stored_and_found() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let company = &caller.company;
    let (anna, esa) =
        (company.add_user("anna@my.test", "Anna", "A"), company.add_user("esa@my.test", "Esa", "E"));
    let acme = company.add_customer("Acme");
    let project = company.add_project(1001, "roll-out", Some(&acme));
    let other = company.add_activity_type("Other", true);
    company.add_activity_type("Old", false);
    assert_eq!(caller.count("/v1/activitytypes?active=true").await, 2);
    let mut body = caller.activity(&anna);
    body["customer"] = json!({"guid": acme});
    body["phase"] = json!({"guid": company.root_phase(&project)});
    let answer = caller.post("/v1/activities", &body).await;
    assert_eq!(answer.status(), 201);
    let made: Value = answer.json().await.unwrap();
    let guid = made["guid"].as_str().unwrap();
    assert_eq!(made["phase"]["projectGuid"], json!(project));
    let stored = &company.activities()[0];
    assert_eq!(stored["name"], "Re: offer");
    assert_eq!(stored["ownerUser"]["name"], "Anna A");
    assert_eq!(stored["customer"]["name"], "Acme");
    assert_eq!(stored["participants"], json!([]));
    assert_eq!(caller.get(&format!("/v1/activities/{guid}")).await.json::<Value>().await.unwrap(), made);

    let mut noise = caller.activity(&esa);
    noise["activityType"] = json!({"guid": other});
    company.add_activity(noise);
    let kind = company.activity_type("E-mail");
    for (query, count) in [
        (String::new(), 2),
        (format!("userGuids={anna}"), 1),
        (format!("userGuids={anna}&userGuids={esa}"), 2),
        (format!("userGuids={esa}&activityTypeGuids={kind}"), 0),
        (format!("activityTypeGuids={kind}&changedSince=2025-01-15T10:30:00Z"), 1),
        ("changedSince=2099-01-15T10:30:00Z".to_owned(), 0),
        (format!("customerGuids={acme}"), 1),
        (format!("projectGuids={project}&closed=true"), 1),
    ] {
        assert_eq!(caller.count(&format!("/v1/activities?{query}")).await, count, "{query}");
    }
    company.delete_activity(guid);
    assert_eq!(caller.get(&format!("/v1/activities/{guid}")).await.status(), 404);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn activities_of_unknown_things_are_refused() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let owner = caller.company.add_user("a@b.test", "A", "B");
    let case = caller.company.add_sales_case(1, "case", None);
    let old = caller.company.root_phase(&case);
    let mut body = caller.activity(&owner);
    body["phase"] = json!({"guid": old});
    assert_eq!(caller.post("/v1/activities", &body).await.status(), 201);
    caller.company.win_case(&case);
    for (field, value) in [
        ("ownerUser", json!({"guid": "nobody"})),
        ("activityType", json!({"guid": owner})),
        ("customer", json!({"guid": owner})),
        ("phase", json!({"guid": old})),
        ("phase", json!({"guid": case})),
        ("endDateTime", json!("2025-01-15T08:29:59Z")),
    ] {
        let mut body = caller.activity(&owner);
        body[field] = value;
        let answer = caller.post("/v1/activities", &body).await;
        assert_eq!(
            (answer.status(), kind(answer).await.as_str()),
            (StatusCode::BAD_REQUEST, "InvalidParameter"),
            "{field}"
        );
    }
    assert_eq!(caller.company.activities().len(), 1);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn participants() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let company = &caller.company;
    let user = company.add_user("anna@my.test", "Anna", "Aalto");
    let acme = company.add_customer("Acme");
    let contact = company.add_contact(&acme, "Bo", "Berg", &["bo@acme.test"]);
    let activity = company.add_activity(caller.activity(&user));
    let add = async |activity: &str, guid: &str, kind: &str| {
        let body = json!({"activityGuid": activity, "participantGuid": guid, "type": kind});
        caller.post("/v1/activityparticipants", &body).await.status().as_u16()
    };
    assert_eq!(add(&activity, &contact, "Contact").await, 201);
    assert_eq!(add(&activity, &user, "User").await, 201);
    assert_eq!(add(&activity, &user, "User").await, 201, "again: a test shall see it");
    assert_eq!(add(&activity, &user, "Contact").await, 400);
    assert_eq!(add(&activity, "nobody", "User").await, 400);
    assert_eq!(add("nothing", &user, "User").await, 404);
    company.unknown_participant(404);
    assert_eq!(add(&activity, "nobody", "User").await, 404);
    let listed = caller.list(&format!("/v1/activities/{activity}/activityparticipants")).await;
    assert_eq!(company.activities()[0]["participants"], json!(listed));
    let shown: Vec<_> =
        listed.iter().map(|p| [&p["type"], &p["email"]].map(|text| text.as_str().unwrap())).collect();
    assert_eq!(shown, [["Contact", "bo@acme.test"], ["User", "anna@my.test"], ["User", "anna@my.test"]]);
    assert_eq!(caller.get("/v1/activities/nothing/activityparticipants").await.status(), 404);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn files() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let company = &caller.company;
    let project = company.add_project(1001, "roll-out", None);
    let case = company.add_sales_case(1, "case", None);
    let bytes: Vec<u8> = (0..=255).cycle().take(300_149).chain(*b"\r\n--b \r\n").collect();
    let head = "--b b\r\nContent-Type: application/json\r\n\r\n{\"Name\":\"å.bin\",\"Description\":\"mark\"}\r\n\
                --b b\r\nContent-Type: image/x-odd\r\n\r\n";
    let body = [head.as_bytes(), &bytes, b"\r\n--b b--\r\n"].concat();
    let answer = caller.upload(&project, &body).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let made: Value = answer.json().await.unwrap();
    assert_eq!(made[0]["size"], bytes.len());
    let stored = &company.files(&project)[0];
    assert_eq!((stored.name.as_str(), stored.description.as_deref()), ("å.bin", Some("mark")));
    assert_eq!(stored.content_type, "image/x-odd");
    assert!(stored.bytes == bytes);
    assert_eq!(json!(caller.list(&format!("/v1/projects/{project}/files?rowCount=100")).await), made);
    assert_eq!(caller.count(&format!("/v1/projects/{project}/files?firstRow=1")).await, 0);
    assert_eq!(caller.upload("nothing", &body).send().await.unwrap().status(), 404);
    assert_eq!(caller.get("/v1/projects/nothing/files").await.status(), 404);
    assert_eq!(caller.upload(&case, &body).send().await.unwrap().status(), 201);
    company.set_files_of_cases(false);
    assert_eq!(caller.upload(&case, &body).send().await.unwrap().status(), 404);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn uploads_that_are_none() {
    let json = "Content-Type: application/json\r\n\r\n{\"Name\":\"n\"}";
    let cases = [
        ("the body does not begin with the boundary", "".to_owned()),
        ("a JSON part and the bytes belong to each file", format!("--b b\r\n{json}\r\n--b b--")),
        ("not application/json", format!("--b b\r\n\r\nx\r\n--b b\r\n{json}\r\n--b b--")),
        ("no Content-Type", format!("--b b\r\n{json}\r\n--b b\r\n\r\nx\r\n--b b--")),
        (
            "was unexpected",
            format!("--b b\r\n{}\r\n--b b\r\n{json}\r\n--b b--", json.replace("Name", "name")),
        ),
        ("no boundary after a part", format!("--b b\r\n{json}\r\n--b b\r\n{json}")),
    ];
    for (what, body) in cases {
        let severa = severa();
        let caller = Caller::new(&severa).await;
        let project = caller.company.add_project(1, "p", None);
        assert_eq!(caller.upload(&project, body.as_bytes()).send().await.unwrap().status(), 400, "{what}");
        assert_eq!(caller.company.files(&project), []);
        let wrongs = severa.wrongs();
        assert!(wrongs[0].contains(what), "{what}: {wrongs:?}");
    }
}

#[tokio::test]
async fn faults_lose_hold_and_lie() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let owner = caller.company.add_user("a@b.test", "A", "B");
    let body = caller.activity(&owner);
    let fault = |nth, fault| severa.fault("POST", "/v1/activities", nth, fault);
    let stored = || caller.company.activities().len();

    fault(2, Fault::LoseBefore);
    fault(3, Fault::LoseAfter);
    assert_eq!(caller.post("/v1/activities", &body).await.status(), 201);
    for expected in [1, 2] {
        let error = caller.posting("/v1/activities", &body).send().await.unwrap_err();
        assert!(error.is_request() && !error.is_timeout() && !error.is_connect(), "{error:?}");
        assert_eq!(stored(), expected);
    }
    let hasty = Duration::from_millis(50);
    let held = Duration::from_millis(200);
    for (strikes, at_once) in [(Fault::HoldBefore(held), 0), (Fault::HoldAfter(held), 1)] {
        let before = stored();
        fault(1, strikes.clone());
        let began = Instant::now();
        assert!(
            caller.posting("/v1/activities", &body).timeout(hasty).send().await.unwrap_err().is_timeout()
        );
        if began.elapsed() < held {
            assert_eq!(stored(), before + at_once, "{strikes:?}");
        }
        // Nobody waits for the answer any more, and it is done all the same.
        while stored() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(at_once == 1 || began.elapsed() >= held);
        fault(1, strikes);
        assert_eq!(caller.post("/v1/activities", &body).await.status(), 201);
    }
    let before = stored();
    let headers = vec![("Location", "/elsewhere".to_owned())];
    let text = "<html>".to_owned();
    fault(
        1,
        Fault::Answer {
            status: 502,
            content_type: "text/html",
            body: text.clone(),
            headers: headers.clone(),
        },
    );
    fault(1, Fault::AnswerAfter { status: 201, content_type: "text/html", body: text, headers });
    fault(1, Fault::TooMany { retry_after: Some(7) });
    fault(1, Fault::error(403, "OrganizationNotActive"));
    let answer = caller.post("/v1/activities", &body).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["Location"]),
        (502, &"/elsewhere".parse().unwrap())
    );
    assert_eq!(answer.text().await.unwrap(), "<html>");
    assert_eq!(stored(), before);
    assert_eq!(caller.post("/v1/activities", &body).await.text().await.unwrap(), "<html>");
    assert_eq!(stored(), before + 1);
    let answer = caller.post("/v1/activities", &body).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["Retry-After"]), (429, &"7".parse().unwrap()));
    assert_eq!(answer.text().await.unwrap(), QUOTA);
    let answer = caller.post("/v1/activities", &body).await;
    assert_eq!(
        (answer.status(), kind(answer).await.as_str()),
        (StatusCode::FORBIDDEN, "OrganizationNotActive")
    );
    assert_eq!((stored(), severa.faults_left()), (before + 1, 0));
    let lost = severa.calls().iter().filter(|call| call.status.is_none()).count();
    assert_eq!(lost, 4, "{:#?}", severa.calls());
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn faults_stop_until_released() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let owner = caller.company.add_user("a@b.test", "A", "B");
    let body = caller.activity(&owner);
    let stored = || caller.company.activities().len();
    let stopped = async || {
        while severa.stopped().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        severa.stopped().unwrap()
    };
    let mut expected = 0;
    for (acted, patient) in [(false, true), (true, true), (false, false), (true, false)] {
        severa.fault("POST", "/v1/activities", 1, Fault::Stop { acted });
        let call = tokio::spawn(caller.posting("/v1/activities", &body).send());
        let seen = stopped().await;
        assert_eq!((seen.template.as_str(), seen.status), ("/v1/activities", None));
        assert_eq!(stored(), expected + usize::from(acted));
        if patient {
            severa.release();
            assert_eq!(call.await.unwrap().unwrap().status(), 201);
        } else {
            call.abort();
            assert!(call.await.is_err());
            while severa.stopped().is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            severa.release();
            caller.get("/v1/users").await;
        }
        // What was not done when the client left is never done.
        expected += usize::from(acted || patient);
        assert_eq!(stored(), expected, "acted {acted}, patient {patient}");
        assert!(severa.stopped().is_none());
    }
}

#[tokio::test]
async fn faults_of_one_company() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let other = Caller::at(severa.company("other", "secret"), &severa.url()).await;
    caller.company.fault("GET", "/v1/users", 1, Fault::status(500));
    assert_eq!(other.get("/v1/users").await.status(), 200);
    assert_eq!(caller.get("/v1/users").await.status(), 500);
    caller.company.fault("POST", "/v1/token", 1, Fault::status(503));
    let body = json!({"client_id": "id", "client_secret": "secret"});
    let answer = caller.http.post(format!("{}/v1/token", severa.url())).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 503);
}

#[tokio::test]
async fn rate_limit_by_fixed_windows() {
    let severa = Severa::start();
    let caller = Caller::new(&severa).await;
    let other = Caller::at(severa.company("other", "secret"), &severa.url()).await;
    let began = Instant::now();
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(caller.get("/v1/users").await.status().as_u16());
    }
    if began.elapsed() < Duration::from_millis(800) {
        let good = statuses.iter().take_while(|status| **status == 200).count();
        assert_eq!(good, 9, "and the call for the token: {statuses:?}");
        assert_eq!(statuses[9..], [429, 429, 429]);
        assert_eq!(severa.most_calls_in_a_second("id"), 13);
    }
    assert_eq!(other.get("/v1/users").await.status(), 200);
    assert_eq!(severa.most_calls_in_a_second("other"), 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(caller.get("/v1/users").await.status(), 200);
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn down_and_up() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    caller.company.add_user("a@b.test", "A", "B");
    severa.fault("GET", "/v1/users", 1, Fault::Stop { acted: false });
    let call = tokio::spawn(caller.request(Method::GET, "/v1/users").send());
    while severa.stopped().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    severa.down();
    assert!(call.await.unwrap().unwrap_err().is_request(), "its connection was closed");
    assert!(caller.request(Method::GET, "/v1/users").send().await.unwrap_err().is_connect());
    severa.up();
    assert_eq!(caller.count("/v1/users").await, 1);
}

#[tokio::test]
async fn clock_is_the_companys() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    caller.company.clock_offset(-86_400);
    let answer = caller.get("/v1/activitytypes").await;
    let date = httpdate::parse_http_date(answer.headers()["Date"].to_str().unwrap()).unwrap();
    let behind = SystemTime::now().duration_since(date).unwrap().as_secs();
    assert!((86_399..86_410).contains(&behind), "{behind}");
    let user = caller.company.add_user("a@b.test", "A", "B");
    let made: Value = caller.post("/v1/activities", &caller.activity(&user)).await.json().await.unwrap();
    let created = humantime::parse_rfc3339(made["createdDateTime"].as_str().unwrap()).unwrap();
    assert!(SystemTime::now().duration_since(created).unwrap().as_secs() >= 86_399);
}

#[tokio::test]
async fn calls_are_told() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    caller.get("/v1/projects/x?").await;
    caller.get("/v1/users?email=a%40b.test").await;
    let calls: Vec<_> = severa
        .calls()
        .into_iter()
        .map(|call| {
            (call.method, call.path, call.template, call.query, call.client_id.unwrap(), call.status.unwrap())
        })
        .collect();
    let call = |method: &str, path: &str, template: &str, query: &str, status| {
        let [method, path, template, query] = [method, path, template, query].map(str::to_owned);
        (method, path, template, query, "id".to_owned(), status)
    };
    let expected = [
        call("POST", "/v1/token", "/v1/token", "", 200),
        call("GET", "/v1/projects/x", "/v1/projects/{guid}", "", 404),
        call("GET", "/v1/users", "/v1/users", "email=a%40b.test", 200),
    ];
    assert_eq!(calls, expected);
    assert_eq!(severa.count("GET", "/v1/projects/{guid}"), 1);
}

#[tokio::test]
async fn unknown_fields_of_a_later_version() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    caller.company.unknown_fields(true);
    assert!(caller.list("/v1/activitytypes").await[0]["comesLater"].is_object());
    severa.assert_nothing_wrong();
}

#[tokio::test]
async fn directory_file_fills_a_company() {
    let severa = severa();
    let caller = Caller::new(&severa).await;
    let company = &caller.company;
    company.from_directory_toml(include_str!("directory.toml"), "mycompany");
    let users = caller.list("/v1/users").await;
    assert_eq!((users.len(), &users[0]["guid"]), (3, &json!(company.guid("u-anna"))));
    assert_eq!(users[0]["email"], "anna@mycompany.test");
    assert_eq!(caller.count("/v1/contactpersons").await, 5);
    let project = &caller.list("/v1/projects?numbers=1001").await[0];
    assert_eq!(project["guid"], json!(company.guid("p-1001")));
    assert_eq!(project["customer"]["guid"], json!(company.guid("c-acme")));
    severa.assert_nothing_wrong();
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_prism() {
    let prism = tokio::task::spawn_blocking(|| severa().behind_prism()).await.unwrap();
    let company = prism.company("id", "secret");
    company.from_directory_toml(include_str!("directory.toml"), "mycompany");
    let caller = Caller::at(company, &prism.url()).await;
    let company = &caller.company;
    for list in
        ["users", "contactpersons", "contactcommunications", "projects", "salescases", "activitytypes"]
    {
        caller.list(&format!("/v1/{list}?rowCount=100")).await;
    }
    let page = caller.get("/v1/projects?rowCount=1&changedSince=2025-01-15T10:30:00Z").await;
    assert!(page.headers().contains_key("NextPageToken") && page.headers().contains_key("Date"));
    let (anna, project) = (company.guid("u-anna"), company.guid("p-1001"));
    assert_eq!(caller.count("/v1/projects?numbers=1001&numbers=1002").await, 2);
    assert_eq!(caller.get(&format!("/v1/projects/{project}")).await.status(), 200);
    assert_eq!(caller.get("/v1/projects/nothing").await.status(), 404);
    let mut body = caller.activity(&anna);
    body["customer"] = json!({"guid": company.guid("c-acme")});
    body["phase"] = json!({"guid": company.root_phase(&project)});
    let made: Value = caller.post("/v1/activities", &body).await.json().await.unwrap();
    let guid = made["guid"].as_str().unwrap();
    assert_eq!(caller.list("/v1/activities").await[0], made);
    let participant =
        json!({"activityGuid": guid, "participantGuid": company.guid("k-bo"), "type": "Contact"});
    assert_eq!(caller.post("/v1/activityparticipants", &participant).await.status(), 201);
    assert_eq!(caller.count(&format!("/v1/activities/{guid}/activityparticipants")).await, 1);
    body["activityType"] = json!({"guid": "nothing"});
    assert_eq!(caller.post("/v1/activities", &body).await.status(), 400);
    let bytes: Vec<u8> = (0..=255).cycle().take(300_149).collect();
    let head = "--b b\r\nContent-Type: application/json\r\n\r\n{\"Name\":\"n\"}\r\n--b b\r\nContent-Type: image/png\r\n\r\n";
    let upload = [head.as_bytes(), &bytes, b"\r\n--b b--\r\n"].concat();
    assert_eq!(caller.upload(&project, &upload).send().await.unwrap().status(), 201);
    assert!(company.files(&project)[0].bytes == bytes);
    assert_eq!(caller.count(&format!("/v1/projects/{project}/files")).await, 1);
    prism.set_rate_limit(Some(0));
    let many = caller.get("/v1/users").await;
    assert_eq!((many.status().as_u16(), many.text().await.unwrap().as_str()), (429, QUOTA));
    prism.set_rate_limit(None);
    company.expire_tokens();
    assert_eq!(caller.get("/v1/users").await.status(), 401);
    assert_eq!(prism.violations(), [""; 0]);
    prism.assert_nothing_wrong();
    assert!(prism.forwarded() > 15);

    // What it refuses, it refuses itself: nothing of it reaches the fake.
    let calls = prism.calls().len();
    let caller = Caller { token: caller.token.clone(), ..caller };
    let changed = |change: fn(&mut Value)| {
        let mut body = caller.activity(&anna);
        change(&mut body);
        caller.posting("/v1/activities", &body)
    };
    let refused = [
        caller.request(Method::GET, "/v1/emails"),
        caller.request(Method::GET, "/v1/users?isActive=1"),
        changed(|body| body["project"] = json!({"guid": "g"})),
        changed(|body| body["guid"] = json!("g")),
        changed(|body| body["ownerUser"]["name"] = json!("Anna")),
        changed(|body| body["startDateTime"] = json!("today")),
        changed(|body| drop(body.as_object_mut().unwrap().remove("name"))),
        caller.http.get(format!("{}/v1/users", caller.url)).bearer_auth(&caller.token),
    ];
    let mut found = 0;
    for request in refused {
        let status = request.send().await.unwrap().status();
        found += 1;
        assert_eq!((prism.violations().len(), prism.calls().len()), (found, calls), "{found}: {status}");
    }
    // It looks at each answer and each body: a schema that it can not compile it would skip.
    let caller = Caller::at(caller.company, &caller.url).await;
    let files = format!("/v1/projects/{project}/files");
    let bodies = [("/v1/token", 200), ("/v1/activities", 201), ("/v1/activityparticipants", 201)];
    let one = [("/v1/projects/{guid}", "/v1/projects/x"), ("/v1/activities/{guid}", "/v1/activities/x")];
    let lists = [
        "/v1/users",
        "/v1/contactpersons",
        "/v1/contactcommunications",
        "/v1/projects",
        "/v1/salescases",
        "/v1/activitytypes",
        "/v1/activities",
    ];
    let participants =
        ("/v1/activities/{activityGuid}/activityparticipants", "/v1/activities/x/activityparticipants");
    let lists = lists
        .map(|path| (path, path))
        .into_iter()
        .chain([participants, ("/v1/projects/{projectGuid}/files", files.as_str())]);
    let gets = lists.map(|of| (of, true)).chain(one.map(|of| (of, false)));
    let later = |many: bool| if many { json!([{"comesLater": 1}]) } else { json!({"comesLater": 1}) };
    let lie = |status, many| {
        let body = later(many).to_string();
        Fault::Answer { status, content_type: "application/json", body, headers: Vec::new() }
    };
    let violations = || prism.violations().len();
    for ((template, path), many) in gets {
        let before = violations();
        prism.fault("GET", template, 1, lie(200, many));
        caller.get(path).await;
        assert_eq!(violations(), before + 1, "answer of GET {template}");
    }
    for (path, status) in bodies {
        let before = violations();
        let body = match path {
            "/v1/token" => json!({"client_id": "id", "client_secret": "secret"}),
            "/v1/activities" => caller.activity(&anna),
            _ => json!({"activityGuid": "a", "participantGuid": anna}),
        };
        prism.fault("POST", path, 1, lie(status, false));
        caller.post(path, &body).await;
        assert_eq!(violations(), before + 1, "answer of POST {path}");
        let (mut body, calls) = (body, prism.calls().len());
        body["comesLater"] = json!(1);
        caller.post(path, &body).await;
        assert_eq!((violations(), prism.calls().len()), (before + 2, calls), "body of POST {path}");
    }
    prism.fault("GET", "/v1/users", 1, Fault::error(400, "NoSuchType"));
    let before = violations();
    caller.get("/v1/users").await;
    assert_eq!(violations(), before + 1, "an error");
}
