//! Seeds of tests with random inputs: a test's name, and `RLVR_TEST_SEED` to try other inputs. Never the clock.
//!
//! The unit tests in `src` include this file too (`src/lib.rs`).

use std::sync::Once;

use proptest::test_runner::{Config, RngSeed};

/// Seed of the running test. Once one was asked for, a panic says which `RLVR_TEST_SEED` repeats the inputs.
///
/// # Panics
/// On a thread other than the test's own, which has the test's name; and where `RLVR_TEST_SEED` is no number.
pub fn of_test() -> u64 {
    static PANICS_SAY_IT: Once = Once::new();
    let chosen = chosen();
    PANICS_SAY_IT.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            report(panic);
            eprintln!("random inputs: those of RLVR_TEST_SEED={chosen}");
        }));
    });
    let thread = std::thread::current();
    hash(thread.name().expect("a seed is asked for on the test's own thread"), chosen)
}

/// Settings of a property test: `count` inputs from the test's seed; failures are kept in no file.
pub fn cases(count: u32) -> Config {
    let rng_seed = RngSeed::Fixed(of_test());
    Config { cases: count, rng_seed, failure_persistence: None, ..Config::default() }
}

fn chosen() -> u64 {
    let Some(value) = std::env::var_os("RLVR_TEST_SEED") else { return 0 };
    let number = value.to_str().and_then(|text| text.parse().ok());
    number.unwrap_or_else(|| panic!("RLVR_TEST_SEED = {}: give a whole number", value.display()))
}

/// FNV-1a, 64 bits: the same on every machine and with every compiler.
fn hash(test: &str, chosen: u64) -> u64 {
    let bytes = test.bytes().chain(chosen.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn a_seed_depends_on_the_tests_name_and_on_the_choice_alone() {
    assert_eq!(of_test(), of_test());
    let name = std::thread::current().name().unwrap().to_string();
    assert!(name.ends_with("seed::a_seed_depends_on_the_tests_name_and_on_the_choice_alone"), "{name}");
    assert_eq!(of_test(), hash(&name, chosen()));
    // Worked out apart from this function: "a" and eight zeros.
    assert_eq!(hash("a", 0), 0xbfe4_d88f_2353_f60c);
    assert_ne!(hash("a", 0), hash("b", 0));
    assert_ne!(hash("a", 0), hash("a", 1));
}
