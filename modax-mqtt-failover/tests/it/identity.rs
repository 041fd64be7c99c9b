//! What a message is, from its producer to a handler: the same over failovers, restarts and kills.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use modax_mqtt_failover::{
    Client, ClientBuilder, ConfigError, Message, PublishError, Queue, Version,
    config::TopicError,
    dedup::{Dedup, Identity, Verdict},
    disk,
};
use modax_testbed::broker::{Script, ScriptedBroker};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

const DEADLINE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// A PUBLISH as it stood on the wire.
#[derive(Clone, Debug)]
struct Seen {
    payload: String,
    properties: Vec<(String, String)>,
}

impl Seen {
    fn ids(&self) -> Vec<&str> {
        self.properties.iter().filter(|(name, _)| name == "modax-id").map(|(_, value)| value.as_str()).collect()
    }

    fn identity(&self) -> Identity {
        let [id] = self.ids()[..] else { panic!("not one identity: {self:?}") };
        Identity::parse(id).unwrap_or_else(|| panic!("no identity: {id}"))
    }
}

/// Just enough of a broker that speaks MQTT 5: it notes what is published, and acknowledges it or does not.
#[derive(Default)]
struct Notes {
    seen: Mutex<Vec<Seen>>,
    silent: AtomicBool,
    more: Notify,
    cut: Notify,
}

struct Broker {
    notes: Arc<Notes>,
    url: String,
}

impl Broker {
    async fn start(silent: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("mqtt://{}?version=5", listener.local_addr().unwrap());
        let notes = Arc::new(Notes { silent: AtomicBool::new(silent), ..Notes::default() });
        let of_connections = Arc::clone(&notes);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let notes = Arc::clone(&of_connections);
                tokio::spawn(async move {
                    tokio::select! {
                        // A client that goes away is no error here.
                        _ = serve(stream, &notes) => {}
                        () = notes.cut.notified() => {}
                    }
                });
            }
        });
        Self { notes, url }
    }

    /// Once so many PUBLISH packets have come.
    async fn seen(&self, count: usize) -> Vec<Seen> {
        within("publishes", async {
            loop {
                let more = self.notes.more.notified();
                let seen = self.notes.seen.lock().unwrap().clone();
                if seen.len() >= count {
                    return seen;
                }
                more.await;
            }
        })
        .await
    }
}

async fn serve(mut stream: TcpStream, notes: &Notes) -> io::Result<()> {
    loop {
        let first = stream.read_u8().await?;
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = stream.read_u8().await?;
            length |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        match first >> 4 {
            1 => stream.write_all(&[0x20, 3, 0, 0, 0]).await?,
            3 => {
                let (seen, id) = publish(first, &body);
                notes.seen.lock().unwrap().push(seen);
                notes.more.notify_one();
                if let Some([high, low]) = id.filter(|_| !notes.silent.load(Ordering::SeqCst)) {
                    stream.write_all(&[0x40, 2, high, low]).await?;
                }
            }
            12 => stream.write_all(&[0xD0, 0]).await?,
            14 => return Ok(()),
            other => panic!("packet of kind {other}"),
        }
    }
}

fn publish(first: u8, body: &[u8]) -> (Seen, Option<[u8; 2]>) {
    let mut rest = body;
    text(&mut rest);
    let id = (first & 0x06 != 0).then(|| [byte(&mut rest), byte(&mut rest)]);
    let length = usize::from(byte(&mut rest));
    assert!(length < 0x80, "longer properties than this broker reads");
    let (mut properties, payload) = rest.split_at(length);
    let mut pairs = Vec::new();
    while !properties.is_empty() {
        assert_eq!(byte(&mut properties), 0x26, "only user properties are expected");
        pairs.push((text(&mut properties), text(&mut properties)));
    }
    (Seen { payload: String::from_utf8(payload.to_vec()).unwrap(), properties: pairs }, id)
}

fn byte(rest: &mut &[u8]) -> u8 {
    let (first, after) = rest.split_first().unwrap();
    *rest = after;
    *first
}

fn text(rest: &mut &[u8]) -> String {
    let length = usize::from(byte(rest)) << 8 | usize::from(byte(rest));
    let (text, after) = rest.split_at(length);
    *rest = after;
    String::from_utf8(text.to_vec()).unwrap()
}

/// A directory of its own, gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("modax-identity-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn stamping<const N: usize>(urls: [&str; N]) -> ClientBuilder {
    Client::builder("p:1").brokers(urls).unwrap().stamping(true)
}

