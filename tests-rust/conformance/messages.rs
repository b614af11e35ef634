//! Operations on what waits, by event.

use std::collections::HashSet;

use eventbus::backend::{
    Due, EventKey, Message, MessageAction, MessageId, MessageState, Op, Outcome, Transaction,
    identity,
};

use super::{Case, Fixture, LONG, TICK, body, new_id};

/// Returns a message that carries an event once more.
fn once_more(case: &Case<'_>, event: EventKey, text: &str) -> Message {
    Message { id: identity::again(&event, &new_id()), event, ..case.message("t", text) }
}

pub async fn each_copy_is_found_by_its_id(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t"), case.like("t*")]).await;
    let message = Message { priority: 3, ..case.message("t", "m") };
    let id = message.id;
    case.publish(message).await;
    let delivery = case.one(&group).await;
    let found = case.bus.message(Some(&group), id).await.unwrap();
    assert_eq!(found.len(), 2);
    let active = found.iter().find(|info| info.state == MessageState::Active).unwrap();
    assert_eq!((active.binding, active.at), (delivery.lease.binding, delivery.lease_until));
    let ready = found.iter().find(|info| info.state == MessageState::Ready).unwrap();
    assert_ne!(ready.binding, active.binding);
    assert_eq!((ready.message, &ready.group, &ready.topic), (id, &group, &case.topic("t")));
    assert_eq!((ready.attempts, ready.priority), (0, 3));
    case.ack(&delivery).await;
    assert_eq!(case.bus.message(Some(&group), id).await.unwrap().len(), 1);
    case.drain(&group).await;
    assert!(case.bus.message(Some(&group), id).await.unwrap().is_empty());
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
        let cancelled = case.bus.act_on(Some(&group), id, MessageAction::Cancel).await.unwrap();
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
    assert_eq!(case.bus.act_on(Some(&group), id, MessageAction::Promote).await.unwrap(), 1);
    // What is ready already is not changed.
    assert_eq!(case.bus.act_on(Some(&group), id, MessageAction::Promote).await.unwrap(), 0);
    assert_eq!(case.drain(&group).await, ["late", "now"]);
}

pub async fn a_message_can_be_rescheduled(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let ids = case.publish_all("t", &["1", "2"]).await;
    let now = case.one(&group).await.accepted_at;
    let tick = i64::try_from(TICK.as_micros()).unwrap();
    let later = MessageAction::Reschedule(now + 4 * tick);
    assert_eq!(case.bus.act_on(Some(&group), ids[1], later).await.unwrap(), 1);
    let found = case.bus.message(Some(&group), ids[1]).await.unwrap();
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
    assert_eq!(case.bus.message(Some(&group), message.id).await.unwrap().len(), 3);
    assert_eq!(case.bus.act_on(Some(&group), message.id, MessageAction::Cancel).await.unwrap(), 2);
    case.reject(&held, "no").await;
    assert!(case.bus.message(Some(&group), message.id).await.unwrap().is_empty());
    assert_eq!(case.bus.retry_dead(&group, &[message.id]).await.unwrap(), 1);
    assert_eq!(case.drain(&group).await, ["m"]);
}

pub async fn every_publish_of_an_event_is_found_by_it(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let other = case.group("h", &[case.on("t"), case.like("t*")]).await;
    let (event, another) = (new_id(), new_id());
    let first = Message { id: event, event, ..case.message("t", "first") };
    let plain = once_more(&case, event, "plain");
    let late = Message { due: Due::After(LONG), ..once_more(&case, event, "late") };
    let ranked = Message { priority: 1, ..once_more(&case, event, "ranked") };
    let ids: Vec<MessageId> = [&first, &plain, &late, &ranked].map(|one| one.id).into();
    for message in [first, plain, late, ranked, once_more(&case, another, "another")] {
        case.publish(message).await;
    }
    let found = case.bus.message(Some(&group), event).await.unwrap();
    assert_eq!(found.iter().map(|info| info.message).collect::<Vec<_>>(), ids);
    let found = case.bus.message(None, event).await.unwrap();
    assert_eq!(found.len(), 12);
    assert!(found.is_sorted_by_key(|info| info.group.clone()));
    // A message's own id names it alone.
    let found = case.bus.message(None, ids[1]).await.unwrap();
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|info| info.message == ids[1]));
    assert_eq!(case.bus.act_on(Some(&other), event, MessageAction::Promote).await.unwrap(), 2);
    assert_eq!(case.bus.act_on(None, event, MessageAction::Cancel).await.unwrap(), 12);
    assert!(case.bus.message(None, event).await.unwrap().is_empty());
    assert_eq!(case.drain(&group).await, ["another"]);
    assert_eq!(case.drain(&other).await, ["another", "another"]);
    assert_eq!(case.bus.act_on(None, event, MessageAction::Cancel).await.unwrap(), 0);
}

pub async fn what_was_handled_released_or_buried_is_found_where_it_is(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let event = new_id();
    for text in ["acked", "dead", "released"] {
        case.publish(once_more(&case, event, text)).await;
    }
    let held = case.claim(&group, 3).await;
    assert_eq!(case.bus.act_on(None, event, MessageAction::Cancel).await.unwrap(), 0);
    assert_eq!(case.bus.message(None, event).await.unwrap().len(), 3);
    case.ack(&held[0]).await;
    case.reject(&held[1], "no").await;
    case.settle(&held[2], Outcome::Release).await.unwrap();
    let found = case.bus.message(None, event).await.unwrap();
    assert_eq!(found.iter().map(|info| info.message).collect::<Vec<_>>(), [held[2].lease.message]);
    assert_eq!(case.bus.act_on(None, event, MessageAction::Cancel).await.unwrap(), 1);
    // A dead letter is found again once it waits again.
    let letter = held[1].lease.message;
    assert_eq!(case.bus.retry_dead(&group, &[letter]).await.unwrap(), 1);
    assert_eq!(case.bus.message(None, event).await.unwrap()[0].message, letter);
    assert_eq!(case.bus.act_on(None, event, MessageAction::Cancel).await.unwrap(), 1);
    assert_eq!(case.stats(&group).await.removed, 2);
}

