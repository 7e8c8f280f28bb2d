#![no_main]

libfuzzer_sys::fuzz_target!(init: rlvr_fuzz::leave_caught_panics(), |bytes: &[u8]| rlvr_fuzz::read("row", bytes));