fn on_disk(url: &str, directory: &Path) -> Client {
    let queue = Queue::disk(directory).fsync_every(Duration::from_millis(1));
    stamping([url]).queue(queue).build().unwrap()
}

/// What a handler behind a `Dedup` does with all of it.
fn handled(seen: &[Seen]) -> Vec<&str> {
    let mut dedup = Dedup::new(1000.try_into().unwrap());
    let first = seen.iter().filter(|seen| dedup.check(&seen.identity()) == Verdict::First);
    first.map(|seen| seen.payload.as_str()).collect()
}

#[tokio::test]
async fn a_message_that_has_no_room_for_its_identity_is_refused() {
    let full = |count: usize| (0..count).fold(Message::new("t", ""), |message, _| message.user_property("n", ""));
    let stamps = stamping(["mqtt://127.0.0.1:1"]).version(Version::V5).build().unwrap();
    let plain = Client::builder("p").brokers(["mqtt://127.0.0.1:1"]).unwrap().version(Version::V5).build().unwrap();
    let too_many = PublishError::UserProperty { reason: TopicError::TooMany };

    assert_eq!(stamps.try_publish(full(65_535)).unwrap_err(), too_many);
    assert!(stamps.try_publish(full(65_534)).is_ok());
    assert!(stamps.try_publish(full(65_535).at_most_once()).is_ok(), "it gets no identity");
    assert!(plain.try_publish(full(65_535)).is_ok());
}

#[tokio::test]
async fn f21_a_message_that_another_broker_gets_again_is_known_for_the_same() {
    let (first, second) = (Broker::start(true).await, Broker::start(false).await);
    let client = stamping([&first.url, &second.url]).build().unwrap();
    let mut receipts = Vec::new();
    for number in 0..5 {
        receipts.push(client.publish(Message::new("t", number.to_string())).await.unwrap());
    }
    let mut seen = first.seen(5).await;

    first.notes.cut.notify_waiters();
    for receipt in receipts {
        assert!(within("an outcome", receipt.acked()).await.is_acked());
    }

    seen.extend(second.seen(5).await);
    assert!(seen.len() >= 10, "nothing was sent twice: {seen:?}");
    assert_eq!(handled(&seen), ["0", "1", "2", "3", "4"]);
    let Identity::Counted { producer, .. } = seen[0].identity() else { panic!("not counted") };
    assert_eq!(&*producer, "p:1");
}

#[tokio::test]
async fn a_restart_sends_what_is_on_disk_under_the_same_identity_and_gives_none_of_them_to_a_new_message() {
    let folder = Folder::new("restart");
    let (silent, broker) = (Broker::start(true).await, Broker::start(false).await);
    let before = on_disk(&silent.url, &folder.0);
    for number in 0..5 {
        drop(within("on disk", before.publish(Message::new("t", number.to_string()))).await.unwrap());
    }
    let mut seen = silent.seen(5).await;
    within("the close", before.close(Duration::ZERO)).await;

    for number in 5..8 {
        // One start leaves nothing behind, the next finds nothing: there numbers begin anew.
        let idle = on_disk(&broker.url, &folder.0);
        for recovered in idle.recovered() {
            assert!(within("an outcome", recovered.receipt.acked()).await.is_acked());
        }
        within("the close", idle.close(DEADLINE)).await;
        let after = on_disk(&broker.url, &folder.0);
        let receipt = within("on disk", after.publish(Message::new("t", number.to_string()))).await.unwrap();
        assert!(within("an outcome", receipt.acked()).await.is_acked());
        within("the close", after.close(DEADLINE)).await;
    }

    seen.extend(broker.seen(8).await);
    assert!(seen.len() >= 13, "nothing was sent twice: {seen:?}");
    assert_eq!(handled(&seen), ["0", "1", "2", "3", "4", "5", "6", "7"]);
    let mut of_number = BTreeMap::new();
    for seen in &seen {
        let Identity::Counted { sequence, .. } = seen.identity() else { panic!("not counted") };
        of_number.entry(sequence).or_insert_with(BTreeSet::new).insert(&seen.payload);
    }
    assert!(of_number.values().any(|payloads| payloads.len() > 1), "no number was given twice: {of_number:?}");
}

