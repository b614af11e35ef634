//! Any bytes as a JSON frame: refused or decoded, and what was decoded is written back equal.
#![no_main]

use eventbus::codec::json::Defaults;
use eventbus::codec::{Limits, json, value};
use eventbus::event::Timestamp;
use eventbus::event::WallTime;
use libfuzzer_sys::fuzz_target;

const DEFAULTS: Defaults =
    Defaults { now: WallTime { micros: 0, offset_micros: None }, event_id: [0; 16] };

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let _ = json::decode_message(bytes, &limits, || DEFAULTS);
    let Ok(event) = json::decode(bytes, &limits, || DEFAULTS) else { return };
    value::validate(&event.payload, &limits).expect("what was read is well-formed");
    if matches!(event.timestamp, Timestamp::Other(_)) {
        return;
    }
    let wide = Limits { max_bytes: usize::MAX, ..limits };
    let text = json::encode(&event, &wide).expect("what JSON carried it can carry again");
    let again = json::decode(&text, &wide, || DEFAULTS).expect("own messages are read");
    assert_eq!(json::encode(&again, &wide).expect("as before"), text);
});