pub async fn many_publishes_of_an_event_are_all_acted_on(fixture: &dyn Fixture) {
    const MANY: u64 = 2_500;
    let case = Case::new(fixture).await;
    let groups = [case.group("g", &[case.on("t")]).await, case.group("h", &[case.on("t")]).await];
    let event = new_id();
    let mut ops = vec![Op::Publish(Message { id: event, event, ..case.message("t", "first") })];
    ops.extend((1..MANY).map(|_| Op::Publish(once_more(&case, event, "more"))));
    case.commit(ops).await.unwrap();
    let found = case.bus.message(None, event).await.unwrap();
    assert_eq!(found.len() as u64, 2 * MANY);
    let distinct: HashSet<_> = found.iter().map(|info| (&info.group, info.message)).collect();
    assert_eq!(distinct.len() as u64, 2 * MANY);
    let later = MessageAction::Reschedule(found[0].at + 3_600_000_000);
    assert_eq!(case.bus.act_on(None, event, later).await.unwrap(), 2 * MANY);
    assert_eq!(case.stats(&groups[1]).await.delayed, MANY);
    assert_eq!(case.bus.act_on(Some(&groups[0]), event, later).await.unwrap(), MANY);
    assert_eq!(case.bus.act_on(None, event, MessageAction::Promote).await.unwrap(), 2 * MANY);
    assert_eq!(case.claim(&groups[0], 7).await.len(), 7);
    assert_eq!(case.bus.act_on(None, event, MessageAction::Cancel).await.unwrap(), 2 * MANY - 7);
    assert_eq!(case.bus.message(None, event).await.unwrap().len(), 7);
}

pub async fn a_rescheduled_head_keeps_its_key(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let (head, next) = (new_id(), new_id());
    for (event, text) in [(head, "head"), (next, "next"), (new_id(), "last")] {
        let message = Message { key: Some("k".into()), ..once_more(&case, event, text) };
        case.publish(message).await;
    }
    let now = case.bus.message(None, head).await.unwrap()[0].at;
    let later = MessageAction::Reschedule(now + 3_600_000_000);
    assert_eq!(case.bus.act_on(None, head, later).await.unwrap(), 1);
    assert!(case.claim(&group, 9).await.is_empty());
    // Neither may what stands behind it go first by being made due.
    let due = MessageAction::Reschedule(1);
    assert_eq!(case.bus.act_on(None, next, due).await.unwrap(), 1);
    assert!(case.claim(&group, 9).await.is_empty());
    assert_eq!(case.bus.act_on(None, next, MessageAction::Cancel).await.unwrap(), 1);
    assert_eq!(case.bus.act_on(None, head, MessageAction::Promote).await.unwrap(), 1);
    assert_eq!(case.drain(&group).await, ["head"]);
    assert_eq!(case.drain(&group).await, ["last"]);
}

pub async fn a_cancelled_message_gives_its_unique_key_back(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let unique = |text| Message { unique: Some("u".into()), ..once_more(&case, [5; 16], text) };
    case.publish(unique("first")).await;
    case.publish(unique("dropped")).await;
    assert_eq!(case.bus.act_on(None, [5; 16], MessageAction::Cancel).await.unwrap(), 1);
    case.publish(unique("second")).await;
    assert_eq!(case.drain(&group).await, ["second"]);
}

pub async fn a_message_is_either_cancelled_or_handled(fixture: &dyn Fixture) {
    const MANY: usize = 60;
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let events: Vec<EventKey> = (0..MANY).map(|_| new_id()).collect();
    let message = |(n, event): (usize, &EventKey)| {
        let id = if n % 2 == 0 { *event } else { identity::again(event, &new_id()) };
        let key = (n % 3 == 0).then(|| format!("k{n}").into());
        Op::Publish(Message { id, event: *event, key, ..case.message("t", &n.to_string()) })
    };
    case.commit(events.iter().enumerate().map(message).collect()).await.unwrap();
    let claimer = tokio::spawn({
        let (bus, request) = (case.bus.clone(), case.request(&group, 2));
        async move {
            let mut handled = HashSet::new();
            loop {
                let claimed = bus.claim(&request).await.unwrap();
                if claimed.is_empty() {
                    return handled;
                }
                let ack = |one: &eventbus::backend::Delivery| {
                    Transaction::settle(one.lease.clone(), Outcome::Ack)
                };
                let acks = bus.commit(claimed.iter().map(ack).collect()).await;
                assert!(acks.iter().all(Result::is_ok), "{acks:?}");
                handled.extend(claimed.iter().map(|one| body(one).parse::<usize>().unwrap()));
                tokio::task::yield_now().await;
            }
        }
    });
    let mut cancelled = HashSet::new();
    for (n, event) in events.iter().enumerate().rev() {
        if case.bus.act_on(None, *event, MessageAction::Cancel).await.unwrap() == 1 {
            cancelled.insert(n);
        }
    }
    let handled = claimer.await.unwrap();
    assert!(handled.is_disjoint(&cancelled), "{:?}", handled.intersection(&cancelled));
    assert_eq!(handled.len() + cancelled.len(), MANY);
    let stats = case.stats(&group).await;
    assert_eq!((stats.acked, stats.removed), (handled.len() as u64, cancelled.len() as u64));
}
