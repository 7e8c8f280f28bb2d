//! Programs that reward completions: what they are asked and say, in whatever order and however badly. None is left behind.

use rlvr::reward::Judges;
use rlvr::task::Task;

use crate::support::judges::{Bench, ask, questions, refused, values};

const LENGTHS: &str =
    "for line in sys.stdin:\n    asked = json.loads(line)\n    say(asked, len(asked['completion']))\n";

#[test]
fn a_program_is_told_of_the_row_and_says_what_a_completion_earns() {
    let bench = Bench::new();
    let body = "for line in sys.stdin:\n    asked = json.loads(line)\n    print(asked, file=sys.stderr)\n    \
                assert asked['prompt'] == [{'role': 'user', 'content': '?'}] and asked['gold'] == 'no'\n    \
                right = asked['verdict'] == asked['gold'] and asked['outcome'] == 'exact_negative'\n    \
                say(asked, {'right': float(right), 'row': asked['row']['number'] / 4})\n";
    let task = bench.program(body, "");
    let (said, warnings) = ask(&task, &["no", "yes", "what?"]).unwrap();
    assert_eq!(values(&said), [1.0, 0.25, 0.5]);
    assert_eq!(said[1].named, [("right".to_string(), 0.0), ("row".to_string(), 0.25)]);
    assert!(said.iter().all(|said| said.index == 1 && !said.failed) && warnings.is_empty(), "{warnings:?}");
    assert!([1, 2].contains(&bench.pids().len()), "two workers by default, each a process at most");
    bench.assert_all_gone();
}

#[test]
fn answers_are_in_the_order_of_asking_whenever_they_come() {
    let texts = ["a", "bb", "ccc", "dddd", "eeeee", "f", "gg", "hhh"];
    let want = [1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 2.0, 3.0];
    // The longer the sooner, by four processes.
    let late = "for line in sys.stdin:\n    asked = json.loads(line)\n    \
                time.sleep(0.02 * (6 - len(asked['completion'])))\n    say(asked, len(asked['completion']))\n";
    for (body, keys) in [(LENGTHS, "workers = 1"), (late, "workers = 4"), (LENGTHS, "batch = 3")] {
        let bench = Bench::new();
        let (said, _) = ask(&bench.program(body, keys), &texts).unwrap();
        assert_eq!(values(&said), want, "{keys}");
        bench.assert_all_gone();
    }
}

#[test]
fn a_batch_may_be_answered_in_any_order() {
    let bench = Bench::new();
    let body = "say(json.loads(sys.stdin.readline()), 0)\nheld = json.loads(sys.stdin.readline())\n\
                open('asked', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.001)\nsay(held, 1)\n\
                asked = [json.loads(sys.stdin.readline()) for _ in range(4)]\n\
                for one in reversed(asked): say(one, len(one['completion']))\n";
    let task = bench.program(body, "workers = 1, batch = 4");
    let mut judges = Judges::open(&task).unwrap().unwrap();
    let mut questions = questions(&task, &["first", "held", "a", "bb", "ccc", "dddd"]).into_iter();
    judges.ask(questions.next().unwrap());
    assert_eq!(judges.take().unwrap().0[0][0].value, 0.0);
    judges.ask(questions.next().unwrap());
    while !bench.path("asked").exists() {
        std::thread::yield_now();
    }
    // They wait together until the process is free, and are its next batch.
    questions.for_each(|question| judges.ask(question));
    std::fs::write(bench.path("go"), "").unwrap();
    let said: Vec<_> = judges.take().unwrap().0.into_iter().flatten().collect();
    assert_eq!(values(&said), [1.0, 1.0, 2.0, 3.0, 4.0]);
    assert!(judges.finish().is_empty());
    bench.assert_all_gone();
}

