//! The length limit of a group.

use eventbus::backend::{Due, Message, Op, Outcome};
use eventbus::error::Error;

use super::{Case, Fixture, LONG, put};

pub async fn a_full_group_is_named_and_nothing_is_stored_anywhere(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let open = case.group("open", &[case.on("t")]).await;
    let full = case.limited("full", &[case.on("t")], Some(3)).await;
    // Ready, delayed and in flight all count.
    case.publish_all("t", &["1", "2"]).await;
    let held = case.one(&full).await;
    case.publish(Message { due: Due::After(LONG), ..case.message("t", "3") }).await;
    match case.commit(vec![Op::Publish(case.message("t", "4"))]).await {
        Err(Error::QueueFull { queue, limit }) => assert_eq!((queue.as_str(), limit), (&*full, 3)),
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(case.drain(&open).await, ["1", "2"]);
    case.ack(&held).await;
    case.publish_all("t", &["5"]).await;
    assert_eq!(case.drain(&full).await, ["2", "5"]);
    // A limit stays until another is given.
    case.group("full", &[]).await;
    case.publish_all("t", &["6", "7"]).await;
    assert!(case.commit(vec![Op::Publish(case.message("t", "8"))]).await.is_err());
    case.limited("full", &[], Some(4)).await;
    case.publish_all("t", &["9"]).await;
}

pub async fn an_acknowledged_message_makes_room_in_the_same_transaction(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.limited("g", &[case.on("t")], Some(1)).await;
    case.publish_all("t", &["1"]).await;
    let held = case.one(&group).await;
    let ack = || Op::Settle(held.lease.clone(), Outcome::Ack);
    let next = || Op::Publish(case.message("t", "2"));
    let early = case.commit(vec![next(), ack()]).await;
    assert!(matches!(early, Err(Error::QueueFull { .. })), "{early:?}");
    case.commit(vec![ack(), next()]).await.unwrap();
    assert_eq!(case.drain(&group).await, ["2"]);
}

pub async fn one_transaction_cannot_overfill_a_group(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.limited("g", &[case.on("t"), case.like("t*")], Some(3)).await;
    let key = case.key("k");
    let ops = || ["1", "2"].map(|body| Op::Publish(case.message("t", body)));
    let refused = case.commit([put(&key, "v", None)].into_iter().chain(ops()).collect()).await;
    assert!(matches!(refused, Err(Error::QueueFull { .. })), "{refused:?}");
    assert!(case.bus.read(&[key]).await.unwrap()[0].is_none());
    assert_eq!(case.stats(&group).await.accepted, 0);
    case.publish_all("t", &["1"]).await;
    assert!(case.commit(ops()[..1].to_vec()).await.is_err());
    assert_eq!(case.drain(&group).await.len(), 2);
}
