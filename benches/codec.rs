//! W6 without Python: one event of 306 bytes and one of 10 kB, both frames.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use eventbus::codec::encode_signed;
use eventbus::codec::json::Defaults;
use eventbus::codec::{Limits, envelope, json, value, write};
use eventbus::event::{Event, EventId, EventType, Field, Timestamp, WallTime};
use eventbus::signing::Keys;

const DEFAULTS: Defaults =
    Defaults { now: WallTime { micros: 0, offset_micros: None }, event_id: [0; 16] };

/// Eight mixed fields, repeated as a list of `records`.
fn event(records: usize) -> Event {
    let mut payload = Vec::new();
    write::map(&mut payload, 8);
    for (key, text) in
        [("order_id", "ord-0001-7f3a"), ("customer", "Ada Lovelace"), ("sku", "K-42")]
    {
        write::str(&mut payload, key);
        write::str(&mut payload, text);
    }
    write::str(&mut payload, "quantity");
    write::uint(&mut payload, 1_200);
    write::str(&mut payload, "price");
    write::float(&mut payload, 19.99);
    write::str(&mut payload, "express");
    write::bool(&mut payload, true);
    write::str(&mut payload, "note");
    write::nil(&mut payload);
    write::str(&mut payload, "lines");
    write::array(&mut payload, records);
    for index in 0..records {
        write::map(&mut payload, 3);
        write::str(&mut payload, "name");
        write::str(&mut payload, "a line of the order");
        write::str(&mut payload, "count");
        write::uint(&mut payload, index as u64);
        write::str(&mut payload, "weight");
        write::float(&mut payload, 0.5);
    }
    Event {
        kind: EventType::Updated,
        topic: "orders:eu:created".into(),
        payload: payload.into(),
        timestamp: Timestamp::Time(WallTime {
            micros: 1_767_323_045_678_901,
            offset_micros: Some(0),
        }),
        event_id: EventId::Uuid([7; 16]),
        source: Field::Text("shop-frontend".into()),
        correlation_id: Field::Null,
        metadata: Bytes::new(),
    }
}

fn codec(criterion: &mut Criterion) {
    let limits = Limits::default();
    for (size, records) in [("306B", 2), ("10kB", 205)] {
        let event = event(records);
        let frame = envelope::encode(&event, &limits).unwrap();
        let text = json::encode(&event, &limits).unwrap();
        let mut group = criterion.benchmark_group(format!("codec/{size}"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function("native_encode", |bencher| {
            bencher.iter(|| envelope::encode(black_box(&event), &limits));
        });
        let keys = Keys::new(&["a secret of some thirty-two bytes"]).unwrap();
        let signed = encode_signed(&event, &event.topic, &keys, &limits).unwrap();
        group.bench_function("native_encode_signed", |bencher| {
            bencher.iter(|| encode_signed(black_box(&event), &event.topic, &keys, &limits));
        });
        group.bench_function("verify", |bencher| {
            bencher.iter(|| keys.verify(&event.topic, black_box(&signed)));
        });
        group.bench_function("native_decode", |bencher| {
            bencher.iter(|| envelope::decode(black_box(&frame), &limits));
        });
        group.bench_function("validate", |bencher| {
            bencher.iter(|| value::validate(black_box(&event.payload), &limits));
        });
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function("json_encode", |bencher| {
            bencher.iter(|| json::encode(black_box(&event), &limits));
        });
        group.bench_function("json_decode", |bencher| {
            bencher.iter(|| json::decode(black_box(&text), &limits, || DEFAULTS));
        });
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
