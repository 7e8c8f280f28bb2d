//! A run and its mirror in an object store: whatever goes wrong between them, the run ends right or can be gone on with, and one that
//! goes on from the mirror on an empty disk is bit for bit an unbroken one.
//!
//! `RLVR_MIRROR_FAULTS=50` and `RLVR_MIRROR_RACES=20` try that many instead of a few; `RLVR_MIRROR_S3=HOST:PORT` asks another server than
//! the one of `support/s3_server.rs` (`bucket`, key `key`), as `scripts/node/try-mirror.sh` does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::runs::rlvr;
use crate::support::s3_server::S3Server;
use crate::support::seed;
use crate::support::small::{Draw, Small, left, said};

/// How long the program waits for an answer, and a lease lasts.
const PATIENCE: Duration = Duration::from_secs(2);
const LEASE: Duration = Duration::from_secs(4);

/// A store with a proxy before it, and disks of machines.
struct Place {
    root: tempfile::TempDir,
    server: Option<S3Server>,
    proxy: FaultProxy,
    /// Of this test in a server that others use as well.
    prefix: String,
    more: Vec<String>,
}

impl Place {
    fn new(prefix: &str, more: &[&str]) -> Self {
        let other = std::env::var("RLVR_MIRROR_S3").ok();
        let server = other.is_none().then(S3Server::start);
        let address = other.unwrap_or_else(|| server.as_ref().unwrap().address());
        let proxy = FaultProxy::start(&address, PATIENCE);
        let more = more.iter().copied().map(String::from).collect();
        Self { root: tempfile::tempdir().unwrap(), server, proxy, prefix: prefix.into(), more }
    }

    fn disk(&self, machine: &str) -> PathBuf {
        self.root.path().join(machine)
    }

