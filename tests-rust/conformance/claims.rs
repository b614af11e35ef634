//! Claims, leases and fencing.

use std::time::Duration;

use eventbus::backend::{ClaimRequest, DeadReason, Message, Outcome};
use eventbus::error::Error;

use super::{Case, Fixture, LONG, TICK, bodies, body};

pub async fn a_claim_returns_what_was_published_in_order(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let ids = case.publish_all("t", &["1", "2", "3"]).await;
    let claimed = case.claim(&group, 10).await;
    assert_eq!(bodies(&claimed), ["1", "2", "3"]);
    for (delivery, id) in claimed.iter().zip(ids) {
        assert_eq!((delivery.lease.message, &delivery.lease.group), (id, &group));
        assert_eq!((delivery.attempts, delivery.crashes, delivery.priority), (0, 0, 0));
        assert!(delivery.lease_until > delivery.accepted_at);
    }
    assert!(case.claim(&group, 10).await.is_empty());
}

pub async fn a_claim_serves_only_the_named_bindings(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("a"), case.on("b"), case.like("c*")]).await;
    case.publish_all("a", &["1"]).await;
    case.publish_all("b", &["2"]).await;
    case.publish_all("cc", &["3"]).await;
    case.publish_all("a", &["4"]).await;
    let named =
        |bindings: Vec<_>| ClaimRequest { bindings: bindings.into(), ..case.request(&group, 10) };
    assert!(case.bus.claim(&named(vec![case.on("cc")])).await.unwrap().is_empty());
    let claimed = case.bus.claim(&named(vec![case.on("a"), case.like("c*")])).await.unwrap();
    assert_eq!(bodies(&claimed), ["1", "3", "4"]);
    assert_eq!(case.drain(&group).await, ["2"]);
}

pub async fn a_claim_takes_at_most_max(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("a"), case.on("b")]).await;
    case.publish_all("a", &["1", "2"]).await;
    case.publish_all("b", &["3", "4"]).await;
    assert_eq!(bodies(&case.claim(&group, 3).await), ["1", "2", "3"]);
    assert_eq!(bodies(&case.claim(&group, 3).await), ["4"]);
}

pub async fn two_claims_never_share_a_message(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    for n in 0..40 {
        case.publish(case.message("t", &n.to_string())).await;
    }
    let request = case.request(&group, 10);
    let claims = tokio::join!(
        case.bus.claim(&request),
        case.bus.claim(&request),
        case.bus.claim(&request),
        case.bus.claim(&request),
    );
    let mut all: Vec<_> = [claims.0, claims.1, claims.2, claims.3]
        .into_iter()
        .flat_map(|claimed| bodies(&claimed.unwrap()))
        .collect();
    all.extend(bodies(&case.claim(&group, 40).await));
    all.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(all, (0..40).map(|n| n.to_string()).collect::<Vec<_>>());
}

pub async fn tokens_are_unique_and_increase(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    let mut last = 0;
    for _ in 0..5 {
        let delivery = case.one(&group).await;
        assert!(delivery.lease.token > last);
        last = delivery.lease.token;
        case.settle(&delivery, Outcome::Release).await.unwrap();
    }
}

pub async fn a_lease_that_ended_is_delivered_again_and_counts_a_crash(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1", "2"]).await;
    let short = ClaimRequest { lease: TICK, ..case.request(&group, 1) };
    let first = case.bus.claim(&short).await.unwrap().remove(0);
    assert_eq!(body(&first), "1");
    case.advance(TICK * 2).await;
    // It has kept its place, but a server may be slow to take it back.
    let mut again = case.soon(&case.request(&group, 1)).await;
    if body(&again) == "2" {
        again = case.soon(&case.request(&group, 1)).await;
    }
    assert_eq!((body(&again).as_str(), again.crashes, again.attempts), ("1", 1, 0));
    assert!(again.lease.token > first.lease.token);
    assert_eq!(case.stats(&group).await.expired_leases, 1);
}

pub async fn a_stale_token_is_refused_and_changes_nothing(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    let short = ClaimRequest { lease: TICK, ..case.request(&group, 1) };
    let stale = case.bus.claim(&short).await.unwrap().remove(0);
    case.advance(TICK * 2).await;
    let current = case.soon(&case.request(&group, 1)).await;
    for outcome in [Outcome::Ack, Outcome::Release, super::retry_after(TICK)] {
        match case.settle(&stale, outcome).await {
            Err(Error::LeaseLost { group: named, token }) => {
                assert_eq!((named.as_str(), token), (&*group, stale.lease.token));
            }
            other => panic!("not refused: {other:?}"),
        }
    }
    let renewed = case.bus.renew(&[stale.lease.clone(), current.lease.clone()], LONG).await;
    assert!(matches!(renewed[0], Err(Error::LeaseLost { .. })) && renewed[1].is_ok());
    assert_eq!(case.stats(&group).await.in_flight, 1);
    case.ack(&current).await;
    let twice = case.settle(&current, Outcome::Ack).await;
    assert!(matches!(twice, Err(Error::LeaseLost { .. })), "{twice:?}");
}

