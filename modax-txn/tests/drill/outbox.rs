//! What happens in the caller's transaction.

use std::time::Duration;

use modax_txn::{
    EnqueueError, EnqueueReceipt, InvalidMessage, Message, MessageId, Outbox, State, tokio_postgres::GenericClient,
};

use crate::plant::{connect, schema, shared_url};

#[tokio::test]
async fn a_message_exists_exactly_when_its_transaction_commits() {
    let mut client = connect(shared_url()).await;
    let schema = schema(&client, "exists").await;
    let outbox = Outbox::new(schema);

    let tx = client.transaction().await.expect("BEGIN");
    let rolled_back = outbox.enqueue(&tx, Message::to("a")).await.expect("enqueued");
    tx.rollback().await.expect("ROLLBACK");
    assert_eq!(outbox.status(&client, rolled_back.id()).await.expect("an answer"), None);

    let tx = client.transaction().await.expect("BEGIN");
    let committed = outbox.enqueue(&tx, Message::to("a").key("k").payload("p")).await.expect("enqueued");
    tx.commit().await.expect("COMMIT");
    let status = outbox.status(&client, committed.id()).await.expect("an answer").expect("a row");
    assert_eq!((status.state, status.topic.as_str(), status.key.as_deref()), (State::Pending, "a", Some("k")));

    // The same on a client whose transaction somebody else began.
    client.batch_execute("BEGIN").await.expect("BEGIN");
    let other = outbox.enqueue(&client, Message::to("a")).await.expect("enqueued");
    client.batch_execute("ROLLBACK").await.expect("ROLLBACK");
    assert_eq!(outbox.status(&client, other.id()).await.expect("an answer"), None);
}

#[tokio::test]
async fn many_messages_are_numbered_in_the_order_of_the_call() {
    let client = connect(shared_url()).await;
    let schema = schema(&client, "many").await;
    let outbox = Outbox::new(schema.clone());
    let messages: Vec<Message> = (0..1000)
        .map(|n| {
            let message = Message::to(format!("topic/{n}")).key(format!("k{}", n % 7)).payload(n.to_string());
            if n % 3 == 0 { message.header("quote", "a \"b\" \\ {c,d}").header("empty", "") } else { message }
        })
        .collect();
    let receipts = outbox.enqueue_all(&client, messages).await.expect("enqueued");
    assert_eq!(receipts.len(), 1000);

    let sql = format!("SELECT id, payload, headers FROM {}.outbox ORDER BY seq", schema.quoted());
    let rows = client.query(&sql, &[]).await.expect("rows");
    for (n, (row, receipt)) in rows.iter().zip(&receipts).enumerate() {
        assert_eq!(row.get::<_, uuid::Uuid>(0), *receipt.id().as_uuid());
        assert_eq!(row.get::<_, Vec<u8>>(1), n.to_string().into_bytes());
        let headers: Option<Vec<String>> = row.get(2);
        let wanted = (n % 3 == 0).then(|| ["empty", "", "quote", "a \"b\" \\ {c,d}"].map(str::to_owned).to_vec());
        assert_eq!(headers, wanted);
    }
}