    /// The command of the run `name` on a machine, with its mirror.
    fn command(&self, machine: &str, name: &str, signal: Option<(u32, u64)>) -> Command {
        let mirror = format!("run.mirror=s3://bucket/{}", self.prefix);
        let wait = ["run.mirror_wait=3", "checkpoint.every_steps=1", &mirror];
        let more: Vec<&str> = self.more.iter().map(String::as_str).chain(wait).collect();
        let mut command = Small::new(&self.disk(machine), &more).command(name, signal);
        command
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "the-secret")
            .env("AWS_REGION", "r");
        command.env("AWS_ENDPOINT_URL", self.proxy.endpoint()).env("AWS_ALLOW_HTTP", "true");
        command.env("RLVR_MIRROR_TIMEOUT", PATIENCE.as_secs().to_string());
        command.env("RLVR_MIRROR_LEASE", LEASE.as_secs().to_string());
        if self.server.is_some() {
            // Others take no parts that are so small.
            command.env("RLVR_MIRROR_PART", "20000");
        }
        command
    }

    fn train(&self, machine: &str, name: &str, signal: Option<(u32, u64)>) -> Output {
        self.command(machine, name, signal).output().unwrap()
    }

    fn spawn(&self, machine: &str, name: &str, signal: Option<(u32, u64)>) -> Child {
        self.command(machine, name, signal).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A run without a mirror that nothing happens to: what it leaves, and its visits.
    fn unbroken(&self) -> (Left, u64) {
        let disk = self.disk("unbroken");
        let more: Vec<&str> =
            self.more.iter().map(String::as_str).chain(["checkpoint.every_steps=1"]).collect();
        let visits = Small::new(&disk, &more).visits("whole");
        (without_warnings(&disk.join("whole")), visits)
    }

    /// What the machine's run left is what an unbroken one leaves.
    fn is_as(&self, machine: &str, name: &str, want: &Left) {
        let got = without_warnings(&self.disk(machine).join(name));
        assert_eq!(got.0, want.0, "metrics of {machine}");
        let names = |left: &Left| left.1.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        assert_eq!(names(&got), names(want), "{machine}");
        for ((path, got), (_, want)) in got.1.iter().zip(&want.1) {
            assert!(got == want, "{} of {machine}", path.display());
        }
    }

    /// What the store has to look at is that as well; its own metrics have warnings of their own.
    fn has(&self, name: &str, want: &Left) {
        let Some(server) = &self.server else { return };
        for (path, bytes) in &want.1 {
            let there = server.get(&self.key(&format!("{name}/{}", path.display())));
            assert!(there.as_ref() == Some(bytes), "{} of {name} in the store", path.display());
        }
    }

    fn server(&self) -> &S3Server {
        self.server.as_ref().unwrap()
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    fn keys(&self, folder: &str) -> Vec<String> {
        let folder = self.key(folder);
        self.server().keys().into_iter().filter(|key| key.starts_with(&folder)).collect()
    }
}

type Left = (Vec<Value>, Vec<(PathBuf, Vec<u8>)>);

/// A fault may leave a warning in the metrics, which no unbroken run has.
fn without_warnings(run: &Path) -> Left {
    let (mut metrics, files) = left(run);
    metrics.retain(|event| event["event"] != "warning");
    (metrics, files)
}

fn times(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// The server is ours, and its objects can be looked at.
fn is_ours() -> bool {
    let ours = std::env::var("RLVR_MIRROR_S3").is_err();
    if !ours {
        eprintln!("left out: it looks into the server of the suite");
    }
    ours
}

#[track_caller]
fn ends(output: &Output, code: i32, words: &str) -> String {
    let said = said(output);
    assert!(
        output.status.code() == Some(code) && said.contains(words),
        "{code} {words}: {:?} {said}",
        output.status
    );
    said
}

#[test]
fn an_empty_disk_goes_on_from_the_mirror_and_a_done_run_is_said_to_be_done() {
    if !is_ours() {
        return;
    }
    let place = Place::new("p/q", &["grpo.reference_sync_steps=2"]);
    // The store's clock and this machine's are a day apart.
    place.server().set_ahead(24);
    let (want, visits) = place.unbroken();
    ends(&place.train("one", "a", Some((15, visits * 2 / 3))), 75, "stopped: ");
    assert!(place.server().multipart() > 0, "large files go up in parts");
    let brought = ends(&place.train("two", "a", None), 0, "this disk no checkpoint: goes on from there");
    assert!(brought.contains("mirror: s3://bucket/p/q/a has all of the run"), "{brought}");
    place.is_as("two", "a", &want);
    // What is seen in the bucket is the run's.
    for file in ["metrics.jsonl", "config.resolved.toml", "model/model.safetensors"] {
        let here = std::fs::read(place.disk("two").join("a").join(file)).unwrap();
        assert!(place.server().get(&place.key(&format!("a/{file}"))) == Some(here), "{file}");
    }
    let kept = place.keys("a/snapshots/").len();
    assert_eq!(kept, 2, "checkpoint.keep_last");
    let done = ends(&place.train("three", "a", None), 0, "done already: s3://bucket/p/q/a/model");
    assert!(!place.disk("three").join("a").exists() && !done.contains("the-secret"), "{done}");
    ends(&place.train("two", "a", None), 0, "done already: ");
    // The disk of the first knows less than the mirror.
    ends(&place.train("one", "a", None), 0, ": goes on from there");
    place.is_as("one", "a", &want);
    // Another config is not that run's.
    let mut other = place.command("three", "a", None);
    ends(&other.args(["--set", "grpo.steps=2"]).output().unwrap(), 2, "grpo.steps was 3, is 2");
    // Nor is a new run.
    let mut args: Vec<String> =
        place.command("four", "a", None).get_args().map(|a| a.to_string_lossy().into()).collect();
    args.retain(|word| word != "--resume" && word != "auto");
    let mut new = Command::new(env!("CARGO_BIN_EXE_rlvr"));
    let as_before = place.command("four", "a", None);
    new.envs(as_before.get_envs().map(|(key, value)| (key, value.unwrap())));
    ends(&new.args(args).output().unwrap(), 2, "s3://bucket/p/q/a: has a run already");
}

#[test]
fn a_damaged_snapshot_is_passed_over_and_named() {
    if !is_ours() {
        return;
    }
    for damage in ["object", "missing", "snapshot"] {
        let place = Place::new("p", &[]);
        let (want, visits) = place.unbroken();
        ends(&place.train("one", "a", Some((15, visits - 5))), 75, "stopped: ");
        let snapshots = place.keys("a/snapshots/");
        let newest: Value = serde_json::from_slice(&place.server().get(&snapshots[1]).unwrap()).unwrap();
        let older = String::from_utf8(place.server().get(&snapshots[0]).unwrap()).unwrap();
        let objects = newest["files"].as_array().unwrap().iter().map(|file| file["object"].as_str().unwrap());
        let own: Vec<&str> = objects.filter(|object| !older.contains(object)).collect();
        let object = place.key(&format!("a/{}", own[own.len() / 2]));
        match damage {
            "object" => place.server().edit(&object, |bytes| *bytes.last_mut().unwrap() ^= 1),
            "missing" => place.server().remove(&object),
            _ => place.server().edit(&snapshots[1], |bytes| bytes.truncate(bytes.len() / 2)),
        }
        let said = ends(&place.train("two", "a", None), 0, "passed over");
        assert!(said.contains("damaged"), "{damage}: {said}");
        place.is_as("two", "a", &want);
    }
}

#[test]
fn a_mirror_out_of_reach_ends_the_start_and_does_not_end_a_run() {
    // Long enough that a checkpoint which is not copied is said while it trains.
    let place = Place::new("p-reach", &["grpo.steps=150", "eval.every_steps=0"]);
    let mut command = place.command("one", "a", None);
    let nobody = command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9").output().unwrap();
    ends(&nobody, 1, "cannot reach the run's mirror");
    if is_ours() {
        let mut command = place.command("one", "a", None);
        let said =
            ends(&command.env("AWS_ACCESS_KEY_ID", "another").output().unwrap(), 2, "it refuses access");
        assert!(said.contains("AWS_SECRET_ACCESS_KEY") && !said.contains("the-secret"), "{said}");
    }
    let mut command = place.command("one", "a", None);
    ends(&command.env("AWS_ALLOW_HTTP", "false").output().unwrap(), 1, "AWS_ALLOW_HTTP=true");
    assert!(!place.disk("one").join("a").exists(), "nothing is left of it");
    for (set, words) in [
        ("run.mirror=ftp://b/p", "run.mirror = ftp://b/p: must be s3://bucket/prefix"),
        ("run.mirror=s3://key:secret@b/p", "must be s3://bucket/prefix"),
        ("run.mirror=file:///nowhere/at/all", "file:///nowhere/at/all/a: its folder is not there"),
    ] {
        let mut command = place.command("one", "a", None);
        ends(&command.args(["--set", set]).output().unwrap(), 2, words);
    }
    ends(&rlvr(&["train", "demo", "--set", "run.mirror=s3://bucket/p"]), 2, "run.name = absent");
    // It goes away for good once the run is under way.
    let (want, _) = place.unbroken();
    let before = place.proxy.requests();
    place.proxy.plan(move |at, _| (at > before + 40).then_some(Fault::Refused));
    let said = ends(&place.train("one", "a", None), 75, "the run is done, s3://bucket/p-reach/a lacks");
    assert_eq!(said.matches("stops being complete, training goes on").count(), 1, "{said}");
    place.is_as("one", "a", &want);
    place.proxy.plan(|_, _| None);
    ends(&place.train("one", "a", None), 0, "s3://bucket/p-reach/a has all of the run");
    ends(&place.train("two", "a", None), 0, "done already: s3://bucket/p-reach/a/model");
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_while_a_run_is_fetched_leaves_one_to_go_on_with() {
    let Some(shim) = crate::support::preload::preload("full_disk") else { return };
    let place = Place::new("p-full", &[]);
    let (want, visits) = place.unbroken();
    ends(&place.train("one", "a", Some((15, visits * 2 / 3))), 75, "stopped: ");
    let mut draw = Draw(seed::of_test());
    for _ in 0..3 {
        let mut command = place.command("two", "a", None);
        command.env("LD_PRELOAD", &shim).env("RLVR_DISK_BYTES", (2_000 + draw.below(60_000)).to_string());
        ends(&command.output().unwrap(), 1, "Free some disk space");
    }
    ends(&place.train("two", "a", None), 0, "goes on from there");
    place.is_as("two", "a", &want);
    let _ = std::fs::remove_file(shim);
}

#[test]
fn a_folder_is_a_mirror_as_well() {
    let root = tempfile::tempdir().unwrap();
    let (disk, volume) = (root.path().join("disk"), root.path().join("volume"));
    std::fs::create_dir(&volume).unwrap();
    let mirror = format!("run.mirror=file://{}", volume.display());
    let plain = ["checkpoint.every_steps=1"];
    let visits = Small::new(&root.path().join("unbroken"), &plain).visits("whole");
    let small = Small::new(&disk, &[plain[0], &mirror]);
    ends(&small.train("a", Some((15, visits * 2 / 3))), 75, "stopped: ");
    std::fs::remove_dir_all(&disk).unwrap();
    ends(&small.train("a", None), 0, "goes on from there");
    let want = without_warnings(&root.path().join("unbroken/whole"));
    assert!(without_warnings(&disk.join("a")) == want);
    std::fs::remove_dir_all(&disk).unwrap();
    ends(&small.train("a", None), 0, "done already: file://");
    assert!(volume.join("a/model/model.safetensors").is_file());
}

/// Every request may have a fault; the process may be killed or stopped anywhere, and its disk be lost.
#[test]
fn whatever_happens_to_the_network_the_run_is_bit_for_bit_an_unbroken_one() {
    let wanted = times("RLVR_MIRROR_FAULTS", 3);
    let place = Place::new("faults", &["grpo.reference_sync_steps=2"]);
    let (want, visits) = place.unbroken();
    let mut draw = Draw(seed::of_test());
    let mut tried = BTreeMap::<String, usize>::new();
    for run in 0..wanted {
        let name = format!("run-{run}");
        // One in so many requests; a store that never answers is another test's.
        let kind = Fault::ALL[(run as usize) % Fault::ALL.len()];
        let rate = if kind == Fault::Damaged { 10 } else { 3 } + draw.below(12);
        let salt = draw.below(u64::MAX);
        place.proxy.plan(move |at, request| {
            let hit = Draw(salt ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).below(rate) == 0;
            let is_object = request.method == "GET" && request.path().contains("/objects/");
            (hit && (kind != Fault::Damaged || is_object)).then_some(kind)
        });
        let mut machine = 0;
        for round in 0.. {
            let signal = match (round, draw.below(3)) {
                // The network mends, as it does.
                (8, _) => {
                    place.proxy.plan(|_, _| None);
                    None
                }
                (0..8, 0) => Some((9, 1 + draw.below(visits))),
                (0..8, 1) => Some((15, 1 + draw.below(visits))),
                _ => None,
            };
            let output = place.train(&format!("{name}-{machine}"), &name, signal);
            let said = said(&output);
            match output.status.code() {
                Some(0) => break,
                Some(75) | None => {}
                Some(1) => assert!(said.contains("cannot reach the run's mirror"), "{kind:?}: {said}"),
                Some(_) => panic!("{kind:?}, round {round}: {:?} {said}", output.status),
            }
            assert!(round < 12, "{kind:?}: the run does not come to its end: {said}");
            // Another machine, with an empty disk.
            machine += draw.below(2);
        }
        place.proxy.plan(|_, _| None);
        let last = place.disk(&format!("{name}-{machine}")).join(&name);
        if last.join("model").is_dir() {
            place.is_as(&format!("{name}-{machine}"), &name, &want);
        }
        ends(&place.train("another", &name, None), 0, "done already: s3://");
        place.has(&name, &want);
        *tried.entry(format!("{kind:?}")).or_default() += 1;
    }
    let happened = place.proxy.happened().len();
    println!("{wanted} runs with network faults, {happened} faults: {tried:?}; none lost and no bit differs");
}

/// Who holds a run keeps it while it lives; who is gone, or asleep for longer than its lease, has it taken.
#[test]
fn of_two_machines_one_has_the_run() {
    let wanted = times("RLVR_MIRROR_RACES", 2);
    let place = Place::new("races", &[]);
    let (want, _) = place.unbroken();
    let mut draw = Draw(seed::of_test());
    let (mut refused, mut taken) = (0, 0);
    for race in 0..wanted {
        let name = format!("race-{race}");
        if let Some(server) = &place.server {
            server.set_ahead([0, 30, -30][draw.below(3) as usize]);
        }
        let (one, two) = (format!("{name}-one"), format!("{name}-two"));
        let sleeps = race % 2 == 1;
        let pause = |most: u64, draw: &mut Draw| std::thread::sleep(Duration::from_millis(draw.below(most)));
        let mut first = place.spawn(&one, &name, None);
        if sleeps {
            // Until it has something to lose.
            let began = Instant::now();
            let steps = place.disk(&one).join(&name).join("checkpoints/step-1");
            while !steps.exists()
                && first.try_wait().unwrap().is_none()
                && began.elapsed() < Duration::from_secs(60)
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            pause(200, &mut draw);
            send(&first, "STOP");
            let second = place.spawn(&two, &name, None);
            // Awake again while the second waits for the lease, trains, or is done.
            std::thread::sleep(LEASE / 2 + Duration::from_millis(draw.below(2 * LEASE.as_millis() as u64)));
            send(&first, "CONT");
            let (first, second) = (first.wait_with_output().unwrap(), second.wait_with_output().unwrap());
            let both = format!("{} {}\n{} {}", first.status, said(&first), second.status, said(&second));
            match (first.status.code(), second.status.code()) {
                // It woke up in time.
                (Some(0), Some(2)) => {
                    assert!(said(&second).contains("is working in this run, since "), "{both}")
                }
                (Some(75), Some(0)) => {
                    assert!(
                        said(&first).contains("has taken this run over: nothing more was written"),
                        "{both}"
                    );
                    taken += 1;
                }
                // It was over before it was put to sleep.
                (Some(0), Some(0)) => {}
                _ => panic!("{both}"),
            }
        } else {
            pause(300, &mut draw);
            let second = place.spawn(&two, &name, None);
            let (first, second) = (first.wait_with_output().unwrap(), second.wait_with_output().unwrap());
            let both = format!("{} {}\n{} {}", first.status, said(&first), second.status, said(&second));
            let loser = match (first.status.code(), second.status.code()) {
                (Some(0), Some(2)) => &second,
                (Some(2), Some(0)) => &first,
                // The one was over before the other asked.
                (Some(0), Some(0)) if both.contains("done already: ") => continue,
                _ => panic!("{both}"),
            };
            let said = said(loser);
            let line = said.lines().find(|line| line.contains("is working in this run, since ")).unwrap();
            assert!(line.contains(": process ") && line.contains(" and has it until "), "{line}");
            refused += 1;
        }
        let disks =
            [one, two].map(|machine| (place.disk(&machine).join(&name).join("model").is_dir(), machine));
        disks
            .iter()
            .filter(|(is_done, _)| *is_done)
            .for_each(|(_, machine)| place.is_as(machine, &name, &want));
        assert!(disks.iter().any(|(is_done, _)| *is_done), "{disks:?}");
        ends(&place.train("another", &name, None), 0, "done already: s3://");
    }
    println!(
        "{wanted} races: {refused} refused, {taken} taken over from one asleep; none lost and no bit differs"
    );
}

fn send(child: &Child, signal: &str) {
    assert!(
        Command::new("kill")
            .args([&format!("-{signal}"), &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
}
