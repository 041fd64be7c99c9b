//! What a relay does while nothing breaks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use modax_txn::{Confirmation, Event, Message, Outbox, OutgoingMessage, RetryPolicy, SinkError, State};

use crate::plant::{self, DEADLINE, Log, connect, event, eventually, pending, schema, shared_url};

#[tokio::test]
async fn a_committed_message_is_delivered_by_the_wake_up_alone() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "wake").await;
    let log = Log::default();
    // Its own polls are an hour apart: only `committed` can be what makes it read.
    let hour = Duration::from_secs(3600);
    let relay =
        plant::relay(&schema, url, log.sink()).poll_interval(hour).idle_poll_interval(hour).spawn().expect("a relay");
    let mut events = relay.events();
    event(&mut events, "lease", |e| matches!(e, Event::LeaseAcquired { .. })).await;
    eventually("the first read is over", || async { relay.stats().is_owner }).await;

    let outbox = Outbox::new(schema.clone());
    for n in 0..20 {
        let message = Message::to("t").key("k").payload(n.to_string()).header("h", "v");
        let receipt = outbox.enqueue(&client, message).await.expect("enqueued");
        outbox.committed(&receipt);
        event(&mut events, "delivered", |e| matches!(e, Event::Delivered { id, .. } if *id == receipt.id())).await;
    }
    assert_eq!(log.texts(), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    let stopped = relay.stop(DEADLINE).await;
    assert!(stopped.clean, "{stopped:?}");
    assert_eq!(pending(&client, &schema).await, 0);
}

#[tokio::test]
async fn an_orderly_stop_hands_the_lease_over_before_it_runs_out() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "hand_over").await;
    let log = Log::default();
    let long = Duration::from_secs(600);
    let first = plant::relay(&schema, url, log.sink()).lease(long).spawn().expect("a relay");
    let mut events = first.events();
    event(&mut events, "lease", |e| matches!(e, Event::LeaseAcquired { epoch: 1 })).await;
    assert!(first.stop(DEADLINE).await.clean);
    // A lease of ten minutes: the second one gets it at once or not in this test.
    let second = plant::relay(&schema, url, log.sink()).lease(long).spawn().expect("a relay");
    let mut events = second.events();
    event(&mut events, "lease", |e| matches!(e, Event::LeaseAcquired { epoch: 2 })).await;
    assert!(second.stop(DEADLINE).await.clean);
}

#[tokio::test]
async fn an_expired_message_is_recorded_and_not_published_and_its_key_goes_on() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "expires").await;
    let outbox = Outbox::new(schema.clone());
    let short = Message::to("t").key("k").payload("late").expires_in(Duration::from_millis(1));
    let late = outbox.enqueue(&client, short).await.expect("enqueued");
    let after = outbox.enqueue(&client, Message::to("t").key("k").payload("after")).await.expect("enqueued");
    let log = Log::default();
    let relay = plant::relay(&schema, url, log.sink()).spawn().expect("a relay");
    eventually("settled", || async { pending(&client, &schema).await == 0 }).await;
    assert_eq!(log.texts(), ["after"]);
    let status = outbox.status(&client, late.id()).await.expect("an answer").expect("a row");
    assert_eq!((status.state, status.settled_epoch), (State::Expired, Some(1)));
    let status = outbox.status(&client, after.id()).await.expect("an answer").expect("a row");
    assert_eq!((status.state, status.attempts), (State::Delivered, 1));
    assert!(relay.stop(DEADLINE).await.clean);
}

/// Whoever may insert writes what this crate never would.
#[tokio::test]
async fn a_row_that_another_program_wrote_wrongly_holds_nothing_up() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "other_program").await;
    let columns =
        format!("INSERT INTO {}.outbox (id, topic, key, payload, headers, enqueued_at, expires_at)", schema.name());
    let rows = [
        "ARRAY['a', NULL], now(), NULL",
        "ARRAY[['a', 'b'], ['c', 'd']], now(), NULL",
        "ARRAY['a', 'b', 'c'], now(), NULL",
        "NULL, '-infinity', 'infinity'",
        "NULL, 'infinity', NULL",
    ];
    for (number, row) in rows.iter().enumerate() {
        let statement = format!("{columns} VALUES (gen_random_uuid(), 't', 'k', '{number}', {row})");
        client.batch_execute(&statement).await.expect("inserted");
    }
    let outbox = Outbox::new(schema.clone());
    let behind = outbox.enqueue(&client, Message::to("t").key("k").payload("behind")).await.expect("enqueued");
    outbox.backlog(&client).await.expect("the backlog has an age whatever the rows say");
    let log = Log::default();
    let relay = plant::relay(&schema, url, log.sink()).spawn().expect("a relay");
    eventually("settled", || async { pending(&client, &schema).await == 0 }).await;
    assert_eq!(log.texts(), ["3", "4", "behind"]);
    let status = outbox.status(&client, behind.id()).await.expect("an answer").expect("a row");
    assert_eq!(status.state, State::Delivered);
    let asked = format!("SELECT reason FROM {}.outbox WHERE status = 'rejected' ORDER BY seq", schema.name());
    let reasons = client.query(&asked, &[]).await.expect("reasons");
    let reasons: Vec<String> = reasons.iter().map(|row| row.get(0)).collect();
    assert!(reasons.len() == 3 && reasons.iter().all(|reason| reason.starts_with("headers: ")), "{reasons:?}");
    assert!(relay.stop(DEADLINE).await.clean);
}

