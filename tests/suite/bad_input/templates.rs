//! Chat templates that were made to harm: each ends the command with one line that names the template, at once.

use crate::support::room::{INPUT, Room, no_faults};

const SET: &str = "{% set ns = namespace(a='x') %}";

fn hostile() -> Vec<(String, &'static str)> {
    let long = |unit: &str, n: usize| format!("{{{{ {} }}}}", vec![unit; n].join("+"));
    let looped = |body: &str| format!("{SET}{{% for i in range(100000) %}}{body}{{% endfor %}}");
    let mut all: Vec<(String, &str)> = [
        // Widths.
        ("{{ [1] | tojson(indent=70000) }}", "width"),
        ("{{ [[[1]]] | tojson(indent=10**15) }}", "width"),
        ("{{ 'a'.zfill(10**15) }}", "width"),
        ("{{ 'a'.ljust(10**15) }}", "width"),
        ("{{ 'a'.rjust(10**15, '-') }}", "width"),
        ("{{ 'a\\nb' | indent(10**15) }}", "width"),
        ("{{ 'a\\nb' | indent(width=10**15) }}", "width"),
        ("{{ '%99999999999s' | format('a') }}", "width"),
        ("{{ '%.99999999999f' | format(1.5) }}", "width"),
        ("{{ '%*d' | format(10**12, 1) }}", "width"),
        ("{{ '%0999999999d' | format(1) }}", "width"),
        ("{{ '{:>99999999999}'.format('a') }}", "width"),
        ("{{ '{:{}}'.format('a', 10**12) }}", "width"),
        ("{{ [1, 2] | batch(10**15) | list }}", "width"),
        ("{{ [1, 2] | slice(10**15) | list }}", "width"),
        // Repetition.
        ("{{ ([0] * 10**12) | list }}", "elements"),
        ("{{ ([0] * 10**12) | join }}", "elements"),
        ("{{ ([0] * 10**12) | tojson }}", "elements"),
        ("{{ ([0] * 10**12) }}", "elements"),
        ("{{ 'x'.join(['y'] * 10**12) }}", "elements"),
        ("{{ ([0] * 10**12) | sort | length }}", "elements"),
        ("{{ 'a' * 10**12 }}", "too large"),
        ("{% for i in range(10**9) %}{% endfor %}", "range"),
        // Time.
        (
            "{% for i in range(10000) %}{% for j in range(10000) %}{% for k in range(10000) %}{% endfor %}\
             {% endfor %}{% endfor %}",
            "instructions",
        ),
        ("{% for i in [0] * 10**12 %}{% endfor %}", "instructions"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion limit"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion limit"),
        ("{% include 'chat_template' %}", "error in"),
        // Output.
        ("{% for i in range(100) %}{{ 'a' * 10**7 }}{% endfor %}", "MiB"),
        // Memory.
        ("{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}", "memory"),
        ("{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}", "memory"),
        // What holds itself.
        ("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns.a }}", "namespace"),
        ("{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a | tojson }}", "namespace"),
        ("{% set ns = namespace() %}{% set b = ns %}{% set ns.a = {'x': b} %}{{ ns.a ~ '' }}", "namespace"),
        ("{% set ns = namespace() %}{% for n in [ns] %}{% set ns.a = n %}{% endfor %}", "namespace"),
        ("{% for n in [namespace()] %}{% set n.a = n %}{{ n }}{% endfor %}", "namespace"),
        ("{% set make = namespace %}{% set n = make() %}{% set n.a = n %}{{ n }}", "namespace"),
        ("{% set ns = namespace() %}{% set ns.a = namespace() %}{% set b = ns.a %}", "namespace"),
        // Depth.
        ("{% set ns = namespace(a=[]) %}{% for i in range(100000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}", "deep"),
    ]
    .into_iter()
    .map(|(text, says)| (text.to_string(), says))
    .collect();
    all.push((looped("{% set ns.a = [ns.a] %}") + "{{ ns.a | string }}", "deep"));
    all.push((looped("{% set ns.a = {'a': ns.a} %}") + "{{ ns.a | tojson }}", "deep"));
    all.push((
        format!("{}{}", "[".repeat(5000), "]".repeat(5000)).replacen('[', "{{ [", 1) + " }}",
        "recursion",
    ));
    all.push((long("1", 600_000), "bytes"));
    all
}

#[test]
fn templates_made_to_harm_end_in_one_line() {
    no_faults(hostile().into_iter().map(|(text, says)| {
        let room = Room::new();
        room.write("model/chat_template.jinja", &text);
        let words = "data check good.jsonl --task riskcue --model model";
        let found = room.fault(words, INPUT, &["chat_template.jinja", says]);
        // Processor time of the whole command, the least of three: other programs share caches and cores.
        let is_quick = || (0..3).any(|_| room.processor_seconds(words) < 1.0);
        let found = found.or_else(|| (!is_quick()).then(|| "a second or more".into()));
        found.map(|fault| format!("{}\n{fault}", text.chars().take(200).collect::<String>()))
    }));
}

/// What the engine asks for at once is found out when it is not there; the system says a line of it too.
#[test]
fn memory_that_is_not_there_is_one_line() {
    let doubled = "{% set ns = namespace(a=[1]) %}{% for i in range(45) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}";
    no_faults(["{{ ([0] * 10**13)[::-1] }}", doubled].into_iter().map(|text| {
        let room = Room::new();
        room.write("model/chat_template.jinja", text);
        let says = ["error: ", "chat_template.jinja: asks for more memory, or a deeper stack, than there is"];
        room.answer_fault("data check good.jsonl --task riskcue --model model", INPUT, &says)
    }));
}

/// What overflowed the stack works, where it is only long.
#[test]
fn long_templates_are_read() {
    let room = Room::new();
    let long = |unit: &str, n: usize| format!("{{% set x = {} %}}", vec![unit; n].join("+"));
    let usual: serde_json::Value =
        serde_json::from_slice(&std::fs::read(room.at("model/tokenizer_config.json")).unwrap()).unwrap();
    let usual = usual["chat_template"].as_str().unwrap();
    for head in [long("1", 50_000), long("'a'", 50_000), long("1", 400_000)] {
        room.write("model/chat_template.jinja", head + usual);
        let (code, stderr) = room.rlvr("data check good.jsonl --task riskcue --model model");
        assert_eq!(code, Some(0), "{stderr}");
    }
}