#[test]
fn what_a_program_does_wrong_names_the_row() {
    let each = |what: &str| format!("for line in sys.stdin:\n    asked = json.loads(line)\n    {what}\n");
    let after_one =
        |what: &str| format!("say(json.loads(sys.stdin.readline()), 1)\nsys.stdin.readline()\n{what}\n");
    let printing = |what: &str| each(&format!("print({what}, flush=True)"));
    let answer =
        |value: &str| printing(&format!("'{{\"id\": \"' + asked['id'] + '\", \"reward\": {value}}}'"));
    for (body, keys, row, want) in [
        (
            "sys.stderr.write(\"Traceback\\nKeyError: 'x'\\n\")\nsys.exit(3)\n".to_string(),
            "restarts = 0",
            1,
            "it ended (exit status: 3) before it answered; its last words on stderr: Traceback | KeyError: 'x'. Correct",
        ),
        (
            after_one("sys.exit(0)"),
            "restarts = 0",
            2,
            "it ended (exit status: 0) before it answered; it said nothing",
        ),
        (
            "time.sleep(3600)\n".into(),
            "restarts = 0, start_timeout_seconds = 0.2",
            1,
            "it did not answer within 0.2 s (start_timeout_seconds)",
        ),
        (
            after_one("time.sleep(3600)"),
            "restarts = 0, timeout_seconds = 0.2",
            2,
            "it did not answer within 0.2 s (timeout_seconds)",
        ),
        (
            after_one("os.close(1)\ntime.sleep(3600)"),
            "restarts = 0",
            2,
            "it closed its output before it answered",
        ),
        (
            each("say(asked, 1); say(asked, 1)"),
            "",
            2,
            "an answer to `1.0`, which was not asked, or answered before",
        ),
        (answer("NaN"), "", 1, "\"reward\": NaN}`, which is no finite number"),
        (answer("-Infinity"), "", 1, "\"reward\": -Infinity}`, which is no finite number"),
        (answer("1e39"), "", 1, "the reward 1e+39 is no finite number"),
        (answer("\"good\""), "", 1, "the reward \"good\" is no finite number"),
        (answer("null"), "", 1, "the reward null is no finite number"),
        (printing("''"), "", 1, "it printed an empty line"),
        (printing("0.5"), "", 1, "`0.5`, which is no object with an id"),
        (printing("'loading the model'"), "", 1, "`loading the model`, which is not JSON"),
        (printing("'x' * 10_000_000"), "", 1, "it printed a line of more than 65536 bytes"),
        (each("say({'id': '9.9'}, 1)"), "", 1, "an answer to `9.9`, which was not asked"),
    ] {
        let bench = Bench::new();
        let keys = format!("workers = 1{}{keys}", if keys.is_empty() { "" } else { ", " });
        let error = refused(&bench.program(&body, &keys), &["no", "yes", "?"]);
        assert!(error.starts_with(&format!("extra_rewards.judge, rows.jsonl:{row}: ")), "{body}\n{error}");
        assert!(error.contains(want) && !error.contains('\n') && error.len() < 900, "{body}\n{error}");
        bench.assert_all_gone();
    }
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let bench = Bench::new();
    for (command, want) in [
        ("[\"./absent\"]", "`./absent` cannot be started in "),
        ("[\"no-such-program-anywhere\", \"x\"]", "`no-such-program-anywhere x` cannot be started in "),
        ("[\"./task.toml\"]", "`./task.toml` cannot be started in "),
    ] {
        let error = refused(&bench.task(&format!("program = {{ command = {command} }}")), &["no"]);
        assert!(
            error.contains(want) && error.contains("a name without a slash is looked for in PATH"),
            "{error}"
        );
    }
    let load = |keys: &str| {
        let bench = Bench::new();
        std::panic::catch_unwind(|| bench.task(keys)).is_err()
    };
    assert!(load("program = { command = [] }") && load("program = { command = [\"\"] }"));
}

#[test]
fn a_program_that_reads_nothing_holds_up_nobody() {
    let bench = Bench::new();
    // Far more than a pipe holds.
    let long = "x".repeat(10_000_000);
    let task = bench.program("time.sleep(3600)\n", "restarts = 0, start_timeout_seconds = 0.2");
    assert!(refused(&task, &[&long]).contains("did not answer within 0.2 s"));
    bench.assert_all_gone();
}

#[test]
fn stderr_is_read_however_much_there_is() {
    let bench = Bench::new();
    let body = "sys.stderr.write('x' * 10_000_000)\n\
                for line in sys.stdin:\n    asked = json.loads(line)\n    \
                for i in range(20000): print('line', i, file=sys.stderr)\n    say(asked, 1)\n    \
                if asked['completion'] == 'end': sys.exit('the end')\n";
    let task = bench.program(body, "workers = 1, restarts = 0");
    let (said, _) = ask(&task, &["a", "b"]).unwrap();
    assert_eq!(values(&said), [1.0, 1.0]);
    let error = refused(&task, &["end", "b"]);
    assert!(error.contains("line 19998 | line 19999 | the end") && error.len() < 900, "{error}");
    bench.assert_all_gone();
}

