//! Versioned records.

use std::sync::Arc;

use bytes::Bytes;
use eventbus::backend::{Op, Record};
use eventbus::error::Error;

use super::{Case, Fixture, TICK, put};

async fn read(case: &Case<'_>, key: &Arc<str>) -> Option<Record> {
    case.bus.read(std::slice::from_ref(key)).await.unwrap().remove(0)
}

fn mortal(key: &Arc<str>, value: &'static str) -> Op {
    let value = Bytes::from_static(value.as_bytes());
    Op::Put { key: key.clone(), value, if_version: None, ttl: Some(TICK) }
}

pub async fn versions_start_at_one_and_count_writes(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let key = case.key("k");
    assert_eq!(read(&case, &key).await, None);
    for version in 1..=3 {
        let value = version.to_string();
        assert_eq!(case.commit(vec![put(&key, &value, None)]).await.unwrap().versions, [version]);
        let expected = Record { key: key.clone(), version, value: value.into() };
        assert_eq!(read(&case, &key).await, Some(expected));
    }
    let keys = [case.key("none"), key.clone(), key];
    let found = case.bus.read(&keys).await.unwrap();
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, true]);
}

pub async fn a_version_is_never_used_again(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let key = case.key("k");
    let mut last = 0;
    for _ in 0..3 {
        let done = case.commit(vec![put(&key, "v", None), put(&key, "w", None)]).await.unwrap();
        assert!(done.versions[0] > last && done.versions[1] > done.versions[0], "{done:?}");
        last = done.versions[1];
        case.commit(vec![Op::Delete { key: key.clone(), if_version: Some(last) }]).await.unwrap();
        assert_eq!(read(&case, &key).await, None);
    }
    case.commit(vec![mortal(&key, "v")]).await.unwrap();
    case.advance(TICK * 2).await;
    let done = case.commit(vec![put(&key, "v", Some(0))]).await.unwrap();
    assert!(done.versions[0] > last + 1, "{done:?}");
}

pub async fn preconditions_are_checked_by_name(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let key = case.key("k");
    let delete = |if_version| Op::Delete { key: key.clone(), if_version };
    // (precondition, what is there)
    let check = async |op: Op, wanted: u64, there: u64| match case.commit(vec![op]).await {
        Err(Error::VersionConflict { key: named, expected, actual }) => {
            assert_eq!((named.as_str(), expected, actual), (&*key, wanted, there));
        }
        other => panic!("not refused: {other:?}"),
    };
    check(put(&key, "v", Some(1)), 1, 0).await;
    check(delete(Some(1)), 1, 0).await;
    case.commit(vec![delete(None), delete(Some(0))]).await.unwrap();
    case.commit(vec![put(&key, "v", Some(0))]).await.unwrap();
    check(put(&key, "v", Some(0)), 0, 1).await;
    check(put(&key, "v", Some(2)), 2, 1).await;
    check(delete(Some(2)), 2, 1).await;
    case.commit(vec![put(&key, "v", Some(1))]).await.unwrap();
    case.commit(vec![delete(Some(2))]).await.unwrap();
    check(put(&key, "v", Some(2)), 2, 0).await;
}

pub async fn a_time_to_live_ends_a_record(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let key = case.key("k");
    case.commit(vec![mortal(&key, "v")]).await.unwrap();
    assert!(read(&case, &key).await.is_some());
    case.advance(TICK * 2).await;
    assert_eq!(read(&case, &key).await, None);
    assert!(case.bus.scan(&key, None, 9).await.unwrap().is_empty());
    case.commit(vec![put(&key, "again", Some(0))]).await.unwrap();
}

pub async fn a_new_value_replaces_the_time_to_live(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let key = case.key("k");
    case.commit(vec![mortal(&key, "v"), put(&key, "w", None)]).await.unwrap();
    case.advance(TICK * 2).await;
    assert_eq!(&read(&case, &key).await.unwrap().value[..], b"w");
}

pub async fn a_scan_is_ordered_and_paged(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let names: Vec<_> = (0..25).map(|n| case.key(&format!("p/{n:02}"))).collect();
    let shuffled = (0..25).map(|n| put(&names[n * 7 % 25], "v", None));
    case.commit(shuffled.chain([put(&case.key("q"), "v", None)]).collect()).await.unwrap();
    let prefix = case.key("p/");
    let mut seen: Vec<Arc<str>> = Vec::new();
    loop {
        let page = case.bus.scan(&prefix, seen.last().map(|key| &**key), 10).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 10);
        seen.extend(page.into_iter().map(|record| record.key));
    }
    assert_eq!(seen, names);
    let gone = Op::Delete { key: names[4].clone(), if_version: None };
    case.commit(vec![gone]).await.unwrap();
    let page = case.bus.scan(&prefix, Some(&names[3]), 1).await.unwrap();
    assert_eq!(page[0].key, names[5]);
    // A place that is no key, and one before the prefix.
    assert_eq!(case.bus.scan(&prefix, Some(&names[4]), 1).await.unwrap()[0].key, names[5]);
    assert_eq!(case.bus.scan(&prefix, Some(""), 1).await.unwrap()[0].key, names[0]);
}

pub async fn keys_with_odd_characters_are_scanned_exactly(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let names = ["a%b", "a*b", "a[x]", "a\\b", "a_b", "aéb", "a€"].map(|name| case.key(name));
    case.commit(names.iter().map(|name| put(name, "v", None)).collect()).await.unwrap();
    // Order is by bytes.
    let found = case.bus.scan(&case.key("a"), None, 99).await.unwrap();
    assert_eq!(found.iter().map(|record| &record.key).collect::<Vec<_>>(), names.each_ref());
    for name in &names {
        let found = case.bus.scan(name, None, 99).await.unwrap();
        assert_eq!(found.len(), 1, "{name}");
        assert_eq!(&found[0].key, name);
    }
}
