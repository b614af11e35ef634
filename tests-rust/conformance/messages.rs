//! Operations on what waits, by message id.

use eventbus::backend::{Due, Message, MessageAction, MessageState};

use super::{Case, Fixture, LONG, TICK, body};

pub async fn each_copy_is_found_by_its_id(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t"), case.like("t*")]).await;
    let message = Message { priority: 3, ..case.message("t", "m") };
    let id = message.id;
    case.publish(message).await;
    let delivery = case.one(&group).await;
    let found = case.bus.message(&group, id).await.unwrap();
    assert_eq!(found.len(), 2);
    let active = found.iter().find(|info| info.state == MessageState::Active).unwrap();
    assert_eq!((active.binding, active.at), (delivery.lease.binding, delivery.lease_until));
    let ready = found.iter().find(|info| info.state == MessageState::Ready).unwrap();
    assert_ne!(ready.binding, active.binding);
    assert_eq!((ready.message, &ready.group, &ready.topic), (id, &group, &case.topic("t")));
    assert_eq!((ready.attempts, ready.priority), (0, 3));
    case.ack(&delivery).await;
    assert_eq!(case.bus.message(&group, id).await.unwrap().len(), 1);
    case.drain(&group).await;
    assert!(case.bus.message(&group, id).await.unwrap().is_empty());
}

pub async fn a_waiting_message_can_be_cancelled_an_active_one_not(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let ids = case.publish_all("t", &["1", "2", "3"]).await;
    let held = case.one(&group).await;
    let late = Message { due: Due::After(LONG), ..case.message("t", "4") };
    let late_id = late.id;
    case.publish(late).await;
    for (id, changed) in [(ids[0], 0), (ids[1], 1), (ids[1], 0), (late_id, 1)] {
        let cancelled = case.bus.act_on(&group, id, MessageAction::Cancel).await.unwrap();
        assert_eq!(cancelled, changed);
    }
    case.ack(&held).await;
    assert_eq!(case.drain(&group).await, ["3"]);
    assert_eq!(case.stats(&group).await.removed, 2);
}

pub async fn a_delayed_message_can_be_promoted(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let late = Message { due: Due::After(LONG), ..case.message("t", "late") };
    let id = late.id;
    case.publish(late).await;
    case.publish_all("t", &["now"]).await;
    assert_eq!(case.bus.act_on(&group, id, MessageAction::Promote).await.unwrap(), 1);
    // What is ready already is not changed.
    assert_eq!(case.bus.act_on(&group, id, MessageAction::Promote).await.unwrap(), 0);
    assert_eq!(case.drain(&group).await, ["late", "now"]);
}

pub async fn a_message_can_be_rescheduled(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let ids = case.publish_all("t", &["1", "2"]).await;
    let now = case.one(&group).await.accepted_at;
    let tick = i64::try_from(TICK.as_micros()).unwrap();
    let later = MessageAction::Reschedule(now + 4 * tick);
    assert_eq!(case.bus.act_on(&group, ids[1], later).await.unwrap(), 1);
    let found = case.bus.message(&group, ids[1]).await.unwrap();
    assert_eq!((found[0].state, found[0].at), (MessageState::Delayed, now + 4 * tick));
    assert!(case.claim(&group, 9).await.is_empty());
    case.advance(TICK * 5).await;
    assert_eq!(body(&case.soon(&case.request(&group, 1)).await), "2");
}

pub async fn the_same_id_twice_is_two_messages(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let message = case.message("t", "m");
    for _ in 0..3 {
        case.publish(message.clone()).await;
    }
    let held = case.one(&group).await;
    assert_eq!(case.bus.message(&group, message.id).await.unwrap().len(), 3);
    assert_eq!(case.bus.act_on(&group, message.id, MessageAction::Cancel).await.unwrap(), 2);
    case.reject(&held, "no").await;
    assert!(case.bus.message(&group, message.id).await.unwrap().is_empty());
    assert_eq!(case.bus.retry_dead(&group, &[message.id]).await.unwrap(), 1);
    assert_eq!(case.drain(&group).await, ["m"]);
}