pub async fn a_message_that_crashes_too_often_becomes_a_dead_letter(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish(case.keyed("t", "poison", "k")).await;
    case.publish(case.keyed("t", "next", "k")).await;
    let short = ClaimRequest { lease: TICK, max_deliveries: 2, ..case.request(&group, 1) };
    for crashes in 0..2 {
        let delivery = case.soon(&short).await;
        assert_eq!((body(&delivery).as_str(), delivery.crashes), ("poison", crashes));
        case.advance(TICK * 2).await;
    }
    assert_eq!(body(&case.soon(&short).await), "next");
    let letter = case.bus.dead_letters(&group, None, 9).await.unwrap().remove(0);
    assert_eq!((letter.reason, letter.crashes), (DeadReason::Crashed, 2));
    assert!(!letter.error.is_empty());
}

pub async fn a_crash_is_counted_and_frees_the_message_at_once(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish(case.keyed("t", "poison", "k")).await;
    case.publish(case.keyed("t", "next", "k")).await;
    let request = ClaimRequest { max_deliveries: 2, ..case.request(&group, 1) };
    for crashes in 0..2 {
        let delivery = case.bus.claim(&request).await.unwrap().remove(0);
        assert_eq!((body(&delivery).as_str(), delivery.crashes), ("poison", crashes));
        case.settle(&delivery, Outcome::Crash).await.unwrap();
        let twice = case.settle(&delivery, Outcome::Crash).await;
        assert!(matches!(twice, Err(Error::LeaseLost { .. })), "{twice:?}");
    }
    assert_eq!(body(&case.soon(&request).await), "next");
    let letter = case.bus.dead_letters(&group, None, 9).await.unwrap().remove(0);
    assert_eq!((letter.reason, letter.attempts, letter.crashes), (DeadReason::Crashed, 0, 2));
}

pub async fn a_release_counts_nothing_and_keeps_the_place(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1", "2", "3"]).await;
    let claimed = case.claim(&group, 2).await;
    case.settle(&claimed[1], Outcome::Release).await.unwrap();
    case.settle(&claimed[0], Outcome::Release).await.unwrap();
    let again = case.claim(&group, 3).await;
    assert_eq!(bodies(&again), ["1", "2", "3"]);
    assert!(again.iter().all(|delivery| delivery.crashes == 0 && delivery.attempts == 0));
}

pub async fn renewal_keeps_the_lease(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    let short = ClaimRequest { lease: TICK * 3, ..case.request(&group, 1) };
    let delivery = case.bus.claim(&short).await.unwrap().remove(0);
    for _ in 0..3 {
        case.advance(TICK).await;
        case.bus.renew(std::slice::from_ref(&delivery.lease), TICK * 3).await.remove(0).unwrap();
    }
    case.advance(TICK).await;
    assert!(case.claim(&group, 1).await.is_empty());
    case.ack(&delivery).await;
}

pub async fn a_claim_of_an_unknown_group_names_it(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let refused = case.bus.claim(&case.request(&case.topic("none"), 1)).await;
    assert!(matches!(refused, Err(Error::NotFound { what: "group", .. })), "{refused:?}");
}

pub async fn arguments_are_checked(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let request = case.request(&group, 1);
    for bad in [
        ClaimRequest { max: 0, ..request.clone() },
        ClaimRequest { max_deliveries: 0, ..request.clone() },
        ClaimRequest { lease: Duration::ZERO, ..request },
    ] {
        let refused = case.bus.claim(&bad).await;
        assert!(matches!(refused, Err(Error::InvalidArgument { .. })), "{bad:?}");
    }
}

pub async fn a_message_whose_time_to_live_ended_is_not_delivered(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let mortal = Message { expires_after: Some(TICK), ..case.keyed("t", "mortal", "k") };
    case.publish(mortal).await;
    case.publish(case.keyed("t", "next", "k")).await;
    case.advance(TICK * 2).await;
    assert_eq!(body(&case.soon(&case.request(&group, 1)).await), "next");
    let letters = case.bus.dead_letters(&group, None, 9).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].reason, &letters[0].body[..]), (DeadReason::Expired, &b"mortal"[..]));
    case.stats(&group).await;
}
