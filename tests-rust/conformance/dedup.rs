//! Deduplication by `dedup_id`.

use eventbus::backend::{Accepted, Broadcast, ListenRequest, Message, Op, Overflow};
use eventbus::error::Error;

use super::{Case, Fixture, in_time, put};

fn marked(case: &Case<'_>, topic: &str, body: &str, id: &str) -> Message {
    Message { dedup_id: Some(id.into()), ..case.message(topic, body) }
}

pub async fn a_second_publish_inside_the_window_is_accepted_and_dropped(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let request = ListenRequest {
        bindings: vec![case.on("t")],
        buffer: 10,
        overflow: Overflow::DropOldest,
        since: None,
    };
    let listener = case.bus.listen(request).await.unwrap();
    let first = case.publish(marked(&case, "t", "1", "a")).await;
    assert_eq!(first, Accepted { duplicate: false, queues: 1 });
    let second = case.publish(marked(&case, "t", "2", "a")).await;
    assert_eq!(second, Accepted { duplicate: true, queues: 0 });
    // Also after the first was handled.
    assert_eq!(case.drain(&group).await, ["1"]);
    assert!(case.publish(marked(&case, "t", "3", "a")).await.duplicate);
    assert!(!case.publish(marked(&case, "t", "4", "b")).await.duplicate);
    assert_eq!(case.drain(&group).await, ["4"]);
    let mut heard = Vec::new();
    while heard.len() < 2 {
        heard.extend(in_time(listener.next(10)).await.unwrap());
    }
    let text = |frame: &Broadcast| match frame {
        Broadcast::Frame { body, .. } => String::from_utf8(body.to_vec()).unwrap(),
        Broadcast::Gap(gap) => panic!("{gap:?}"),
    };
    assert_eq!(heard.iter().map(text).collect::<Vec<_>>(), ["1", "4"]);
    assert!(case.bus.inspect().await.unwrap().duplicates >= 2);
}

pub async fn the_scope_is_the_topic(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.like("*")]).await;
    // Also where topic and id run together to the same text.
    for (topic, id) in [("a", "bc"), ("ab", "c"), ("a", "c"), ("a:b", "c"), ("a", "b:c")] {
        assert!(!case.publish(marked(&case, topic, "m", id)).await.duplicate, "{topic} {id}");
    }
    assert_eq!(case.drain(&group).await.len(), 5);
}

pub async fn a_failed_transaction_remembers_no_id(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let publish = || Op::Publish(marked(&case, "t", "m", "a"));
    let failed = case.commit(vec![publish(), put(&case.key("r"), "v", Some(9))]).await;
    assert!(matches!(failed, Err(Error::VersionConflict { .. })), "{failed:?}");
    assert!(!case.commit(vec![publish()]).await.unwrap().published[0].duplicate);
    assert_eq!(case.drain(&group).await, ["m"]);
}

pub async fn a_transaction_sees_its_own_ids(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let publish = |body| Op::Publish(marked(&case, "t", body, "a"));
    let done = case.commit(vec![publish("1"), publish("2")]).await.unwrap();
    let duplicates: Vec<_> = done.published.iter().map(|accepted| accepted.duplicate).collect();
    assert_eq!(duplicates, [false, true]);
    assert_eq!(case.drain(&group).await, ["1"]);
}

pub async fn the_same_message_id_never_deduplicates(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let message = case.message("t", "m");
    case.publish(message.clone()).await;
    case.publish(message).await;
    assert_eq!(case.drain(&group).await, ["m", "m"]);
}
