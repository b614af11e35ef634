//! Unique keys: one message with the key per queue while it is there.

use eventbus::backend::{Message, Op, Outcome};

use super::{Case, Fixture};

fn unique(case: &Case<'_>, body: &str) -> Message {
    Message { unique: Some("job".into()), ..case.message("t", body) }
}

pub async fn a_second_with_the_key_is_dropped_while_one_is_there(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let first = case.publish(unique(&case, "1")).await;
    assert_eq!((first.duplicate, first.queues), (false, 1));
    let second = case.publish(unique(&case, "2")).await;
    assert_eq!((second.duplicate, second.queues), (false, 0));
    // Another group without one takes it; in flight counts as being there.
    let other = case.group("h", &[case.on("t")]).await;
    let held = case.one(&group).await;
    assert_eq!(case.publish(unique(&case, "3")).await.queues, 1);
    case.settle(&held, super::retry_after(super::LONG)).await.unwrap();
    assert_eq!(case.publish(unique(&case, "4")).await.queues, 0);
    assert_eq!(case.drain(&other).await, ["3"]);
    assert_eq!(case.stats(&group).await.accepted, 1);
}

pub async fn the_key_is_free_again_after_the_settle(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    for body in ["1", "2"] {
        assert_eq!(case.publish(unique(&case, body)).await.queues, 1);
        let delivery = case.one(&group).await;
        case.reject(&delivery, "no").await;
    }
    assert_eq!(case.publish(unique(&case, "3")).await.queues, 1);
    assert_eq!(case.bus.purge(&group).await.unwrap(), 1);
    assert_eq!(case.publish(unique(&case, "4")).await.queues, 1);
    assert_eq!(case.drain(&group).await, ["4"]);
}

pub async fn a_transaction_can_settle_and_publish_the_same_key(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish(unique(&case, "1")).await;
    let held = case.one(&group).await;
    let ack = Op::Settle(held.lease.clone(), Outcome::Ack);
    let ops = vec![
        Op::Publish(unique(&case, "too early")),
        ack,
        Op::Publish(unique(&case, "2")),
        Op::Publish(unique(&case, "too late")),
    ];
    let done = case.commit(ops).await.unwrap();
    assert_eq!(done.published.iter().map(|a| a.queues).collect::<Vec<_>>(), [0, 1, 0]);
    assert_eq!(case.drain(&group).await, ["2"]);
}
