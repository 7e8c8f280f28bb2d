//! `run.mlflow`: what a run tells an MLflow server. The server here is a stand-in that keeps what it is told; where `RLVR_MLFLOW` names the
//! real program (`bin/mlflow` of a venv), a run is told to that one too.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::runs::text;
use crate::support::small::{Small, said};

const EXPERIMENT: &str = "detectors";

#[derive(Default)]
struct Told {
    /// Route, body, Authorization.
    requests: Vec<(String, Value, Option<String>)>,
}

impl Told {
    fn of(&self, route: &str) -> Vec<&Value> {
        self.requests.iter().filter(|(path, ..)| path == route).map(|(_, body, _)| body).collect()
    }

    /// `key@step` of every number, with its value.
    fn metrics(&self) -> BTreeMap<String, f64> {
        let all = self.of("runs/log-batch");
        let points = all.iter().filter_map(|body| body["metrics"].as_array()).flatten();
        points
            .map(|p| (format!("{}@{}", p["key"].as_str().unwrap(), p["step"]), p["value"].as_f64().unwrap()))
            .collect()
    }
}

struct Server {
    address: String,
    told: Arc<Mutex<Told>>,
}

impl Server {
    /// `refuse`: status and body of an answer by its number, from 0, in place of the right one.
    fn start(refuse: impl Fn(usize) -> Option<(u16, &'static str)> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let told = Arc::new(Mutex::new(Told::default()));
        let kept = Arc::clone(&told);
        std::thread::spawn(move || {
            let mut experiment = false;
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut first = String::new();
                if reader.read_line(&mut first).unwrap_or(0) == 0 {
                    continue;
                }
                let (mut length, mut authorization) = (0, None);
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    let Some((name, value)) = line.trim_end().split_once(": ") else { break };
                    match name.to_lowercase().as_str() {
                        "content-length" => length = value.parse().unwrap(),
                        "authorization" => authorization = Some(value.to_string()),
                        _ => {}
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let path = first.split(' ').nth(1).unwrap();
                let route = path.strip_prefix("/api/2.0/mlflow/").unwrap().split('?').next().unwrap();
                let (status, answer) = match (refuse(number), route) {
                    (Some((status, body)), _) => (status, body.to_string()),
                    (None, "experiments/get-by-name") if !experiment => {
                        assert!(path.ends_with("experiment_name=detectors"), "{path}");
                        (404, json!({"error_code": "RESOURCE_DOES_NOT_EXIST"}).to_string())
                    }
                    (None, "experiments/get-by-name") => {
                        (200, json!({"experiment": {"experiment_id": "7"}}).to_string())
                    }
                    (None, "experiments/create") => {
                        experiment = true;
                        (200, json!({"experiment_id": "7"}).to_string())
                    }
                    (None, "runs/create") => (200, json!({"run": {"info": {"run_id": "abc"}}}).to_string()),
                    (None, _) => (200, "{}".into()),
                };
                if status == 200 || status == 404 {
                    let body = serde_json::from_slice(&body).unwrap_or_default();
                    kept.lock().unwrap().requests.push((route.into(), body, authorization));
                }
                let head = format!(
                    "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    answer.len()
                );
                let _ = stream.write_all((head + &answer).as_bytes());
            }
        });
        Self { address, told }
    }
}

/// A tiny run that tells `address`.
fn command(root: &Path, address: &str) -> Command {
    let mlflow = format!("run.mlflow={address}");
    let mut command = Small::new(root, &[&mlflow, "run.mlflow_experiment=detectors"]).command("a", None);
    for name in ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"] {
        command.env_remove(name);
    }
    command
}

