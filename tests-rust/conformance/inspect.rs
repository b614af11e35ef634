//! The figures of a bus.

use eventbus::backend::{Due, Message, MessageAction, Outcome};

use super::{Case, Fixture, LONG, TICK, put, retry_after};

pub async fn the_figures_add_up_through_a_life(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let ids = case.publish_all("t", &["1", "2", "3", "4", "5", "6"]).await;
    case.publish(Message { due: Due::After(LONG), ..case.message("t", "late") }).await;
    let claimed = case.claim(&group, 4).await;
    let stats = case.stats(&group).await;
    assert_eq!((stats.ready, stats.delayed, stats.in_flight), (2, 1, 4));
    case.ack(&claimed[0]).await;
    case.settle(&claimed[1], retry_after(LONG)).await.unwrap();
    case.reject(&claimed[2], "no").await;
    case.settle(&claimed[3], Outcome::Release).await.unwrap();
    case.bus.act_on(Some(&group), ids[5], MessageAction::Cancel).await.unwrap();
    let stats = case.stats(&group).await;
    assert_eq!((stats.ready, stats.delayed, stats.in_flight, stats.dead), (2, 2, 0, 1));
    assert_eq!((stats.accepted, stats.acked, stats.retried, stats.removed), (7, 1, 1, 1));
    case.bus.retry_dead(&group, &[ids[2]]).await.unwrap();
    assert_eq!(case.stats(&group).await.ready, 3);
    case.commit(vec![put(&case.key("r"), "v", None)]).await.unwrap();
    let all = case.bus.inspect().await.unwrap();
    assert_eq!(all.backend, case.bus.capabilities().name);
    assert!(all.published >= 7 && all.records >= 1);
}

pub async fn the_age_of_the_oldest_counts_also_behind_a_key(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    assert!(case.stats(&group).await.oldest_age.abs() < f64::EPSILON);
    case.publish(case.keyed("t", "head", "k")).await;
    case.publish(case.keyed("t", "blocked", "k")).await;
    let head = case.one(&group).await;
    case.advance(TICK).await;
    case.publish_all("t", &["young"]).await;
    let age = case.stats(&group).await.oldest_age;
    assert!(age >= TICK.as_secs_f64() && age < TICK.as_secs_f64() + 10.0, "{age}");
    case.ack(&head).await;
    assert_eq!(case.drain(&group).await, ["blocked", "young"]);
    assert!(case.stats(&group).await.oldest_age.abs() < f64::EPSILON);
}

pub async fn groups_are_listed_by_name_with_their_bindings(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let b = case.group("b", &[case.on("x"), case.like("y*")]).await;
    let a = case.group("a", &[]).await;
    let all = case.bus.inspect().await.unwrap().groups;
    let mine: Vec<_> = all.iter().filter(|group| group.group == *a || group.group == *b).collect();
    assert_eq!((mine[0].group.as_str(), mine[1].group.as_str()), (&*a, &*b));
    let expected = [case.topic("x"), case.topic("y*")].map(|text| text.to_string());
    assert_eq!(mine[1].bindings, expected);
}
