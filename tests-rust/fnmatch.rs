//! Patterns against the stored answers of CPython, and the router against a linear scan.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use eventbus::topic::{Binding, Pattern, RouteId, Router};
use proptest::prelude::*;

/// Undoes the `\u{hex}` escapes of the golden files.
fn unescape(text: &str) -> String {
    let mut pieces = text.split("\\u{");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (code, rest) = piece.split_once('}').expect("closed escape");
        let code = u32::from_str_radix(code, 16).expect("hex");
        plain.push(char::from_u32(code).expect("scalar value"));
        plain.push_str(rest);
    }
    plain
}

#[test]
fn patterns_answer_as_cpython_does() {
    let mut count = 0;
    for line in include_str!("golden/fnmatch.tsv").lines() {
        let mut fields = line.split('\t');
        let text = unescape(&fields.next().unwrap()[1..]);
        let wanted = fields.next() == Some("+");
        let pattern = Pattern::new(&text);
        for topic in fields {
            let topic = unescape(&topic[1..]);
            assert_eq!(pattern.matches(&topic), wanted, "{text:?} on {topic:?}");
            count += 1;
        }
    }
    assert!(count > 25_000, "{count}");
}

fn binding() -> impl Strategy<Value = Binding> {
    prop_oneof![
        "[ab:é]{0,4}".prop_map(|text| Binding::Topic(text.as_str().into())),
        r"[ab:é*?\[\]!-]{0,8}".prop_map(|text| Binding::Pattern(Pattern::new(&text))),
        "[ab]{0,2}\\*[ab:é]{0,2}\\*?[ab]{0,2}"
            .prop_map(|text| Binding::Pattern(Pattern::new(&text))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_router_equals_a_linear_scan(
        bindings in prop::collection::vec((binding(), any::<bool>()), 0..60),
        topics in prop::collection::vec("[ab:é*]{0,7}", 1..20),
    ) {
        let mut router = Router::default();
        let mut live: Vec<(RouteId, Binding)> = Vec::new();
        for (binding, removed) in &bindings {
            let id = router.insert(binding.clone(), binding.clone());
            live.push((id, binding.clone()));
            if *removed && live.len() > 1 {
                let (id, binding) = live.remove(live.len() / 2);
                prop_assert_eq!(router.remove(id), Some(binding));
            }
        }
        prop_assert_eq!(router.len(), live.len());
        for topic in &topics {
            let mut found = Vec::new();
            router.for_each_match(topic, |id, _| found.push(id));
            let wanted: Vec<RouteId> =
                live.iter().filter(|(_, b)| b.matches(topic)).map(|(id, _)| *id).collect();
            prop_assert_eq!(router.has_match(topic), !wanted.is_empty());
            prop_assert_eq!(found, wanted, "{}", topic);
        }
    }
}