/// As [`Told::metrics`], from the file.
fn in_metrics_file(run: &Path) -> BTreeMap<String, f64> {
    let (mut before, mut stage) = (0, Value::Null);
    let mut all = BTreeMap::new();
    for line in std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let event = line["event"].as_str().unwrap();
        if !matches!(event, "step" | "evaluation") {
            continue;
        }
        if line["stage"] != stage && line["stage"] == "grpo" {
            before = 4;
        }
        stage = line["stage"].clone();
        let prefix = if event == "step" { stage.as_str().unwrap() } else { "eval" };
        for (name, value) in line.as_object().unwrap() {
            let is_bound =
                name.starts_with("verdict/") && (name.ends_with("_low") || name.ends_with("_high"));
            if let (Some(value), false, false) = (value.as_f64(), name == "step", is_bound) {
                let step = before + line["step"].as_u64().unwrap();
                all.insert(format!("{prefix}/{name}@{step}"), value);
            }
        }
    }
    all
}

#[test]
fn a_server_is_told_the_config_every_number_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| None);
    let mut first = command(dir.path(), &server.address);
    first.env("MLFLOW_TRACKING_USERNAME", "ann").env("MLFLOW_TRACKING_PASSWORD", "s3cret");
    let output = first.output().unwrap();
    assert!(output.status.success() && !said(&output).contains("s3cret"), "{}", said(&output));
    let told = server.told.lock().unwrap();
    let wanted = in_metrics_file(&dir.path().join("a"));
    assert!(wanted.len() > 50);
    let told_metrics = told.metrics();
    assert_eq!(told_metrics.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, value) in &wanted {
        assert!(
            (told_metrics[name] - value).abs() <= 1e-12 * value.abs(),
            "{name}: {} {value}",
            told_metrics[name]
        );
    }
    assert_eq!(told.of("experiments/create"), [&json!({"name": EXPERIMENT})]);
    assert_eq!(told.of("runs/create")[0]["run_name"], "a");
    let params: Vec<&Value> = told
        .of("runs/log-batch")
        .into_iter()
        .filter_map(|body| body["params"].as_array())
        .flatten()
        .collect();
    let param =
        |key: &str| params.iter().find(|param| param["key"] == key).map(|param| param["value"].clone());
    assert_eq!((param("sft.steps"), param("task")), (Some(json!("4")), Some(json!("demo"))));
    assert!(params.iter().all(|param| !param["key"].as_str().unwrap().starts_with("run.")));
    assert_eq!(told.of("runs/update").last().unwrap()["status"], "FINISHED");
    assert!(told.requests.iter().all(|(.., given)| given.as_deref() == Some("Basic YW5uOnMzY3JldA==")));
}

#[test]
fn a_run_that_was_stopped_goes_on_in_the_same_run_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| None);
    let mut first = command(dir.path(), &server.address);
    let output = first.env("RLVR_SIGNAL_AT", "15:100").output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    assert_eq!(server.told.lock().unwrap().of("runs/update").last().unwrap()["status"], "KILLED");
    let output = command(dir.path(), &server.address).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let told = server.told.lock().unwrap();
    assert_eq!(told.of("runs/create").len(), 1);
    let updates: Vec<&Value> = told.of("runs/update").into_iter().map(|body| &body["status"]).collect();
    assert_eq!(updates, ["KILLED", "RUNNING", "FINISHED"]);
    assert_eq!(told.metrics().len(), in_metrics_file(&dir.path().join("a")).len());
}

#[test]
fn a_server_that_fails_at_first_gets_everything_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|number| (number < 2).then_some((503, "busy")));
    let output = command(dir.path(), &server.address).output().unwrap();
    assert!(output.status.success() && !said(&output).contains("MLflow"), "{}", said(&output));
    assert_eq!(server.told.lock().unwrap().metrics().len(), in_metrics_file(&dir.path().join("a")).len());
}

#[test]
fn what_a_server_does_not_take_is_said_once_and_stops_nothing() {
    let denied = r#"{"error_code": "PERMISSION_DENIED", "message": "no [31mway"}"#;
    let cases: [(u16, &str, &[&str]); 3] = [
        (
            403,
            denied,
            &[
                "run.mlflow: http://127.0.0.1:",
                "with 403 PERMISSION_DENIED no",
                "metrics.jsonl has every number",
            ],
        ),
        (200, "<html>", &["with no JSON: it is no MLflow server"]),
        (500, "", &["numbers were not taken"]),
    ];
    for (status, body, wanted) in cases {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |_| Some((status, body)));
        let output = command(dir.path(), &server.address).output().unwrap();
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        assert_eq!(
            said.matches("MLflow stops being complete, training goes on").count(),
            1,
            "{status}: {said}"
        );
        wanted.iter().for_each(|part| assert!(said.contains(part), "{part}: {said}"));
        assert!(!said.contains('\u{1b}'));
        assert!(!in_metrics_file(&dir.path().join("a")).is_empty());
    }
}

