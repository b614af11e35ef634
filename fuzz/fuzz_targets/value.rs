//! Any bytes as the value of a record: the validator takes what the JSON writer can read.
#![no_main]

use eventbus::codec::read::Reader;
use eventbus::codec::{Limits, value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let is_valid = value::validate(bytes, &limits);
    let mut reader = Reader::new("record", bytes, &limits);
    let skipped = value::skip(&mut reader, &limits).map(|()| reader.is_at_end());
    assert_eq!(is_valid.is_ok(), skipped == Ok(true));
    // Depth, elements and bytes are bounded by less than what is allowed.
    let narrow = Limits { max_bytes: 64, max_depth: 4, max_elements: 8 };
    if value::validate(bytes, &narrow).is_ok() {
        assert!(is_valid.is_ok() && bytes.len() <= 64);
    }
});
