//! Rates against a server that waits for the disk; run with `--run-ignored all rates --no-capture`.

use std::time::Instant;

use eventbus::backend::{ClaimRequest, Op, Outcome, Transaction};

use super::Postgres;
use super::conformance::{Case, new_id};
use super::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a test"]
async fn publish_claim_and_ack_in_batches() {
    let server = Server::with("");
    let fixture = Postgres::on(&server.address);
    for (size, rounds) in [(100, 300), (1, 2_000)] {
        let case = Case::new(&fixture).await;
        let group = case.group("g", &[case.on("t")]).await;
        let request = ClaimRequest { ..case.request(&group, size) };
        let body = "x".repeat(200);
        let started = Instant::now();
        let mut parts = [0.0; 3];
        for _ in 0..rounds {
            let at = Instant::now();
            let publish = |_| {
                let mut message = case.message("t", &body);
                (message.id, message.broadcast) = (new_id(), false);
                Transaction { ops: vec![Op::Publish(message)] }
            };
            let batch = (0..size).map(publish).collect();
            assert!(case.bus.commit(batch).await.iter().all(Result::is_ok));
            parts[0] += at.elapsed().as_secs_f64();
            let at = Instant::now();
            let claimed = case.bus.claim(&request).await.unwrap();
            assert_eq!(claimed.len(), size);
            parts[1] += at.elapsed().as_secs_f64();
            let at = Instant::now();
            let ack = |delivery: eventbus::backend::Delivery| Transaction {
                ops: vec![Op::Settle(delivery.lease, Outcome::Ack)],
            };
            let acks = claimed.into_iter().map(ack).collect();
            assert!(case.bus.commit(acks).await.iter().all(Result::is_ok));
            parts[2] += at.elapsed().as_secs_f64();
        }
        let count = (size * rounds) as f64;
        println!(
            "batches of {size}: {:.0}/s (publish {:.2} s, claim {:.2} s, ack {:.2} s)",
            count / started.elapsed().as_secs_f64(),
            parts[0],
            parts[1],
            parts[2],
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a test"]
async fn broadcasts_in_batches() {
    let server = Server::with("");
    let fixture = Postgres::on(&server.address);
    let case = Case::new(&fixture).await;
    let listener = super::sql::listen(&case).await;
    for (size, rounds) in [(100, 200), (1, 2_000)] {
        let started = Instant::now();
        for _ in 0..rounds {
            let batch = (0..size).map(|_| Transaction {
                ops: vec![Op::Publish(case.message("t", &"x".repeat(200)))],
            });
            assert!(case.bus.commit(batch.collect()).await.iter().all(Result::is_ok));
        }
        let mut heard = 0;
        while heard < size * rounds {
            heard += listener.next(1_000).await.unwrap().len();
        }
        let rate = heard as f64 / started.elapsed().as_secs_f64();
        println!("broadcasts in batches of {size}: {rate:.0}/s");
    }
}