#[test]
fn an_address_that_is_none_or_has_a_password_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (address, wanted) in
        [("localhost:5000", "localhost:5000"), ("http://ann:pw@host", "MLFLOW_TRACKING_PASSWORD")]
    {
        let output = command(dir.path(), address).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("run.mlflow") && said.contains(wanted) && !said.contains("ann:pw"), "{said}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_rlvr"))
        .args(["train", "demo", "--dry-run", "--set", "run.mlflow_experiment=x"])
        .output()
        .unwrap();
    assert!(said(&output).contains("run.mlflow_experiment: has no effect"), "{}", said(&output));
}

struct Real(Child);

impl Drop for Real {
    fn drop(&mut self) {
        // Its workers end with it.
        let _ = Command::new("pkill").args(["-TERM", "-P", &self.0.id().to_string()]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_real_server_keeps_what_a_run_tells_it() {
    let Some(program) = std::env::var_os("RLVR_MLFLOW") else {
        eprintln!(
            "not held against MLflow's own server: RLVR_MLFLOW does not name bin/mlflow of a venv that has it"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let log = std::fs::File::create(dir.path().join("server.log")).unwrap();
    let real = Command::new(program)
        .args(["server", "--host", "127.0.0.1", "--port", &port.to_string(), "--workers", "1"])
        .args(["--backend-store-uri", &format!("sqlite:///{}", dir.path().join("store.db").display())])
        .args(["--artifacts-destination", text(&dir.path().join("artifacts"))])
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let _real = Real(real);
    let address = format!("http://127.0.0.1:{port}");
    let ask = |method: &str, route: &str, body: Value| -> Option<Value> {
        let url = format!("{address}/api/2.0/mlflow/{route}");
        let answer = match method {
            "POST" => ureq::post(&url).header("Content-Type", "application/json").send(body.to_string()),
            _ => ureq::get(&url).call(),
        };
        serde_json::from_str(&answer.ok()?.body_mut().read_to_string().ok()?).ok()
    };
    let find = || ask("POST", "experiments/search", json!({"max_results": 10}));
    let is_up = (0..240).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(500));
        find().is_some()
    });
    assert!(is_up, "{}", std::fs::read_to_string(dir.path().join("server.log")).unwrap());
    let output = command(dir.path(), &address).output().unwrap();
    assert!(output.status.success() && !said(&output).contains("MLflow"), "{}", said(&output));
    let note: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("a/mlflow.json")).unwrap()).unwrap();
    let id = note["run_id"].as_str().unwrap();
    let run = ask("GET", &format!("runs/get?run_id={id}"), Value::Null).unwrap();
    assert_eq!(
        (&run["run"]["info"]["status"], &run["run"]["info"]["run_name"]),
        (&json!("FINISHED"), &json!("a"))
    );
    let mut kept = BTreeMap::new();
    for metric in run["run"]["data"]["metrics"].as_array().unwrap() {
        let key = metric["key"].as_str().unwrap();
        let escaped = key.replace(' ', "%20");
        let route = format!("metrics/get-history?run_id={id}&metric_key={escaped}");
        let history = ask("GET", &route, Value::Null).unwrap();
        for point in history["metrics"].as_array().unwrap() {
            kept.insert(format!("{key}@{}", point["step"]), point["value"].as_f64().unwrap());
        }
    }
    assert_eq!(
        kept.keys().collect::<Vec<_>>(),
        in_metrics_file(&dir.path().join("a")).keys().collect::<Vec<_>>()
    );
}