#[test]
fn children_of_a_program_end_with_it() {
    let child = "note(subprocess.Popen(['sleep', '3600']).pid)\n";
    let one = "say(json.loads(sys.stdin.readline()), 1)\n";
    // It ends by itself; it is killed; it ends too soon and its child has its output.
    for (rest, answers) in [
        (LENGTHS.to_string(), true),
        (format!("{one}time.sleep(3600)\n"), false),
        (format!("{one}sys.exit(0)\n"), false),
    ] {
        let bench = Bench::new();
        let keys = "workers = 1, restarts = 0, timeout_seconds = 0.2";
        let task = bench.program(&format!("{child}{rest}"), if answers { "workers = 1" } else { keys });
        assert_eq!(ask(&task, &["no", "yes"]).is_ok(), answers, "{rest}");
        assert_eq!(bench.pids().len(), 2, "{rest}");
        bench.assert_all_gone();
    }
}

#[test]
fn who_is_no_longer_asked_is_ended() {
    let bench = Bench::new();
    let task = bench.program("sys.stdin.readline()\ntime.sleep(3600)\n", "workers = 3");
    let judges = Judges::open(&task).unwrap().unwrap();
    questions(&task, &["a", "b", "c", "d", "e"]).into_iter().for_each(|question| judges.ask(question));
    while bench.pids().len() < 3 {
        std::thread::yield_now();
    }
    // As an error elsewhere in a step does.
    drop(judges);
    bench.assert_all_gone();
}

/// Each process says one thing and ends.
const ONE_ANSWER: &str = "asked = json.loads(sys.stdin.readline())\nsay(asked, len(asked['completion']))\n";

#[test]
fn a_program_that_ends_is_started_again_as_often_as_is_allowed() {
    let bench = Bench::new();
    let task = bench.program(ONE_ANSWER, "workers = 1");
    let (said, warnings) = ask(&task, &["a", "bb", "ccc"]).unwrap();
    assert_eq!((values(&said), warnings.len()), (vec![1.0, 2.0, 3.0], 0));
    bench.assert_all_gone();
    let bench = Bench::new();
    let error = refused(&bench.program("sys.exit(1)\n", "workers = 1, restarts = 2"), &["a"]);
    assert!(error.contains("it ended (exit status: 1)"), "{error}");
    assert_eq!(bench.pids().len(), 3);
}

#[test]
fn what_cannot_be_said_counts_as_the_stated_value() {
    let bench = Bench::new();
    let body = "for line in sys.stdin:\n    asked = json.loads(line)\n    \
                if asked['completion'] == 'crash': os._exit(1)\n    \
                say(asked, float('nan') if asked['completion'] == 'nan' else 1)\n";
    let task = bench.program(body, "workers = 1, on_error = -0.5");
    let (said, warnings) = ask(&task, &["a", "nan", "crash", "b"]).unwrap();
    assert_eq!(values(&said), [1.0, -0.5, -0.5, 1.0]);
    assert_eq!(said.iter().map(|said| said.failed).collect::<Vec<_>>(), [false, true, true, false]);
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(
        warning.starts_with("extra_rewards.judge, rows.jsonl:2: it printed")
            && warning.contains("It counts as -0.5"),
        "{warning}"
    );
    bench.assert_all_gone();
}

#[test]
fn what_is_printed_after_the_last_answer_is_heard() {
    let bench = Bench::new();
    let body = format!("{LENGTHS}print('bye', flush=True)\n");
    let (said, warnings) = ask(&bench.program(&body, "workers = 1"), &["a"]).unwrap();
    assert_eq!(values(&said), [1.0]);
    assert!(warnings[0].contains("it printed `bye`, which nobody had asked for"), "{warnings:?}");
}

#[test]
fn a_program_runs_in_the_task_files_folder() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("sub")).unwrap();
    std::fs::write(bench.path("sub/rules.json"), "{\"value\": 0.75}").unwrap();
    let body = "value = json.load(open('sub/rules.json'))['value']\n\
                for line in sys.stdin: say(json.loads(line), value)\n";
    // Named from another folder than its own.
    let task: Task = bench.program(body, "");
    assert_eq!(values(&ask(&task, &["a"]).unwrap().0), [0.75]);
}
