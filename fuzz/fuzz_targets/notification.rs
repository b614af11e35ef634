//! Any text as a Postgres notification: refused or read, and what was read is packed and read back equal.
#![no_main]

use eventbus::backend::postgres::fuzzing as postgres;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    postgres::notification(text);
});
