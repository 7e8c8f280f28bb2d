//! Addresses that reward completions: retries, and what is refused at once.

use std::time::{Duration, Instant};

use crate::support::judges::{Bench, ask, refused, values};
use crate::support::reward_server::{Reply, RewardServer};

fn http(server: &RewardServer, keys: &str) -> String {
    let comma = if keys.is_empty() { "" } else { ", " };
    format!("http = {{ url = \"{}\"{comma}{keys} }}", server.url())
}

#[test]
fn an_address_gets_what_a_program_gets_with_headers_from_the_environment() {
    let server = RewardServer::start(|asked, _| {
        Reply::reward(asked, asked.body["completion"].as_str().unwrap().len() as f64)
    });
    let bench = Bench::new();
    let task = bench.task(&http(&server, "headers_from_env = { X-Search = \"PATH\" }"));
    let (said, warnings) = ask(&task, &["a", "bb", "ccc", "dddd", "eeeee"]).unwrap();
    assert_eq!((values(&said), warnings.len()), (vec![1.0, 2.0, 3.0, 4.0, 5.0], 0));
    let seen = server.seen();
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|asked| asked.headers["x-search"] == std::env::var("PATH").unwrap()));
    assert_eq!(seen[0].headers["content-type"], "application/json");
    assert_eq!(seen[0].body["prompt"][0]["content"], "?");
    let task = bench.task(&http(&server, "headers_from_env = { X-Key = \"RLVR_NOT_SET_ANYWHERE\" }"));
    let error = refused(&task, &["a"]);
    assert!(
        error.starts_with(
            "extra_rewards.judge.http.headers_from_env: the environment has no RLVR_NOT_SET_ANYWHERE. Set"
        ),
        "{error}"
    );
}

#[test]
fn what_may_pass_is_tried_again() {
    // Each of the first three requests meets something else.
    let server = RewardServer::start(|asked, before| match before {
        0 => Reply::status(500, &[]),
        1 => Reply::Cut(500, b"{\"id\": ".to_vec()),
        2 => Reply::Silence,
        _ => Reply::reward(asked, 0.5),
    });
    let task = Bench::new().task(&http(&server, "workers = 1, timeout_seconds = 2, wait_seconds = 0.01"));
    assert_eq!(values(&ask(&task, &["a", "b"]).unwrap().0), [0.5, 0.5]);
    assert!(server.seen().len() >= 5);
}

#[test]
fn a_server_says_when_to_come_back() {
    let server = RewardServer::start(|asked, before| match before {
        0 => Reply::status(429, &[("Retry-After", "1")]),
        _ => Reply::reward(asked, 1.0),
    });
    let begun = Instant::now();
    let task = Bench::new().task(&http(&server, "wait_seconds = 0.0"));
    assert_eq!(values(&ask(&task, &["a"]).unwrap().0), [1.0]);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let server = RewardServer::start(|_, _| Reply::status(429, &[("Retry-After", "86400")]));
    let error = refused(&Bench::new().task(&http(&server, "")), &["a"]);
    assert!(
        error.contains("answered 429 Too Many Requests, and to come back after 86400 s, 1 of 5 tries"),
        "{error}"
    );
}

#[test]
fn what_an_address_does_wrong_names_the_row() {
    let other = RewardServer::start(|asked, _| Reply::reward(asked, 1.0));
    let elsewhere = other.url();
    let redirect = move || Reply::status(307, &[("Location", &elsewhere)]);
    let once = "tries = 1, timeout_seconds = 0.3";
    let few = "tries = 3, wait_seconds = 0.01";
    type Bad = Box<dyn Fn() -> Reply + Send + Sync>;
    let body = |text: &'static str| -> Bad { Box::new(move || Reply::Whole(200, Vec::new(), text.into())) };
    let cases: Vec<(Bad, &str, &str, usize)> = vec![
        (Box::new(redirect), "", "(307 Temporary Redirect), and rows are sent nowhere else", 1),
        (Box::new(|| Reply::Silence), once, "did not answer in time (timeout_seconds), 1 of 1 tries", 1),
        (Box::new(|| Reply::status(503, &[])), few, "answered 503 Service Unavailable, 3 of 3 tries", 3),
        (Box::new(|| Reply::status(429, &[])), few, "answered 429 Too Many Requests, 3 of 3 tries", 3),
        (Box::new(|| Reply::Cut(90, b"{\"id\"".to_vec())), few, "3 of 3 tries. See that it is up", 3),
        (Box::new(|| Reply::status(404, &[])), few, "answered 404 Not Found. Have it answer 200", 1),
        (
            Box::new(|| Reply::Whole(200, Vec::new(), vec![b' '; 10_000_000])),
            few,
            "answered with more than 65536 bytes",
            1,
        ),
        (body("{\"id\": \"1.7\", \"reward\": 1}"), few, "it answered to `1.7`, and was asked `1.0`", 1),
        (body("{\"id\": \"1.0\", \"reward\": NaN}"), few, "which is no finite number", 1),
        (body("{\"id\": \"1.0\", \"reward\": \"1\"}"), few, "the reward \"1\" is no finite number", 1),
        (body("<html>"), few, "`<html>`, which is not JSON", 1),
        (body(""), few, "it printed an empty line", 1),
    ];
    for (reply, keys, want, requests) in cases {
        let server = RewardServer::start(move |_, _| reply());
        let error = refused(&Bench::new().task(&http(&server, keys)), &["a"]);
        let place = format!("extra_rewards.judge, rows.jsonl:1: {}", server.url());
        assert!(error.starts_with(&place) && error.contains(want), "{want}\n{error}");
        assert_eq!(server.seen().len(), requests, "{want}");
    }
    assert!(other.seen().is_empty(), "a row went where a redirect led");
}

#[test]
fn nobody_at_an_address_is_said() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let keys = format!("http = {{ url = \"http://127.0.0.1:{port}/\", tries = 2, wait_seconds = 0.01 }}");
    let error = refused(&Bench::new().task(&keys), &["a"]);
    assert!(error.contains("did not answer (") && error.contains("2 of 2 tries"), "{error}");
    let keys = format!("http = {{ url = \"http://127.0.0.1:{port}/\", tries = 1, on_error = 0.25 }}");
    let (said, warnings) = ask(&Bench::new().task(&keys), &["a", "b"]).unwrap();
    assert_eq!((values(&said), warnings.len()), (vec![0.25, 0.25], 1));
}
