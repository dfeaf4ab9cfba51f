//! What the server takes and answers is what the OpenAPI document says.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

#[allow(dead_code, reason = "other tests use the rest")]
mod fake;

use std::collections::HashSet;

use fake::{FakeVmm, Setup, body, status};
use pollux_api::openapi::document;
use pollux_api::problem::{MEDIA_TYPE, Problem};
use pollux_api::routes::{Body, Method, Route};
use serde_json::{Value, json};

/// The document, and what its schemas say of values. Stricter than JSON Schema: what an object has must be
/// documented.
struct Document(Value);

impl Document {
    fn new() -> Self {
        Self(serde_json::to_value(document()).unwrap())
    }

    fn operation(&self, route: Route) -> &Value {
        let method = if route.method() == Method::Get { "get" } else { "put" };
        &self.0["paths"][format!("/{}", route.name())][method]
    }

    /// The schema that `$ref` leads to.
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => self.0.pointer(reference.strip_prefix('#').unwrap()).expect(reference),
            None => schema,
        }
    }

    /// Everything in `value` that `schema` does not allow; `at` says where.
    fn faults(&self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        let schema = self.resolve(schema);
        if let Some(parts) = schema["allOf"].as_array() {
            return self.object_faults(&parts.iter().map(|part| self.resolve(part)).collect::<Vec<_>>(), value, at);
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let fit = choices.iter().filter(|choice| self.faults(choice, value, at).is_empty()).count();
            return if fit == 1 { vec![] } else { vec![format!("{at}: {value} fits {fit} of {schema}")] };
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::String(name) => vec![name],
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            // Anything.
            _ => return vec![],
        };
        let name = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        if !types.contains(&name) {
            return vec![format!("{at}: {value} is none of {types:?}")];
        }
        if schema["enum"].as_array().is_some_and(|words| !value.is_null() && !words.contains(value)) {
            return vec![format!("{at}: {value} is none of {}", schema["enum"])];
        }
        match value {
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.flat_map(|(n, item)| self.faults(&schema["items"], item, &format!("{at}[{n}]"))).collect()
            }
            Value::Object(_) => self.object_faults(&[schema], value, at),
            _ => vec![],
        }
    }

    /// As above, of an object that all of `schemas` describe together.
    fn object_faults(&self, schemas: &[&Value], value: &Value, at: &str) -> Vec<String> {
        let Some(fields) = value.as_object() else { return vec![format!("{at}: {value} is no object")] };
        let mut faults = vec![];
        for missing in schemas.iter().flat_map(|schema| schema["required"].as_array()).flatten() {
            if !fields.contains_key(missing.as_str().unwrap()) {
                faults.push(format!("{at}: {missing} is missing"));
            }
        }
        for (name, field) in fields {
            let at = format!("{at}.{name}");
            let known =
                |schema: &&Value| schema["properties"].get(name).or(schema.get("additionalProperties")).cloned();
            match schemas.iter().find_map(known) {
                Some(schema) => faults.extend(self.faults(&schema, field, &at)),
                None => faults.push(format!("{at} is not documented")),
            }
        }
        faults
    }

    /// Whether an answer is one that the document has for the route.
    fn check(&self, route: Route, answer: &str) {
        let number = status(answer).split_whitespace().nth(1).unwrap();
        let responses = &self.operation(route)["responses"];
        let response = responses.get(number).unwrap_or(&responses["default"]);
        let media_type = answer.lines().find_map(|line| line.strip_prefix("Content-Type: "));
        match (media_type, response["content"].as_object()) {
            (None, None) => assert!(number.starts_with('2'), "{answer}"),
            (Some(media_type), Some(content)) => {
                let schema = &content.get(media_type).expect(answer)["schema"];
                assert_eq!(self.faults(schema, &body(answer), route.name()), [""; 0], "{answer}");
            }
            _ => panic!("{}: {answer} is not {response}", route.name()),
        }
    }
}

const CONFIG: &str = r#"{"memory":{"size":268435456},"payload":{"kernel":"/k"},"disks":[{"path":"/d","id":"a"}],"net":[{"tap":"t"}],
    "serial":{"mode":"File","file":"/s"},"platform":{"oem_strings":["a"]},"cpus":{"boot_vcpus":1,"max_vcpus":1,
    "affinity":[{"vcpu":0,"host_cpus":[0]}]}}"#;

