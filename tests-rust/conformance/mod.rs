//! The conformance suite: what every backend must do, one file per noun, run unmodified over each.
//!
//! A backend gives a [`Fixture`] and writes `conformance!(its_fixture)`; that stamps one test per
//! case. Cases use names of their own, so they may run in parallel against one server, and short
//! times, because on a server `advance` really sleeps.

pub mod broadcast;
pub mod claims;
pub mod close;
pub mod dead_letters;
pub mod dedup;
pub mod delay;
pub mod groups;
pub mod inspect;
pub mod keys;
pub mod limits;
pub mod messages;
pub mod priority;
pub mod publish;
pub mod records;
pub mod replay;
pub mod retry;
pub mod transactions;
pub mod unique;
pub mod waiting;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use eventbus::backend::{
    Accepted, Backend, ClaimRequest, Committed, DeadReason, Delivery, Due, GroupSpec, GroupStats,
    Message, MessageId, Op, Outcome, Transaction,
};
use eventbus::error::Result;
use eventbus::topic::{Binding, Pattern};

/// Stamps every case of the suite as a test over the given fixture expression.
#[macro_export]
macro_rules! conformance {
    ($fixture:expr) => {
        $crate::stamp! { $fixture;
            broadcast {
                listeners_receive_in_order_what_matches_once,
                what_is_published_before_listening_is_not_received,
                a_full_buffer_drops_the_oldest_and_says_so,
                a_full_buffer_drops_the_newest_and_says_where,
                a_full_buffer_can_end_the_listener,
                a_message_not_for_broadcast_is_not_heard,
                a_cancelled_next_loses_nothing,
                replay_is_refused_where_it_is_not_supported,
            }
            claims {
                a_claim_returns_what_was_published_in_order,
                a_claim_serves_only_the_named_bindings,
                a_claim_takes_at_most_max,
                two_claims_never_share_a_message,
                tokens_are_unique_and_increase,
                a_lease_that_ended_is_delivered_again_and_counts_a_crash,
                a_stale_token_is_refused_and_changes_nothing,
                a_message_that_crashes_too_often_becomes_a_dead_letter,
                a_crash_is_counted_and_frees_the_message_at_once,
                a_release_counts_nothing_and_keeps_the_place,
                renewal_keeps_the_lease,
                a_claim_of_an_unknown_group_names_it,
                arguments_are_checked,
                a_message_whose_time_to_live_ended_is_not_delivered,
            }
            close { after_close_everything_is_refused, close_ends_listeners_and_waits }
            dead_letters {
                what_the_store_decided_is_told_once,
                what_crashed_is_told_once,
                a_dead_letter_keeps_everything,
                they_are_listed_in_pages_oldest_first,
                one_can_be_retried_with_fresh_counters,
                one_can_be_discarded,
                a_long_error_is_cut_between_characters,
                failed_counts_the_last_attempt_and_rejected_does_not,
            }
            dedup {
                a_second_publish_inside_the_window_is_accepted_and_dropped,
                the_scope_is_the_topic,
                a_failed_transaction_remembers_no_id,
                a_transaction_sees_its_own_ids,
                the_same_message_id_never_deduplicates,
            }
            delay {
                a_delayed_message_is_claimed_when_due,
                a_time_in_the_past_is_due_at_once,
                a_delayed_message_is_not_broadcast,
            }
            groups {
                each_group_gets_one_copy_per_matching_binding,
                a_group_sees_only_what_comes_after_its_binding,
                declaring_again_adds_bindings_and_keeps_messages,
                has_queue_follows_the_bindings,
                unbind_removes_what_waits_and_leaves_what_is_in_flight,
                delete_says_what_it_removed,
                purge_leaves_what_is_in_flight,
                a_paused_group_gives_nothing_until_resumed,
                an_invalid_name_is_refused,
                every_operation_names_an_unknown_group,
            }
            inspect {
                the_figures_add_up_through_a_life,
                the_age_of_the_oldest_counts_also_behind_a_key,
                groups_are_listed_by_name_with_their_bindings,
            }
            keys {
                one_of_a_key_is_in_flight_at_a_time,
                other_keys_go_on,
                a_retrying_head_blocks_its_key,
                a_delayed_head_blocks_its_key,
                a_dead_head_lets_the_next_go,
                a_cancelled_head_lets_the_next_go,
                order_of_a_key_ignores_priority,
                groups_do_not_block_each_other,
            }
            limits {
                a_full_group_is_named_and_nothing_is_stored_anywhere,
                an_acknowledged_message_makes_room_in_the_same_transaction,
                one_transaction_cannot_overfill_a_group,
            }
            messages {
                each_copy_is_found_by_its_id,
                a_waiting_message_can_be_cancelled_an_active_one_not,
                a_delayed_message_can_be_promoted,
                a_message_can_be_rescheduled,
                the_same_id_twice_is_two_messages,
                every_publish_of_an_event_is_found_by_it,
                what_was_handled_released_or_buried_is_found_where_it_is,
                many_publishes_of_an_event_are_all_acted_on,
                a_rescheduled_head_keeps_its_key,
                a_cancelled_message_gives_its_unique_key_back,
                a_message_is_either_cancelled_or_handled,
            }
            priority { higher_goes_first_strictly_then_older, it_is_compared_across_bindings }
            publish {
                a_topic_without_group_stores_nothing,
                a_batch_is_stored_in_order,
                bodies_arrive_unchanged,
            }
            records {
                versions_start_at_one_and_count_writes,
                a_version_is_never_used_again,
                preconditions_are_checked_by_name,
                a_time_to_live_ends_a_record,
                a_new_value_replaces_the_time_to_live,
                a_scan_is_ordered_and_paged,
                keys_with_odd_characters_are_scanned_exactly,
            }
            replay {
                what_is_kept_comes_first_then_what_is_live,
                since_an_event_a_time_or_a_position,
                a_cut_by_count_is_a_gap_first,
                a_cut_by_age_is_a_gap_first,
                what_is_unknown_is_a_gap_first,
                a_slow_listener_loses_nothing,
                one_that_is_overtaken_is_told,
                what_was_refused_or_not_heard_is_not_kept,
                many_join_while_many_publish,
                a_dropped_or_closed_listener_ends,
            }
            retry {
                a_retry_counts_an_attempt_and_waits,
                a_retry_at_once_is_first_again,
            }
            transactions {
                settle_publish_and_write_together,
                a_stale_token_undoes_all,
                a_failed_precondition_undoes_all,
                later_steps_see_earlier_ones,
                neighbours_in_a_batch_are_independent,
                one_delivery_is_settled_once,
            }
            unique {
                a_second_with_the_key_is_dropped_while_one_is_there,
                the_key_is_free_again_after_the_settle,
                a_transaction_can_settle_and_publish_the_same_key,
            }
            waiting {
                a_wait_ends_when_a_message_comes,
                a_wait_ends_when_a_message_becomes_due,
                a_wait_ends_when_a_lease_runs_out,
                a_wait_ends_when_the_group_is_resumed,
                a_wait_ends_when_the_group_is_deleted,
                a_cancelled_wait_takes_no_wake_up_along,
            }
        }
    };
}

