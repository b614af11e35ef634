//! The random operations of the comparison with the model.

use std::time::Duration;

use proptest::prelude::*;

use crate::model::{Publish, Settle};

#[derive(Debug, Clone)]
pub enum Step {
    Publish(Publish),
    /// Settles one of the leases seen so far, current or not.
    Settle(usize, Settle),
    Write {
        key: u8,
        if_version: Option<u64>,
        put: bool,
    },
}

#[derive(Debug, Clone)]
pub enum Action {
    Commit(Vec<Step>),
    Claim { group: usize, bindings: Vec<usize>, max: usize, lease: u8 },
    Advance(u8),
    Act { group: usize, message: usize, how: u8 },
    Purge(usize),
    Pause(usize, bool),
    Bind(usize, usize),
    Unbind(usize, usize),
    RetryDead(usize, usize),
    DiscardDead(usize, usize),
    Inspect,
}

pub const TICK: Duration = Duration::from_secs(1);
const TICK_MICROS: i64 = 1_000_000;

pub fn ticks(n: impl Into<i64>) -> i64 {
    n.into() * TICK_MICROS
}

fn publish() -> impl Strategy<Value = Publish> {
    let rare = |n: u8| prop_oneof![3 => Just(None), 1 => (0..n).prop_map(Some)];
    let key = prop_oneof![Just(None), (0..2u8).prop_map(Some)];
    let delay = prop_oneof![4 => Just(0), 1 => 1..4i64];
    (0..3usize, key, -1..=1i16, delay, rare(4), rare(2), rare(3)).prop_map(
        |(topic, key, priority, delay, ttl, unique, dedup)| {
            let (delay, ttl) = (ticks(delay), ttl.map(|ttl| ticks(ttl + 1)));
            // Topic 2 is one that only the pattern matches.
            Publish { id: 0, topic: topic + topic / 2, key, priority, delay, ttl, unique, dedup }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let settle = prop_oneof![
        4 => Just(Settle::Ack),
        1 => (0..3i64).prop_map(|n| Settle::Retry(ticks(n))),
        1 => Just(Settle::Reject),
        1 => Just(Settle::Fail),
        1 => Just(Settle::Release),
    ];
    let write = (0..2u8, prop::option::of(0..4u64), any::<bool>());
    prop_oneof![
        4 => publish().prop_map(Step::Publish),
        4 => (0..8usize, settle).prop_map(|(nth, how)| Step::Settle(nth, how)),
        1 => write.prop_map(|(key, if_version, put)| Step::Write { key, if_version, put }),
    ]
}

pub fn action() -> impl Strategy<Value = Action> {
    let bindings = prop_oneof![Just(vec![]), prop::collection::vec(0..3usize, 1..3)];
    let claim = (0..2usize, bindings, 1..4usize, 1..4u8);
    prop_oneof![
        8 => prop::collection::vec(step(), 1..4).prop_map(Action::Commit),
        8 => claim.prop_map(|(group, bindings, max, lease)| {
            Action::Claim { group, bindings, max, lease }
        }),
        3 => (1..4u8).prop_map(Action::Advance),
        2 => (0..2usize, 0..20usize, 0..3u8).prop_map(|(group, message, how)| {
            Action::Act { group, message, how }
        }),
        1 => (0..2usize, any::<bool>()).prop_map(|(group, paused)| Action::Pause(group, paused)),
        1 => (0..2usize).prop_map(Action::Purge),
        1 => (0..2usize, 0..3usize).prop_map(|(group, binding)| Action::Bind(group, binding)),
        1 => (0..2usize, 0..3usize).prop_map(|(group, binding)| Action::Unbind(group, binding)),
        1 => (0..2usize, 0..20usize).prop_map(|(group, nth)| Action::RetryDead(group, nth)),
        1 => (0..2usize, 0..20usize).prop_map(|(group, nth)| Action::DiscardDead(group, nth)),
        2 => Just(Action::Inspect),
    ]
}
