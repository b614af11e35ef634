//! Any bytes as messages stored in Redis, and as a message of a wire that others have made.
#![no_main]

use eventbus::backend::redis::fuzzing as redis;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    redis::messages(bytes);
    redis::filter(bytes);
});
