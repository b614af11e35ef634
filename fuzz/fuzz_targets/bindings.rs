//! Any texts as stored bindings, one a line: skipped or read, and what was read is written back equal.
#![no_main]

use eventbus::backend::redis::fuzzing as redis;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    redis::registry(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    text.split('\n').for_each(redis::binding);
});