#[tokio::test]
async fn a_repeated_idempotency_key_writes_once_and_another_message_under_it_is_a_conflict() {
    let client = connect(shared_url()).await;
    let outbox = Outbox::new(schema(&client, "repeated").await);
    let message = || Message::to("t").key("k").payload("one").idempotency_key("evt-42");

    let first = outbox.enqueue(&client, message()).await.expect("enqueued");
    let second = outbox.enqueue(&client, message()).await.expect("enqueued");
    assert!(!first.is_duplicate() && second.is_duplicate());
    assert_eq!(first.id(), second.id());

    let other = outbox.enqueue(&client, message().payload("two")).await;
    assert!(matches!(other, Err(EnqueueError::Conflict { existing }) if existing == first.id()), "{other:?}");

    // The same identity twice is the same message, too.
    let id = MessageId::new();
    let once = outbox.enqueue(&client, Message::to("t").id(id)).await.expect("enqueued");
    let again = outbox.enqueue(&client, Message::to("t").id(id)).await.expect("enqueued");
    assert!(!once.is_duplicate() && again.is_duplicate());

    // Also twice in one call.
    let id = MessageId::new();
    let both = ["one", "two"].map(|payload| Message::to("t").id(id).payload(payload));
    let other = outbox.enqueue_all(&client, both.to_vec()).await;
    assert!(matches!(other, Err(EnqueueError::Conflict { existing }) if existing == id), "{other:?}");
    let id = MessageId::new();
    let both = vec![Message::to("t").id(id).payload("one"), Message::to("t").id(id).payload("one")];
    let receipts = outbox.enqueue_all(&client, both).await.expect("enqueued");
    assert_eq!(receipts.iter().map(EnqueueReceipt::is_duplicate).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_message_that_cannot_be_sent_is_refused_before_the_transaction_is_touched() {
    let client = connect(shared_url()).await;
    let outbox = Outbox::new(schema(&client, "refused").await);
    client.batch_execute("BEGIN").await.expect("BEGIN");
    for (message, wanted) in [
        (Message::to(""), InvalidMessage::Topic { bytes: 0 }),
        (Message::to("a/+"), InvalidMessage::Topic { bytes: 3 }),
        (Message::to("a\0"), InvalidMessage::Topic { bytes: 2 }),
        (Message::to("a").key(""), InvalidMessage::Key { bytes: 0 }),
        (Message::to("a").payload(vec![0; 2_000_000]), InvalidMessage::Payload { bytes: 2_000_000 }),
        (Message::to("a").header("", "x"), InvalidMessage::Headers),
        (Message::to("a").idempotency_key(""), InvalidMessage::IdempotencyKey { bytes: 0 }),
        (Message::to("a").expires_in(Duration::ZERO), InvalidMessage::ExpiresIn(Duration::ZERO)),
    ] {
        let answer = outbox.enqueue(&client, message).await;
        assert!(matches!(&answer, Err(EnqueueError::Invalid(why)) if *why == wanted), "{answer:?}");
    }
    let sound = outbox.enqueue(&client, Message::to("a")).await.expect("the transaction is still good");
    client.batch_execute("COMMIT").await.expect("COMMIT");
    assert!(outbox.status(&client, sound.id()).await.expect("an answer").is_some());
}

#[tokio::test]
async fn any_number_of_instances_migrate_at_once_and_any_sound_schema_name_works() {
    let client = connect(shared_url()).await;
    let schema = modax_txn::Schema::new("Müller".replace('ü', "u") + "_2").expect("a sound name");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let schema = schema.clone();
        tasks.spawn(async move {
            let client = connect(shared_url()).await;
            schema.migrate(&client).await.expect("a migration").applied
        });
    }
    let applied = tasks.join_all().await;
    assert_eq!(applied.iter().filter(|n| **n > 0).count(), 1, "one instance does the work: {applied:?}");
    assert_eq!(schema.migrate(&client).await.expect("a migration").version, 2);

    let spoil = format!("UPDATE {}.migrations SET checksum = 'x' WHERE version = 1", schema.quoted());
    client.batch_execute(&spoil).await.expect("an update");
    let answer = schema.migrate(&client).await;
    assert!(matches!(answer, Err(modax_txn::MigrateError::Checksum { version: 1 })), "{answer:?}");
    // The connection has no transaction left open.
    client.client().query_one("SELECT 1", &[]).await.expect("a usable connection");
}

#[tokio::test]
async fn nothing_in_the_transaction_notifies_and_the_statement_is_one() {
    let client = connect(shared_url()).await;
    let schema = schema(&client, "one_statement").await;
    let outbox = Outbox::new(schema.clone());
    // Counted by the server itself: a trigger for each statement on the table.
    let count = format!(
        "CREATE TABLE {0}.statements (n int);
         CREATE FUNCTION {0}.count() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO {0}.statements VALUES (1); RETURN NULL; END $$;
         CREATE TRIGGER count AFTER INSERT ON {0}.outbox FOR EACH STATEMENT EXECUTE FUNCTION {0}.count()",
        schema.quoted()
    );
    client.batch_execute(&count).await.expect("a trigger");
    let messages = (0..50).map(|n| Message::to(format!("t{n}"))).collect();
    let receipts = outbox.enqueue_all(&client, messages).await.expect("enqueued");
    assert_eq!(receipts.len(), 50);
    let sql = format!("SELECT count(*) FROM {}.statements", schema.quoted());
    assert_eq!(client.query_one(&sql, &[]).await.expect("a count").get::<_, i64>(0), 1);
}
