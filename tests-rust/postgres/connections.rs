//! How the server is reached, and what cancelled, blocked and closed calls leave behind.

use std::path::Path;
use std::time::Duration;

use eventbus::backend::{Message, Op, Transaction};
use eventbus::config::{Endpoint, TlsConfig};
use eventbus::error::{Error, Result};

use super::Postgres;
use super::conformance::{Case, in_time};
use super::server::{Server, run};

#[tokio::test]
async fn a_unix_socket_and_its_folder_both_lead_to_the_server() {
    let server = Server::start();
    let mut fixture = Postgres::on(&server.address);
    let file = server.folder.join(format!(".s.PGSQL.{}", server.address.port));
    fixture.config.endpoint = Endpoint::Unix { path: file };
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    assert_eq!(case.drain(&group).await, ["1"]);
}

/// Makes an authority and a certificate of it for `localhost`.
fn certificates(server: &Server) {
    let openssl = |arguments: &str| {
        run(server.command("openssl").args(arguments.split(' ')));
    };
    let subject = "-newkey rsa:2048 -nodes -days 3650 -subj";
    openssl(&format!("req -x509 {subject} /CN=authority -keyout ca.key -out ca.crt"));
    openssl(&format!("req {subject} /CN=localhost -keyout server.key -out server.csr"));
    let names = server.folder.join("names");
    std::fs::write(&names, "subjectAltName=DNS:localhost").unwrap();
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 \
             -extfile names -out server.crt",
    );
}

#[tokio::test]
async fn tls_is_spoken_and_verified() {
    let server = Server::prepare(
        "-c fsync=off -c ssl=on -c ssl_cert_file=../server.crt -c ssl_key_file=../server.key",
    );
    certificates(&server);
    server.go();
    let connect = async |host: &str, ca: Option<&Path>, skip: bool| -> Result<()> {
        let mut fixture = Postgres::on(&server.address);
        let port = server.address.port;
        fixture.config.endpoint = Endpoint::Tcp { host: host.into(), port };
        let ca = ca.map(Path::to_owned);
        let tls = TlsConfig { ca, insecure_skip_verify: skip, ..TlsConfig::default() };
        fixture.config.net.tls = Some(tls);
        let backend = eventbus::bus::open_postgres(fixture.config.clone())?;
        backend.connect().await?;
        let client = fixture.plain().await;
        let text = "select count(*) from pg_stat_ssl s join pg_stat_activity a using (pid) \
                    where s.ssl and a.application_name = 'eventbus'";
        let encrypted: i64 = client.query_one(text, &[]).await.unwrap().get(0);
        assert!(encrypted >= 2, "{encrypted}");
        backend.close().await
    };
    let ca = server.folder.join("ca.crt");
    connect("localhost", Some(&ca), false).await.unwrap();
    connect("127.0.0.1", None, true).await.unwrap();
    let wrong_name = connect("127.0.0.1", Some(&ca), false).await;
    assert!(matches!(&wrong_name, Err(Error::Connect { .. })), "{wrong_name:?}");
    let unknown = connect("localhost", None, false).await.unwrap_err();
    let text = unknown.to_string();
    assert!(text.contains("tls_ca"), "{text}");
}

#[tokio::test]
async fn a_refused_login_says_why_and_shows_no_password() {
    let fixture = Postgres::shared();
    let mut config = fixture.config.clone();
    config.net.username = Some("nobody_of_that_name".into());
    config.net.password = Some(eventbus::config::Secret::new("S3CR3T-xyz".into()));
    let backend = eventbus::bus::open_postgres(config).unwrap();
    let refused = backend.connect().await.unwrap_err();
    let text = format!("{refused} {refused:?} {backend:?} {:?}", backend.health());
    assert!(matches!(refused, Error::Connect { .. }), "{text}");
    assert!(text.contains("nobody_of_that_name") && !text.contains("S3CR3T"), "{text}");
}