fn call(vmm: &FakeVmm, route: Route, accept: &str) -> String {
    let method = if route.method() == Method::Get { "GET" } else { "PUT" };
    let body = match route {
        Route::VmCreate => CONFIG,
        Route::FtProtect => r#"{"peer":"127.0.0.1:1","heartbeat":"127.0.0.1:9"}"#,
        _ => "",
    };
    let (path, length) = (route.path(), body.len());
    vmm.raw(&format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
}

/// Every route but the last one, in an order in which most have something to do.
fn routes() -> impl Iterator<Item = Route> {
    let first = [Route::VmCreate, Route::VmInfo, Route::VmBoot];
    let last = [Route::VmShutdown, Route::VmDelete, Route::VmmShutdown];
    let middle = Route::ALL.iter().copied().filter(move |route| !first.contains(route) && !last.contains(route));
    first.into_iter().chain(middle).chain([Route::VmShutdown, Route::VmDelete])
}

#[test]
fn every_endpoint_is_served_as_documented() {
    let document = Document::new();
    let vmm = FakeVmm::start(Setup::default());
    let mut succeeded = HashSet::new();
    for route in routes() {
        let answer = call(&vmm, route, "*/*");
        document.check(route, &answer);
        if status(&answer).contains(" 2") {
            succeeded.insert(route);
        }
    }
    // Those that the fake engine refuses.
    let refused: Vec<_> = routes().filter(|route| !succeeded.contains(route)).collect();
    assert_eq!(refused, [Route::FtProtect, Route::FtTestFailover]);
    document.check(Route::VmmShutdown, &call(&vmm, Route::VmmShutdown, "*/*"));
    vmm.ended();
}

#[test]
fn every_error_is_documented_in_both_forms() {
    let document = Document::new();
    let vmm = FakeVmm::start(Setup::default());
    let mut codes = HashSet::new();
    for route in routes().filter(|route| !matches!(route, Route::VmmPing | Route::VmCreate | Route::VmDelete)) {
        let sentences = call(&vmm, route, "*/*");
        document.check(route, &sentences);
        let answer = call(&vmm, route, &format!("application/json, {MEDIA_TYPE}"));
        document.check(route, &answer);
        let problem: Problem = serde_json::from_value(body(&answer)).unwrap();
        let same: Vec<Value> =
            [vec!["Error from API"], problem.sentences()].concat().into_iter().map(Value::from).collect();
        assert_eq!(body(&sentences), Value::from(same));
        codes.insert(problem.code);
    }
    assert!(codes.contains("not-created"), "{codes:?}");
}

#[test]
fn a_refusal_says_who_has_to_change_what() {
    let vmm = FakeVmm::start(Setup::default());
    call(&vmm, Route::VmCreate, "*/*");
    call(&vmm, Route::VmBoot, "*/*");
    let refused = body(&call(&vmm, Route::FtProtect, MEDIA_TYPE));
    let expected = json!({"title": "The VM cannot be protected", "status": 500, "code": "preflight", "blame": "environment",
        "relation": "list", "reasons": ["no route", "no disk"], "blockers": [
            {"code": "session-failed", "blame": "environment", "reason": "no route"},
            {"code": "session-failed", "blame": "environment", "reason": "no disk"},
        ], "hint": "resolve every reason, then protect the VM again"});
    assert_eq!(refused, expected);
    let refused = body(&call(&vmm, Route::FtTestFailover, MEDIA_TYPE));
    assert_eq!((&refused["code"], &refused["blame"]), (&json!("not-protected"), &json!("state")));
}

#[test]
fn requests_are_documented() {
    let document = Document::new();
    let schema = |route| document.operation(route)["requestBody"]["content"]["application/json"]["schema"].clone();
    for (route, request) in [
        (Route::VmCreate, serde_json::from_str(CONFIG).unwrap()),
        (
            Route::FtProtect,
            json!({"peer": "a:1", "heartbeat": "b:1", "on_partition": "both", "disk_rate": 7, "compression": "off"}),
        ),
    ] {
        assert_eq!(document.faults(&schema(route), &request, route.name()), [""; 0]);
    }
    let event = json!([{"seq": 1, "time": "2026-01-01T00:00:00Z", "event": "protected", "detail": {"term": 3}}]);
    let events = &document.operation(Route::FtEvents)["responses"]["200"]["content"]["application/json"]["schema"];
    assert_eq!(document.faults(events, &event, "ft.events"), [""; 0]);
    for route in Route::ALL {
        let documented = document.operation(*route).get("requestBody").map(|body| body["required"] == true);
        let expected = match route.body() {
            Body::None => None,
            Body::Optional => Some(false),
            Body::Required => Some(true),
        };
        assert_eq!(documented, expected, "{}", route.name());
    }
}

#[test]
fn the_document_is_not_that_of_something_else() {
    let document = Document::new();
    let schema = &document.operation(Route::FtStatus)["responses"]["200"]["content"]["application/json"]["schema"];
    for (wrong, fault) in [
        (json!({"state": "asleep"}), "ft.status.state: \"asleep\" fits 0 of"),
        (json!({"term": "1"}), "ft.status.term: \"1\" is none of [\"integer\"]"),
        (json!({"disks": [{"color": 1}]}), "ft.status.disks[0].color is not documented"),
        (json!([]), "ft.status: [] is none of [\"object\"]"),
    ] {
        let faults = document.faults(schema, &wrong, "ft.status");
        assert!(faults.iter().any(|found| found.starts_with(fault)), "{wrong}: {faults:?}");
    }
}
