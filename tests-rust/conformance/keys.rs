//! Ordering keys: one in flight per (group, key), in order of acceptance.

use eventbus::backend::{Due, Message, MessageAction, Outcome};

use super::{Case, Fixture, LONG, TICK, bodies, body, retry_after};

pub async fn one_of_a_key_is_in_flight_at_a_time(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t"), case.on("u")]).await;
    for (topic, text) in [("t", "1"), ("u", "2"), ("t", "3")] {
        case.publish(case.keyed(topic, text, "k")).await;
    }
    for expected in ["1", "2", "3"] {
        let claimed = case.claim(&group, 10).await;
        assert_eq!(bodies(&claimed), [expected]);
        assert!(case.claim(&group, 10).await.is_empty());
        case.ack(&claimed[0]).await;
    }
    assert!(case.claim(&group, 10).await.is_empty());
}

pub async fn other_keys_go_on(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    for (text, key) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")] {
        case.publish(case.keyed("t", text, key)).await;
    }
    case.publish_all("t", &["free"]).await;
    let claimed = case.claim(&group, 10).await;
    assert_eq!(bodies(&claimed), ["a1", "b1", "free"]);
    case.ack(&claimed[1]).await;
    assert_eq!(bodies(&case.claim(&group, 10).await), ["b2"]);
}

pub async fn a_retrying_head_blocks_its_key(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    for (text, key) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        case.publish(case.keyed("t", text, key)).await;
    }
    let head = case.one(&group).await;
    case.settle(&head, retry_after(TICK)).await.unwrap();
    assert_eq!(bodies(&case.claim(&group, 10).await), ["b1"]);
    case.advance(TICK * 2).await;
    let again = case.soon(&case.request(&group, 1)).await;
    assert_eq!((body(&again).as_str(), again.attempts), ("a1", 1));
    case.ack(&again).await;
    assert_eq!(body(&case.one(&group).await), "a2");
}

pub async fn a_delayed_head_blocks_its_key(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish(Message { due: Due::After(TICK), ..case.keyed("t", "late", "k") }).await;
    case.publish(case.keyed("t", "early", "k")).await;
    assert!(case.claim(&group, 10).await.is_empty());
    let stats = case.stats(&group).await;
    assert_eq!((stats.delayed, stats.ready), (1, 1));
    case.advance(TICK * 2).await;
    let head = case.soon(&case.request(&group, 1)).await;
    assert_eq!(body(&head), "late");
    assert!(case.claim(&group, 10).await.is_empty());
    case.ack(&head).await;
    assert_eq!(case.drain(&group).await, ["early"]);
}

pub async fn a_dead_head_lets_the_next_go(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    for text in ["1", "2"] {
        case.publish(case.keyed("t", text, "k")).await;
    }
    let head = case.one(&group).await;
    case.reject(&head, "no").await;
    assert_eq!(case.drain(&group).await, ["2"]);
}

pub async fn a_cancelled_head_lets_the_next_go(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let head = Message { due: Due::After(LONG), ..case.keyed("t", "1", "k") };
    let id = head.id;
    case.publish(head).await;
    case.publish(case.keyed("t", "2", "k")).await;
    assert_eq!(case.bus.act_on(Some(&group), id, MessageAction::Cancel).await.unwrap(), 1);
    assert_eq!(case.drain(&group).await, ["2"]);
}

pub async fn order_of_a_key_ignores_priority(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish(case.keyed("t", "first", "k")).await;
    case.publish(Message { priority: 9, ..case.keyed("t", "second", "k") }).await;
    let head = case.one(&group).await;
    assert_eq!(body(&head), "first");
    case.settle(&head, Outcome::Release).await.unwrap();
    let head = case.one(&group).await;
    assert_eq!(body(&head), "first");
    case.ack(&head).await;
    assert_eq!(case.drain(&group).await, ["second"]);
}

pub async fn groups_do_not_block_each_other(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let a = case.group("a", &[case.on("t")]).await;
    let b = case.group("b", &[case.on("t")]).await;
    case.publish(case.keyed("t", "1", "k")).await;
    case.publish(case.keyed("t", "2", "k")).await;
    let held = case.one(&a).await;
    assert_eq!(case.drain(&b).await, ["1"]);
    assert_eq!(case.drain(&b).await, ["2"]);
    assert!(case.claim(&a, 9).await.is_empty());
    case.ack(&held).await;
}