#[tokio::test]
async fn a_condition_checked_at_the_last_moment_drops_a_message_and_the_reason_is_readable() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "condition").await;
    let outbox = Outbox::new(schema.clone());
    let is_safe = Arc::new(AtomicBool::new(false));
    let log = Log::default();
    let sink = {
        let (is_safe, log) = (Arc::clone(&is_safe), log.clone());
        move |message: OutgoingMessage| {
            let safe = is_safe.load(Ordering::SeqCst);
            if safe {
                log.write(&message);
            }
            async move { if safe { Ok(Confirmation::new()) } else { Err(SinkError::drop("door open")) } }
        }
    };
    let relay = plant::relay(&schema, url, sink).spawn().expect("a relay");
    let mut events = relay.events();
    let blocked = outbox.enqueue(&client, Message::to("t").key("k").payload("start")).await.expect("enqueued");
    outbox.committed(&blocked);
    event(&mut events, "rejected", |e| matches!(e, Event::Rejected { id, .. } if *id == blocked.id())).await;
    is_safe.store(true, Ordering::SeqCst);
    let passed = outbox.enqueue(&client, Message::to("t").key("k").payload("stop")).await.expect("enqueued");
    outbox.committed(&passed);
    eventually("settled", || async { pending(&client, &schema).await == 0 }).await;
    assert_eq!(log.texts(), ["stop"]);
    let status = outbox.status(&client, blocked.id()).await.expect("an answer").expect("a row");
    assert_eq!(status.state, State::Rejected { reason: "door open".to_owned() });
    assert!(relay.stop(DEADLINE).await.clean);
}

#[tokio::test]
async fn f59_a_poisonous_message_is_parked_holds_its_key_alone_and_comes_back_in_its_place() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "poison").await;
    let outbox = Outbox::new(schema.clone());
    let log = Log::default();
    let cured = Arc::new(AtomicBool::new(false));
    let sink = {
        let (cured, log) = (Arc::clone(&cured), log.clone());
        move |message: OutgoingMessage| {
            let poison = message.payload.as_ref() == b"poison" && !cured.load(Ordering::SeqCst);
            let panics = poison && message.attempt == 1;
            if !poison {
                log.write(&message);
            }
            async move {
                assert!(!panics, "a sink may panic, too");
                if poison { Err(SinkError::retry("bad day")) } else { Ok(Confirmation::new()) }
            }
        }
    };
    let quick = RetryPolicy::default().first(Duration::from_millis(5)).attempts(3);
    let relay = plant::relay(&schema, url, sink).retry(quick).spawn().expect("a relay");
    let mut events = relay.events();
    let messages = [("a", "poison"), ("a", "behind"), ("b", "other")];
    let messages = messages.map(|(key, text)| Message::to("t").key(key).payload(text)).to_vec();
    let receipts = outbox.enqueue_all(&client, messages).await.expect("enqueued");
    outbox.committed(&receipts[0]);
    // Somebody else must get through after the first failure, or it could as well be the sink's fault.
    let mut n = 0;
    eventually("parked", || {
        n += 1;
        let message = Message::to("t").key("b").payload(format!("other {n}"));
        let (outbox, client, poison) = (&outbox, &client, receipts[0].id());
        async move {
            let receipt = outbox.enqueue(client, message).await.expect("enqueued");
            outbox.committed(&receipt);
            let status = outbox.status(client, poison).await.expect("an answer").expect("a row");
            matches!(status.state, State::Parked { reason } if reason == "bad day") && status.attempts >= 3
        }
    })
    .await;
    event(&mut events, "parked", |e| matches!(e, Event::Parked { id, .. } if *id == receipts[0].id())).await;
    eventually("the rest", || async { pending(&client, &schema).await == 1 }).await;
    assert!(!log.texts().contains(&"behind".to_owned()), "the key is held");
    assert_eq!(outbox.parked(&client, 10).await.expect("an answer").len(), 1);

    cured.store(true, Ordering::SeqCst);
    assert!(outbox.redrive(&client, receipts[0].id()).await.expect("an answer"));
    relay.wake();
    eventually("all", || async { pending(&client, &schema).await == 0 }).await;
    let of_key: Vec<_> = log.read().into_iter().filter(|r| r.key.as_deref() == Some("a")).map(|r| r.text).collect();
    assert_eq!(of_key, ["poison", "behind"]);
    assert!(!outbox.discard(&client, receipts[0].id(), "too late").await.expect("an answer"));
    assert!(relay.stop(DEADLINE).await.clean);
}

