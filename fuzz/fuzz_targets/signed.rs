//! Any bytes as a signed frame: never let in, and never a panic.
#![no_main]

use std::sync::LazyLock;

use eventbus::signing::Keys;
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<Keys> =
    LazyLock::new(|| Keys::new(&["a secret of 32 bytes and some more"]).expect("long enough"));

fuzz_target!(|bytes: &[u8]| {
    assert!(!KEYS.verify("topic", bytes), "nobody else has the key");
    let mut own = bytes.to_vec();
    KEYS.sign("topic", &mut own);
    // What is no native frame stays as it is.
    if own != bytes {
        assert!(KEYS.verify("topic", &own) && !KEYS.verify("other", &own));
    }
});