/// The worker of [`conformance!`].
#[macro_export]
macro_rules! stamp {
    ($fixture:expr; $($noun:ident { $($case:ident),* $(,)? })*) => {
        $(mod $noun {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    let fixture = $fixture;
                    $crate::conformance::$noun::$case(&fixture).await;
                }
            )*
        })*
    };
}

/// What a backend gives the suite.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// Returns a fresh backend: an empty one, or a fresh prefix on a server.
    async fn backend(&self) -> Arc<dyn Backend>;

    /// Returns another one that keeps broadcasts for so long, and so many.
    async fn keeping(&self, age: Option<Duration>, most: Option<u64>) -> Arc<dyn Backend>;

    /// Lets time pass by the backend's clock.
    async fn advance(&self, by: Duration);
}

/// A time that a server test can afford to sleep; shorter ones drown in the noise.
pub const TICK: Duration = Duration::from_millis(300);

/// A lease that never ends inside a case.
pub const LONG: Duration = Duration::from_secs(300);

/// How long a server may take until what is due shows.
const PATIENCE: Duration = Duration::from_secs(10);

/// One case: a fresh backend and names of its own.
pub struct Case<'a> {
    pub fixture: &'a dyn Fixture,
    pub bus: Arc<dyn Backend>,
    tag: String,
}

impl<'a> Case<'a> {
    pub async fn new(fixture: &'a dyn Fixture) -> Case<'a> {
        let tag = uuid::Uuid::new_v4().simple().to_string();
        Case { fixture, bus: fixture.backend().await, tag }
    }

    /// A case whose backend keeps broadcasts.
    pub async fn keeping(
        fixture: &'a dyn Fixture,
        age: Option<Duration>,
        most: Option<u64>,
    ) -> Case<'a> {
        let tag = uuid::Uuid::new_v4().simple().to_string();
        Case { fixture, bus: fixture.keeping(age, most).await, tag }
    }

    /// Returns a topic of this case.
    pub fn topic(&self, name: &str) -> Arc<str> {
        format!("{}:{name}", self.tag).into()
    }

    pub fn on(&self, name: &str) -> Binding {
        Binding::Topic(self.topic(name))
    }

    pub fn like(&self, pattern: &str) -> Binding {
        Binding::Pattern(Pattern::new(&self.topic(pattern)))
    }

    pub fn key(&self, name: &str) -> Arc<str> {
        self.topic(name)
    }

    /// Declares a group of this case.
    pub async fn group(&self, name: &str, bindings: &[Binding]) -> Arc<str> {
        self.limited(name, bindings, None).await
    }