#[tokio::test]
async fn f60_settled_rows_are_swept_and_the_tables_are_empty_again() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "swept").await;
    let outbox = Outbox::new(schema.clone());
    let messages = (0..2500).map(|n| Message::to("t").key(format!("{}", n % 50)).payload(n.to_string())).collect();
    let _ = outbox.enqueue_all(&client, messages).await.expect("enqueued");
    let log = Log::default();
    let relay = plant::relay(&schema, url, log.sink()).retention(Duration::ZERO).spawn().expect("a relay");
    let count = format!("SELECT count(*) FROM {}.outbox", schema.quoted());
    eventually("empty", || async { client.query_one(&count, &[]).await.expect("a count").get::<_, i64>(0) == 0 }).await;
    assert_eq!(log.read().len(), 2500);
    assert!(relay.stop(DEADLINE).await.clean);
}

#[tokio::test]
async fn messages_of_a_key_follow_the_lock_not_the_start_of_their_transactions() {
    let url = shared_url();
    let (mut early, late) = (connect(url).await, connect(url).await);
    let schema = schema(&late, "overlap").await;
    let outbox = Outbox::new(schema.clone());
    let log = Log::default();
    let relay = plant::relay(&schema, url, log.sink()).spawn().expect("a relay");
    // The early one gets its transaction number first and locks the device last.
    let tx = early.transaction().await.expect("BEGIN");
    tx.query_one("SELECT pg_current_xact_id()::text", &[]).await.expect("a number");
    plant::produce(&late, &outbox, &schema, "device", true).await.expect("committed");
    tx.execute(&format!("UPDATE {}.device SET version = version + 1", schema.quoted()), &[]).await.expect("an update");
    let receipt = outbox.enqueue(&tx, Message::to("drill").key("device").payload("device 2")).await.expect("enqueued");
    tx.commit().await.expect("COMMIT");
    outbox.committed(&receipt);
    eventually("both", || async { pending(&late, &schema).await == 0 }).await;
    assert_eq!(log.texts(), ["device 1", "device 2"]);
    assert!(relay.stop(DEADLINE).await.clean);
}

#[tokio::test]
async fn a_relay_without_a_database_says_why_and_stops_at_its_deadline_all_the_same() {
    // A port that nobody listens on: bound, and given up at once.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
    let schema = modax_txn::Schema::new("nowhere").expect("a sound name");
    let url = format!("postgresql://modax@127.0.0.1:{port}/modax");
    let relay = plant::relay(&schema, &url, Log::default().sink()).spawn().expect("a relay needs no database to start");
    let mut events = relay.events();
    event(&mut events, "a failure", |e| matches!(e, Event::DatabaseFailed { reason } if !reason.is_empty())).await;
    assert!(relay.is_running() && !relay.stats().is_owner);
    // It owns nothing, so there is nothing to give back.
    assert!(relay.stop(DEADLINE).await.clean);
}

#[tokio::test]
async fn a_stop_that_cannot_wait_for_the_sink_is_not_called_clean() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "unclean").await;
    let outbox = Outbox::new(schema.clone());
    let _ = outbox.enqueue(&client, Message::to("t")).await.expect("enqueued");
    let never = |_: OutgoingMessage| std::future::pending::<Result<Confirmation, SinkError>>();
    let relay = plant::relay(&schema, url, never).spawn().expect("a relay");
    eventually("in hand", || async { relay.stats().inflight == 1 }).await;
    let stopped = relay.stop(Duration::from_millis(50)).await;
    assert!(!stopped.clean, "{stopped:?}");
    assert_eq!(pending(&client, &schema).await, 1, "another relay publishes it");
}
