//! Inbox and idempotency keys: once, and the same answer again.

use std::time::Duration;

use modax_txn::{Claim, IdempotencyError, IdempotencyKey, IdempotencyKeys, Inbox, MessageId, Once};

use crate::plant::{DEADLINE, connect, schema, shared_url};

#[tokio::test]
async fn f61_a_message_is_applied_once_and_again_only_if_the_first_time_was_rolled_back() {
    let mut client = connect(shared_url()).await;
    let inbox = Inbox::new(schema(&client, "once").await);
    let id = MessageId::new();

    let tx = client.transaction().await.expect("BEGIN");
    assert_eq!(inbox.once(&tx, "hmi", id).await.expect("an answer"), Once::First);
    tx.rollback().await.expect("ROLLBACK");

    let tx = client.transaction().await.expect("BEGIN");
    assert_eq!(inbox.once(&tx, "hmi", id).await.expect("an answer"), Once::First);
    assert_eq!(inbox.once(&tx, "hmi", id).await.expect("an answer"), Once::Duplicate);
    tx.commit().await.expect("COMMIT");

    assert_eq!(inbox.once(&client, "hmi", id).await.expect("an answer"), Once::Duplicate);
    assert_eq!(inbox.once(&client, "another consumer", id).await.expect("an answer"), Once::First);
}

#[tokio::test]
async fn f61_two_consumers_at_once_apply_a_message_once() {
    let url = shared_url();
    let (mut a, mut b) = (connect(url).await, connect(url).await);
    let inbox = Inbox::new(schema(&a, "both").await);
    let id = MessageId::new();
    let first = a.transaction().await.expect("BEGIN");
    assert_eq!(inbox.once(&first, "hmi", id).await.expect("an answer"), Once::First);
    let second = b.transaction().await.expect("BEGIN");
    let (answer, ()) = tokio::join!(inbox.once(&second, "hmi", id), async {
        first.commit().await.expect("COMMIT");
    });
    assert_eq!(answer.expect("an answer"), Once::Duplicate);
}

#[tokio::test]
async fn f60_the_inbox_forgets_and_says_so_instead_of_guessing() {
    let client = connect(shared_url()).await;
    let schema = schema(&client, "forgets").await;
    let inbox = Inbox::new(schema.clone()).retention(Duration::from_secs(3600));
    let now = MessageId::new().unix_millis().expect("a time");
    let old = MessageId::from_parts(now - 3_700_000, &[7; 10]);
    assert_eq!(inbox.once(&client, "c", old).await.expect("an answer"), Once::TooOld);
    let known = MessageId::from_parts(now - 3_500_000, &[8; 10]);
    assert_eq!(inbox.once(&client, "c", known).await.expect("an answer"), Once::First);

    assert_eq!(inbox.sweep(&client).await.expect("a sweep"), 0, "nothing is old enough");
    let age = format!("UPDATE {}.inbox SET received_at = received_at - interval '3 hours'", schema.quoted());
    client.batch_execute(&age).await.expect("an update");
    assert_eq!(inbox.sweep(&client).await.expect("a sweep"), 1);
    let timeless = MessageId::from_uuid(uuid::Uuid::from_u128(7));
    assert_eq!(inbox.once(&client, "c", timeless).await.expect("an answer"), Once::First);
}

#[tokio::test]
async fn the_same_request_under_a_key_is_replayed_and_another_one_is_a_conflict() {
    let client = connect(shared_url()).await;
    let schema = schema(&client, "keys").await;
    let keys = IdempotencyKeys::new(schema.clone());
    let key = IdempotencyKey::new("post-7").expect("a sound key");

    assert!(matches!(keys.store(&client, &key, b"x").await, Err(IdempotencyError::NotClaimed)));
    assert!(matches!(keys.claim(&client, &key, b"").await, Err(IdempotencyError::Digest { bytes: 0 })));
    assert_eq!(keys.claim(&client, &key, b"digest").await.expect("an answer"), Claim::New);
    keys.store(&client, &key, b"outcome").await.expect("stored");
    let replay = Claim::Replay { outcome: b"outcome".to_vec() };
    assert_eq!(keys.claim(&client, &key, b"digest").await.expect("an answer"), replay);
    assert_eq!(keys.claim(&client, &key, b"other").await.expect("an answer"), Claim::Conflict);

    assert_eq!(keys.sweep(&client).await.expect("a sweep"), 0);
    let age = format!("UPDATE {}.idempotency SET expires_at = clock_timestamp()", schema.quoted());
    client.batch_execute(&age).await.expect("an update");
    assert_eq!(keys.claim(&client, &key, b"other").await.expect("an answer"), Claim::New, "its time has passed");
    client.batch_execute(&age).await.expect("an update");
    assert_eq!(keys.sweep(&client).await.expect("a sweep"), 1);
}

#[tokio::test]
async fn of_many_claims_at_once_one_is_new_and_the_others_replay_its_outcome() {
    let url = shared_url();
    let client = connect(url).await;
    let keys = IdempotencyKeys::new(schema(&client, "claims").await);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..12_u8 {
        let keys = keys.clone();
        tasks.spawn(async move {
            let mut client = connect(url).await;
            let key = IdempotencyKey::new("same").expect("a sound key");
            let tx = client.transaction().await.expect("BEGIN");
            let claim = keys.claim(&tx, &key, b"digest").await.expect("an answer");
            let is_new = claim == Claim::New;
            let outcome = match claim {
                Claim::New => {
                    keys.store(&tx, &key, &[n]).await.expect("stored");
                    vec![n]
                }
                Claim::Replay { outcome } => outcome,
                Claim::Conflict => panic!("same digest"),
            };
            tx.commit().await.expect("COMMIT");
            (is_new, outcome)
        });
    }
    let answers = tokio::time::timeout(DEADLINE, tasks.join_all()).await.expect("answers in time");
    assert_eq!(answers.iter().filter(|(is_new, _)| *is_new).count(), 1);
    assert!(answers.iter().all(|(_, outcome)| *outcome == answers[0].1), "{answers:?}");
}