    pub async fn limited(&self, name: &str, bindings: &[Binding], max: Option<u64>) -> Arc<str> {
        let name = self.topic(name);
        let bindings = bindings.to_vec();
        let spec = GroupSpec { name: name.clone(), bindings, max_length: max };
        self.bus.declare_group(spec).await.unwrap();
        name
    }

    /// Returns a message for a topic of this case; its body is its name.
    pub fn message(&self, topic: &str, body: &str) -> Message {
        let id = new_id();
        Message {
            id,
            topic: self.topic(topic),
            body: Bytes::copy_from_slice(body.as_bytes()),
            key: None,
            priority: 0,
            due: Due::Now,
            expires_after: None,
            dedup_id: None,
            unique: None,
            broadcast: true,
            event: id,
        }
    }

    pub fn keyed(&self, topic: &str, body: &str, key: &str) -> Message {
        Message { key: Some(key.into()), ..self.message(topic, body) }
    }

    pub async fn commit(&self, ops: Vec<Op>) -> Result<Committed> {
        let mut results = self.bus.commit(vec![Transaction { ops }]).await;
        assert_eq!(results.len(), 1);
        results.remove(0)
    }

    pub async fn publish(&self, message: Message) -> Accepted {
        self.commit(vec![Op::Publish(message)]).await.unwrap().published[0]
    }

    /// Publishes plain messages on one topic, in order; returns their ids.
    pub async fn publish_all(&self, topic: &str, bodies: &[&str]) -> Vec<MessageId> {
        let mut ids = Vec::new();
        for body in bodies {
            let message = self.message(topic, body);
            ids.push(message.id);
            self.publish(message).await;
        }
        ids
    }

    pub fn request(&self, group: &Arc<str>, max: usize) -> ClaimRequest {
        ClaimRequest {
            group: group.clone(),
            bindings: [].into(),
            max,
            lease: LONG,
            max_deliveries: 5,
        }
    }

    pub async fn claim(&self, group: &Arc<str>, max: usize) -> Vec<Delivery> {
        self.bus.claim(&self.request(group, max)).await.unwrap()
    }

    /// Claims exactly one.
    pub async fn one(&self, group: &Arc<str>) -> Delivery {
        let mut claimed = self.claim(group, 1).await;
        assert_eq!(claimed.len(), 1, "nothing to claim");
        claimed.remove(0)
    }

    /// Claims one that is due, however long the backend takes to notice.
    pub async fn soon(&self, request: &ClaimRequest) -> Delivery {
        let one = ClaimRequest { max: 1, ..request.clone() };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(delivery) = self.bus.claim(&one).await.unwrap().pop() {
                return delivery;
            }
            assert!(tokio::time::Instant::now() < deadline, "nothing to claim in {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn settle(&self, delivery: &Delivery, outcome: Outcome) -> Result<Committed> {
        self.commit(vec![Op::Settle(delivery.lease.clone(), outcome)]).await
    }

    pub async fn ack(&self, delivery: &Delivery) {
        self.settle(delivery, Outcome::Ack).await.unwrap();
    }

    pub async fn reject(&self, delivery: &Delivery, error: &str) {
        self.settle(delivery, dead(DeadReason::Rejected, error)).await.unwrap();
    }

    pub async fn advance(&self, by: Duration) {
        self.fixture.advance(by).await;
    }

    /// Returns the figures of a group after checking that they add up.
    pub async fn stats(&self, group: &str) -> GroupStats {
        let all = self.bus.inspect().await.unwrap();
        let stats = all.groups.into_iter().find(|stats| stats.group == *group).unwrap();
        let here = stats.ready + stats.delayed + stats.in_flight;
        assert_eq!(stats.accepted, stats.acked + stats.dead + stats.removed + here, "{stats:?}");
        stats
    }

    /// Takes everything that is ready; returns the bodies in order.
    pub async fn drain(&self, group: &Arc<str>) -> Vec<String> {
        let claimed = self.claim(group, 1000).await;
        for delivery in &claimed {
            self.ack(delivery).await;
        }
        bodies(&claimed)
    }
}

/// Waits for a future that must end, and says so when it does not.
pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it did not end in time")
}

/// Checks that a future is still pending after a moment.
pub async fn still_waits<T>(future: impl Future<Output = T>) {
    let waited = tokio::time::timeout(Duration::from_millis(50), future).await;
    assert!(waited.is_err(), "it did not wait");
}

pub fn new_id() -> MessageId {
    *uuid::Uuid::new_v4().as_bytes()
}

pub fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body.to_vec()).unwrap()
}

pub fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(body).collect()
}

pub fn retry_after(after: Duration) -> Outcome {
    Outcome::Retry { after, error: "boom".into() }
}

pub fn dead(reason: DeadReason, error: &str) -> Outcome {
    Outcome::Dead { reason, error: error.into() }
}

pub fn put(key: &Arc<str>, value: &str, if_version: Option<u64>) -> Op {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Op::Put { key: key.clone(), value, if_version, ttl: None }
}