/// Not a test of its own: the process that [`f32_a_kill_changes_no_identity`] kills.
#[tokio::test]
async fn producer_to_be_killed() {
    let (Ok(url), Some(directory)) = (std::env::var("MODAX_STAMPS_FOR"), std::env::var_os("MODAX_STAMPS_IN")) else {
        return;
    };
    let client = on_disk(&url, Path::new(&directory));
    for number in client.stats().queue_messages.. {
        drop(client.publish(Message::new("t", number.to_string())).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f32_a_kill_changes_no_identity() {
    let folder = Folder::new("kill");
    let (silent, broker) = (Broker::start(true).await, Broker::start(false).await);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "identity::producer_to_be_killed"])
        .env("MODAX_STAMPS_FOR", &silent.url)
        .env("MODAX_STAMPS_IN", &folder.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    silent.seen(50).await;
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "the producer ended by itself");
    let mut seen = silent.seen(50).await;
    let waiting = disk::inspect(&folder.0).unwrap().waiting.len();

    let after = on_disk(&broker.url, &folder.0);
    let repeats = broker.seen(waiting).await;
    within("the close", after.close(DEADLINE)).await;

    seen.extend(repeats);
    let expected: Vec<_> = (0..waiting).map(|number| number.to_string()).collect();
    assert_eq!(handled(&seen), expected);
    let mut of_payload = BTreeMap::new();
    for seen in &seen {
        let first = of_payload.entry(&seen.payload).or_insert_with(|| seen.identity());
        assert_eq!(*first, seen.identity(), "{seen:?}");
    }
}

#[tokio::test]
async fn what_the_program_says_itself_wins_and_nothing_is_added_where_nothing_is_asked_for_or_needed() {
    let broker = Broker::start(false).await;
    let asked = stamping([&broker.url]).build().unwrap();
    let own = Message::new("t", "own").user_property("modax-id", "mine").user_property("unit", "C");
    let unasked = Client::builder("u").brokers([&broker.url]).unwrap().build().unwrap();
    for (client, message) in [
        (&asked, own),
        (&asked, Message::new("t", "0").at_most_once()),
        (&asked, Message::new("t", "1").user_property("unit", "C")),
        (&unasked, Message::new("t", "unasked")),
    ] {
        let receipt = within("admission", client.publish(message)).await.unwrap();
        assert!(within("an outcome", receipt.acked()).await.is_acked());
    }

    let seen = broker.seen(4).await;
    let of = |payload: &str| seen.iter().find(|seen| seen.payload == payload).unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(of("own").properties, [pair("modax-id", "mine"), pair("unit", "C")]);
    assert_eq!(of("0").properties, []);
    assert_eq!(of("unasked").properties, []);
    assert_eq!(of("1").properties[0], pair("unit", "C"));
    of("1").identity();
}

#[tokio::test]
async fn an_identity_needs_mqtt_5_and_a_name_that_fits() {
    let old = Client::builder("p").brokers(["mqtt://127.0.0.1:1"]).unwrap().stamping(true);
    assert_eq!(old.build().unwrap_err(), ConfigError::NeedsVersion5 { field: "stamping" });
    let named = |bytes| Client::builder("p".repeat(bytes)).brokers(["mqtt://127.0.0.1:1?version=5"]).unwrap();
    let refused = named(987).stamping(true).build().unwrap_err();
    assert!(matches!(refused, ConfigError::OutOfRange { field: "client_id", .. }), "{refused}");
    assert!(named(986).stamping(true).build().is_ok());
    assert!(named(987).build().is_ok());
}

#[tokio::test]
async fn a_queue_with_identities_is_sent_over_3_1_1_without_them() {
    let folder = Folder::new("older");
    let nobody = on_disk("mqtt://127.0.0.1:1?version=5", &folder.0);
    drop(within("on disk", nobody.publish(Message::new("t", "1"))).await.unwrap());
    within("the close", nobody.close(Duration::ZERO)).await;
    let waiting = disk::inspect(&folder.0).unwrap().waiting;
    assert!(waiting.iter().all(|message| Identity::of(&message.user_properties).is_some()), "{waiting:?}");

    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let old = Client::builder("p:1").brokers([broker.url()]).unwrap().version(Version::V311);
    let old = old.queue(Queue::disk(&folder.0)).build().unwrap();
    for recovered in old.recovered() {
        assert!(within("an outcome", recovered.receipt.acked()).await.is_acked());
    }
    assert_eq!(broker.publishes().len(), 1);
}
