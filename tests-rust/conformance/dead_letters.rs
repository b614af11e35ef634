//! Dead letters.

use eventbus::backend::{ClaimRequest, DeadReason, MAX_ERROR_BYTES, Message, Outcome};

use super::{Case, Fixture, TICK, dead, new_id, retry_after};

pub async fn a_dead_letter_keeps_everything(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let ids = case.publish_all("t", &["raw \u{0} body"]).await;
    let delivery = case.one(&group).await;
    case.settle(&delivery, retry_after(std::time::Duration::ZERO)).await.unwrap();
    let delivery = case.one(&group).await;
    case.reject(&delivery, "TypeError: no").await;
    let letters = case.bus.dead_letters(&group, None, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((letter.message, &letter.group, &letter.topic), (ids[0], &group, &case.topic("t")));
    assert_eq!((&letter.body[..], letter.error.as_str()), (&b"raw \0 body"[..], "TypeError: no"));
    assert_eq!((letter.reason, letter.attempts, letter.crashes), (DeadReason::Rejected, 1, 0));
    assert!(letter.died_at >= delivery.accepted_at);
    assert_eq!(case.stats(&group).await.dead, 1);
    assert!(case.claim(&group, 1).await.is_empty());
}

async fn bury(case: &Case<'_>, group: &std::sync::Arc<str>, bodies: &[&str]) -> Vec<[u8; 16]> {
    let ids = case.publish_all("t", bodies).await;
    for _ in bodies {
        let delivery = case.one(group).await;
        case.reject(&delivery, "no").await;
    }
    ids
}

pub async fn they_are_listed_in_pages_oldest_first(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let ids = bury(&case, &group, &["1", "2", "3", "4", "5"]).await;
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = case.bus.dead_letters(&group, after, 2).await.unwrap();
        assert!(page.len() <= 2);
        let Some(last) = page.last() else { break };
        after = Some(last.message);
        seen.extend(page.iter().map(|letter| letter.message));
    }
    assert_eq!(seen, ids);
}

pub async fn one_can_be_retried_with_fresh_counters(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let message = Message { priority: 4, ..case.keyed("t", "x", "k") };
    let id = message.id;
    case.publish(message).await;
    let delivery = case.one(&group).await;
    case.settle(&delivery, dead(DeadReason::Failed, "boom")).await.unwrap();
    let waiting = case.publish_all("t", &["other"]).await;
    assert_eq!(case.bus.retry_dead(&group, &[id, new_id(), waiting[0]]).await.unwrap(), 1);
    assert_eq!(case.bus.retry_dead(&group, &[id]).await.unwrap(), 0);
    let again = case.one(&group).await;
    assert_eq!((again.lease.message, again.attempts, again.crashes), (id, 0, 0));
    assert_eq!((again.priority, again.key.as_deref()), (4, Some("k")));
    let stats = case.stats(&group).await;
    assert_eq!((stats.dead, stats.in_flight, stats.ready), (0, 1, 1));
}

pub async fn one_can_be_discarded(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let ids = bury(&case, &group, &["1", "2"]).await;
    assert_eq!(case.bus.discard_dead(&group, &[ids[0], new_id()]).await.unwrap(), 1);
    assert_eq!(case.bus.discard_dead(&group, &[ids[0]]).await.unwrap(), 0);
    let left = case.bus.dead_letters(&group, None, 9).await.unwrap();
    assert_eq!(left.iter().map(|letter| letter.message).collect::<Vec<_>>(), [ids[1]]);
    assert_eq!(case.stats(&group).await.removed, 1);
}

pub async fn a_long_error_is_cut_between_characters(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    let delivery = case.one(&group).await;
    let error = format!("x{}", "€".repeat(MAX_ERROR_BYTES));
    case.reject(&delivery, &error).await;
    let letter = case.bus.dead_letters(&group, None, 1).await.unwrap().remove(0);
    assert!(letter.error.len() <= MAX_ERROR_BYTES && letter.error.len() > MAX_ERROR_BYTES - 3);
    assert!(error.starts_with(&letter.error));
}

pub async fn failed_counts_the_last_attempt_and_rejected_does_not(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1", "2"]).await;
    for reason in [DeadReason::Failed, DeadReason::Undecodable] {
        let delivery = case.one(&group).await;
        case.settle(&delivery, dead(reason, "e")).await.unwrap();
        // Deaths in one instant have no order by time.
        case.advance(TICK / 10).await;
    }
    let letters = case.bus.dead_letters(&group, None, 9).await.unwrap();
    let seen: Vec<_> = letters.iter().map(|letter| (letter.reason, letter.attempts)).collect();
    assert_eq!(seen, [(DeadReason::Failed, 1), (DeadReason::Undecodable, 0)]);
}

pub async fn what_the_store_decided_is_told_once(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    assert!(case.bus.dead_news(&group).await.unwrap().is_empty());
    let rejected = bury(&case, &group, &["rejected"]).await;
    let undecodable = case.publish_all("t", &["undecodable"]).await;
    let delivery = case.one(&group).await;
    case.settle(&delivery, dead(DeadReason::Undecodable, "no message")).await.unwrap();
    let short = Message { expires_after: Some(TICK), ..case.message("t", "expired") };
    let expired = short.id;
    case.publish(short).await;
    case.advance(TICK * 2).await;
    let news = case.bus.dead_news(&group).await.unwrap();
    let told: Vec<_> = news.iter().map(|letter| (letter.message, letter.reason)).collect();
    assert_eq!(
        told,
        [(undecodable[0], DeadReason::Undecodable), (expired, DeadReason::Expired)],
        "not {rejected:?}: its handler knows"
    );
    assert_eq!((&*news[0].topic, news[0].error.as_str()), (&*case.topic("t"), "no message"));
    assert_eq!((&news[1].body[..], &news[1].group), (&b"expired"[..], &group));
    assert!(case.bus.dead_news(&group).await.unwrap().is_empty());
    assert_eq!(case.bus.dead_letters(&group, None, 9).await.unwrap().len(), 3);
}

pub async fn what_crashed_is_told_once(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let ids = case.publish_all("t", &["poison"]).await;
    let request = ClaimRequest { max_deliveries: 1, ..case.request(&group, 1) };
    let delivery = case.bus.claim(&request).await.unwrap().remove(0);
    case.settle(&delivery, Outcome::Crash).await.unwrap();
    assert!(case.bus.claim(&request).await.unwrap().is_empty());
    let news = case.bus.dead_news(&group).await.unwrap();
    let told: Vec<_> = news.iter().map(|letter| (letter.message, letter.reason)).collect();
    assert_eq!(told, [(ids[0], DeadReason::Crashed)]);
    assert!(case.bus.dead_news(&group).await.unwrap().is_empty());
}
