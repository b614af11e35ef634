//! Any text as a Postgres notification: refused or read, and what was read is packed and read back equal.
#![no_main]

use std::sync::LazyLock;

use eventbus::backend::postgres::fuzzing as postgres;
use eventbus::signing::Keys;
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<Keys> =
    LazyLock::new(|| Keys::new(&["a secret of 32 bytes and some more"]).expect("long enough"));

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    postgres::notification(text, &KEYS);
});
