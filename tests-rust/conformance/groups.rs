//! Groups: what they are bound to, and what changes that.

use eventbus::backend::{GroupSpec, MessageAction, Outcome};
use eventbus::error::{Error, Result};

use super::{Case, Fixture, new_id};

pub async fn each_group_gets_one_copy_per_matching_binding(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let a = case.group("a", &[case.on("x:y"), case.like("x:*")]).await;
    let b = case.group("b", &[case.like("*")]).await;
    let c = case.group("c", &[case.on("x")]).await;
    assert_eq!(case.publish(case.message("x:y", "m")).await.queues, 3);
    assert_eq!(case.drain(&a).await, ["m", "m"]);
    assert_eq!(case.drain(&b).await, ["m"]);
    assert!(case.drain(&c).await.is_empty());
}

pub async fn a_group_sees_only_what_comes_after_its_binding(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    case.publish_all("t", &["before"]).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["after"]).await;
    assert_eq!(case.drain(&group).await, ["after"]);
}

pub async fn declaring_again_adds_bindings_and_keeps_messages(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("a")]).await;
    case.publish_all("a", &["1"]).await;
    case.group("g", &[case.on("b"), case.on("a")]).await;
    case.publish_all("a", &["2"]).await;
    case.publish_all("b", &["3"]).await;
    assert_eq!(case.drain(&group).await, ["1", "2", "3"]);
}

pub async fn has_queue_follows_the_bindings(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    assert!(!case.bus.has_queue(&case.topic("a:b")));
    let group = case.group("g", &[case.like("a:?")]).await;
    assert!(case.bus.has_queue(&case.topic("a:b")));
    case.bus.delete_group(&group).await.unwrap();
    assert_eq!(case.publish(case.message("a:b", "m")).await.queues, 0);
}

pub async fn unbind_removes_what_waits_and_leaves_what_is_in_flight(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("a"), case.on("b")]).await;
    case.publish_all("a", &["1", "2", "3", "4"]).await;
    case.publish_all("b", &["5"]).await;
    let claimed = case.claim(&group, 2).await;
    assert_eq!(case.bus.unbind(&group, &[case.on("a"), case.on("none")]).await.unwrap(), 2);
    case.publish_all("a", &["6"]).await;
    // What is in flight can be settled; what would return has no place to return to.
    case.ack(&claimed[0]).await;
    case.settle(&claimed[1], Outcome::Release).await.unwrap();
    assert_eq!(case.drain(&group).await, ["5"]);
    let stats = case.stats(&group).await;
    assert_eq!((stats.acked, stats.removed), (2, 3));
    case.group("g", &[case.on("a")]).await;
    case.publish_all("a", &["7"]).await;
    assert_eq!(case.drain(&group).await, ["7"]);
}

pub async fn delete_says_what_it_removed(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1", "2", "3"]).await;
    let delivery = case.one(&group).await;
    assert_eq!(case.bus.delete_group(&group).await.unwrap(), 3);
    let late = case.settle(&delivery, Outcome::Ack).await;
    assert!(matches!(late, Err(Error::LeaseLost { .. })), "{late:?}");
    // A group of the same name is a new one.
    case.group("g", &[case.on("t")]).await;
    assert!(case.claim(&group, 9).await.is_empty());
    assert_eq!(case.stats(&group).await.accepted, 0);
    let late = case.settle(&delivery, Outcome::Ack).await;
    assert!(matches!(late, Err(Error::LeaseLost { .. })), "{late:?}");
}

pub async fn purge_leaves_what_is_in_flight(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    for body in ["1", "2", "3"] {
        case.publish(case.keyed("t", body, "k")).await;
    }
    case.publish_all("t", &["4", "5"]).await;
    let claimed = case.claim(&group, 2).await;
    assert_eq!(case.bus.purge(&group).await.unwrap(), 3);
    for delivery in &claimed {
        case.ack(delivery).await;
    }
    let stats = case.stats(&group).await;
    assert_eq!((stats.ready, stats.in_flight, stats.removed, stats.acked), (0, 0, 3, 2));
    case.publish(case.keyed("t", "6", "k")).await;
    assert_eq!(case.drain(&group).await, ["6"]);
}

pub async fn a_paused_group_gives_nothing_until_resumed(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1", "2"]).await;
    let delivery = case.one(&group).await;
    case.bus.pause(&group, true).await.unwrap();
    assert!(case.claim(&group, 9).await.is_empty());
    assert!(case.stats(&group).await.paused);
    case.ack(&delivery).await;
    case.publish_all("t", &["3"]).await;
    case.bus.pause(&group, false).await.unwrap();
    assert_eq!(case.drain(&group).await, ["2", "3"]);
}

pub async fn an_invalid_name_is_refused(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    for name in ["", "a\nb", &"x".repeat(256)] {
        let spec = GroupSpec { name: name.into(), bindings: vec![], max_length: None };
        let refused = case.bus.declare_group(spec).await;
        assert!(matches!(refused, Err(Error::Topic { what: "group", .. })), "{refused:?}");
    }
    let spec = GroupSpec { name: case.topic("g"), bindings: vec![], max_length: Some(0) };
    let refused = case.bus.declare_group(spec).await;
    assert!(matches!(refused, Err(Error::InvalidArgument { .. })), "{refused:?}");
}

pub async fn every_operation_names_an_unknown_group(fixture: &dyn Fixture) {
    fn check<T>(result: Result<T>, group: &str) {
        match result {
            Err(Error::NotFound { what: "group", name }) => assert_eq!(name, group),
            other => panic!("not refused: {:?}", other.err()),
        }
    }
    let case = Case::new(fixture).await;
    let g = &case.topic("none");
    check(case.bus.unbind(g, &[case.on("t")]).await, g);
    check(case.bus.delete_group(g).await, g);
    check(case.bus.purge(g).await, g);
    check(case.bus.pause(g, true).await, g);
    check(case.bus.wait_ready(&case.request(g, 1)).await, g);
    check(case.bus.message(Some(g), new_id()).await, g);
    check(case.bus.act_on(Some(g), new_id(), MessageAction::Cancel).await, g);
    check(case.bus.dead_letters(g, None, 1).await, g);
    check(case.bus.retry_dead(g, &[new_id()]).await, g);
    check(case.bus.discard_dead(g, &[new_id()]).await, g);
}
