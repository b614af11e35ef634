//! Any pattern on any topic: no panic, no blow-up, and the router agrees with the pattern.
#![no_main]

use eventbus::topic::{Binding, Pattern, Router};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.split('\n');
    let topic = parts.next().unwrap_or_default();
    let patterns: Vec<Pattern> = parts.map(Pattern::new).collect();
    let mut router = Router::default();
    for (index, pattern) in patterns.iter().enumerate() {
        router.insert(Binding::Pattern(pattern.clone()), index);
    }
    let mut found = Vec::new();
    router.for_each_match(topic, |_, index| found.push(*index));
    let matching = |index: &usize| patterns[*index].matches(topic);
    let wanted: Vec<usize> = (0..patterns.len()).filter(matching).collect();
    assert_eq!(found, wanted);
});
