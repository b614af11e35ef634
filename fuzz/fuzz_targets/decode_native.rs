//! Any bytes as a native frame: refused or decoded, and what was decoded is written back equal.
#![no_main]

use bytes::Bytes;
use eventbus::codec::json::Defaults;
use eventbus::codec::{Limits, envelope, json, value};
use eventbus::event::WallTime;
use libfuzzer_sys::fuzz_target;

const DEFAULTS: Defaults =
    Defaults { now: WallTime { micros: 0, offset_micros: None }, event_id: [0; 16] };

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let _ = value::validate(bytes, &limits);
    let Ok(event) = envelope::decode(&Bytes::copy_from_slice(bytes), &limits) else { return };
    let again = envelope::encode(&event, &limits).expect("it is no larger than it was");
    assert_eq!(envelope::decode(&again, &limits).expect("own frames are read"), event);
    let is_valid = value::validate(&event.payload, &limits).is_ok();
    if let Ok(text) = json::encode(&event, &limits)
        && is_valid
    {
        json::decode(&text, &limits, || DEFAULTS).expect("own messages are read");
    }
});