#[tokio::test]
async fn a_closed_backend_connects_again() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    case.bus.close().await.unwrap();
    case.bus.connect().await.unwrap();
    case.bus.connect().await.unwrap();
    assert!(case.bus.has_queue(&case.topic("t")));
    case.publish_all("t", &["2"]).await;
    assert_eq!(case.drain(&group).await, ["1", "2"]);
    let early = eventbus::bus::open_postgres(fixture.config.clone()).unwrap();
    let early = early.read(&[]).await;
    assert!(matches!(early, Err(Error::NotConnected { .. })), "{early:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_calls_leave_everything_whole() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let pair = || {
        let message = || Op::Publish(case.message("t", "m"));
        vec![Transaction { ops: vec![message(), message()] }]
    };
    let mut taken = 0;
    for n in 0..400u64 {
        let patience = Duration::from_micros(n % 40 * 100);
        let _ = tokio::time::timeout(patience, case.bus.commit(pair())).await;
        let request = case.request(&group, 1);
        if let Ok(claimed) = tokio::time::timeout(patience, case.bus.claim(&request)).await {
            for delivery in claimed.unwrap() {
                case.ack(&delivery).await;
                taken += 1;
            }
        }
        let _ = tokio::time::timeout(patience, case.bus.wait_ready(&request)).await;
    }
    // Claims whose caller went away are given back.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let mut stats = case.stats(&group).await;
    while stats.in_flight > 0 {
        assert!(tokio::time::Instant::now() < deadline, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        stats = case.stats(&group).await;
    }
    assert!(stats.accepted > 0 && stats.accepted % 2 == 0, "{stats:?}");
    assert_eq!(stats.accepted, taken + stats.ready);
}

#[tokio::test]
async fn a_commit_behind_a_foreign_lock_ends_in_time_and_holds_up_nobody_for_good() {
    let mut fixture = Postgres::shared();
    fixture.config.net.op_timeout = Duration::from_millis(600);
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish(case.keyed("t", "1", "k")).await;
    let mut client = fixture.plain().await;
    let open = client.transaction().await.unwrap();
    let publish = format!("select publish('{}', '2', key => 'k')", case.topic("t"));
    open.batch_execute(&publish).await.unwrap();
    let late = case.commit(vec![Op::Publish(case.keyed("t", "3", "k"))]).await;
    let Err(error @ Error::Timeout { .. }) = &late else { panic!("{late:?}") };
    assert!(error.outcome_unknown());
    // Other keys go on.
    case.publish(case.keyed("t", "4", "other")).await;
    open.commit().await.unwrap();
    in_time(case.publish(case.keyed("t", "5", "k"))).await;
    let mut seen = Vec::new();
    for _ in 0..10 {
        seen.extend(case.drain(&group).await);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(!seen.contains(&"3".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn what_no_column_can_hold_is_refused_alone_and_by_name() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let bad = |change: fn(&mut Message)| {
        let mut message = case.message("t", "bad");
        change(&mut message);
        Transaction { ops: vec![Op::Publish(message)] }
    };
    let good = Transaction { ops: vec![Op::Publish(case.message("t", "good"))] };
    let batch = vec![
        bad(|message| message.topic = "a\0b".into()),
        bad(|message| message.key = Some("\0".into())),
        bad(|message| message.dedup_id = Some("x".repeat(5_000).into())),
        good,
    ];
    let results = case.bus.commit(batch).await;
    assert!(matches!(results[0], Err(Error::Topic { .. })), "{results:?}");
    assert!(matches!(results[1], Err(Error::InvalidArgument { .. })), "{results:?}");
    assert!(matches!(results[2], Err(Error::InvalidArgument { .. })), "{results:?}");
    assert!(results[3].is_ok());
    assert_eq!(case.drain(&group).await, ["good"]);
    assert!(case.bus.read(&["a\0".into()]).await.unwrap()[0].is_none());
    assert!(case.bus.scan("a\0", None, 9).await.unwrap().is_empty());
}
